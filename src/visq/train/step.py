"""One optimizer step from images to weights; on a GPU it is captured in a CUDA graph and replayed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from visq.train.config import TrainConfig
from visq.train.optimizer import WeightAverage

#: Steps before the capture. They compile kernels and allocate what a graph may not.
WARM_UP = 3

#: Loss and norm of the gradient, scalars on the device.
Measured = tuple[Tensor, Tensor]


class Step:
    """Runs forward, loss, backward, clipping, AdamW and the weights' average.

    With `capture`, learning rate, decay, images and targets have fixed memory. The first WARM_UP steps run as they
    are, on a stream of their own, and the next one is captured: PyTorch's recipe for whole networks. Random numbers
    of the forward pass go on from replay to replay, and follow `torch.manual_seed`.

    Attributes:
        why_not: why a GPU's steps are not captured; None where they are, or may still be.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        loss: Callable[[Tensor, Tensor], Tensor],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: WeightAverage | None,
        config: TrainConfig,
        device: torch.device,
        capture: bool | None = None,
    ) -> None:
        self.forward, self.loss, self.parameters = forward, loss, list(model.parameters())
        self.optimizer, self.ema = optimizer, ema
        self.config, self.device = config, device
        self.capture = device.type == "cuda" and config.cuda_graph if capture is None else capture
        self.why_not = None if self.capture or device.type != "cuda" else "cuda_graph is off"
        self._done = 0
        self._replay: Callable[[], None] | None = None
        if self.capture:
            self._rate, self._share = (torch.zeros((), device=device) for _ in range(2))
            self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
            for group in optimizer.param_groups:
                group["lr"], group["capturable"] = self._rate, device.type == "cuda"

    def __call__(self, images: Tensor, targets: Tensor, rate: float, step: int) -> Measured:
        """Does step number `step` (from 0) with a learning rate; a later call overwrites what it returns.

        Arguments:
            images, targets: what the task's `batch` gives, of the same sizes in every call.
        """
        share = 0.0 if self.ema is None else self.ema.share(step)
        if not self.capture:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            return self._run(images, targets, share)
        self._rate.fill_(rate)
        self._share.fill_(share)
        if self._done == 0:
            self._images, self._targets = images.clone(), targets.clone()
        self._images.copy_(images)
        self._targets.copy_(targets)
        self._done += 1
        if self._done > WARM_UP and self._replay is None and self.why_not is None:
            self._try_capture()
        if self._replay is not None:
            self._replay()
            return self._measured
        with self._aside():
            return self._run(self._images, self._targets, self._share)

    def _run(self, images: Tensor, targets: Tensor, share: float | Tensor) -> Measured:
        """Does one step; the graph holds this function's kernels."""
        config = self.config
        # A captured backward pass must own the gradients, so they are made anew.
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = self.forward(images)
        loss = self.loss(logits.float(), targets)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, config.grad_clip or math.inf)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.move(share)
        return loss.detach(), norm

    def _aside(self) -> contextlib.AbstractContextManager[None]:
        """Returns a `with` block on the stream of warm-up and capture."""
        return contextlib.nullcontext() if self._stream is None else _on(self._stream, self.device)

    def _try_capture(self) -> None:
        """Captures the step, or notes why that is not possible; steps then go on as in the warm-up."""
        try:
            run = lambda: self._run(self._images, self._targets, self._share)  # noqa: E731
            self._replay, self._measured = captured(run, self._stream)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.why_not = " ".join(str(error).split())[:200]


def captured(run: Callable[[], Measured], stream: Any) -> tuple[Callable[[], None], Measured]:
    """Captures a function's kernels, which do not run meanwhile.

    Returns:
        what replays them, and the results that every replay overwrites.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        found = run()
    return graph.replay, found


@contextlib.contextmanager
def _on(stream: Any, device: torch.device) -> Iterator[None]:
    """Runs a `with` block on a stream that waits for the current one, which waits for it in turn."""
    current = torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
