"""AdamW and its parameter groups, the learning-rate curve, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from visq.train.config import TrainConfig

_NO_DECAY = frozenset({"A_log", "A_b_log", "D", "D_b", "cls_token", "pos_embed"})


def decays(name: str, parameter: Tensor) -> bool:
    """Returns whether weight decay applies: to matrices, not to norms, biases, A, D, the class token and positions."""
    return parameter.ndim > 1 and name.rsplit(".", 1)[-1] not in _NO_DECAY


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Returns AdamW over the model's parameters in two groups, with and without weight decay."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Returns the learning rate of step `step` (from 0): a linear warm-up above zero, then a cosine to `min_lr`."""
    warmup, total = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1.0, total - warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


class WeightAverage:
    """Exponential moving average of a model's parameters.

    The decay warms up as (1 + step) / (10 + step), so that the first weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = dict(model.named_parameters())
        self.shadow = {name: p.detach().clone() for name, p in self.parameters.items()}

    def share(self, step: int) -> float:
        """Returns the part of the model's weights in the average after optimizer step `step` (from 0)."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    def update(self, step: int) -> None:
        """Moves the average towards the model's weights after optimizer step `step` (from 0)."""
        self.move(self.share(step))

    @torch.no_grad()
    def move(self, share: float | Tensor) -> None:
        """Moves the average by a part of the way to the model's weights; a tensor may change between CUDA replays."""
        averages: list[Tensor] = list(self.shadow.values())
        weights: list[Tensor] = list(self.parameters.values())
        if isinstance(share, float):
            torch._foreach_lerp_(averages, weights, share)
            return
        way = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(way, share)
        torch._foreach_add_(averages, way)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the model the averaged weights for the time of a `with` block, in place for compiled models."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            kept = parameter.clone()
            parameter.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)
