"""The contract between networks and calibration: a forward pass cut into stages."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from visq.models.card import ModelCard


@dataclass(frozen=True)
class Stage:
    """A step of the forward pass: a function from a tuple of tensors to the next, and the prefixes of the modules it
    runs."""

    name: str
    forward: Callable[..., tuple[Tensor, ...]]
    modules: tuple[str, ...]


def alike(state: tuple[Tensor, ...]) -> list[Tensor]:
    """Returns what a stage computes: its tensors of the last one's shape. Maps of other sizes are only passed on."""
    return [tensor for tensor in state if tensor.shape == state[-1].shape]


class StagedNetwork(nn.Module):
    """A network whose forward pass is its stages, one after the other."""

    #: Name, preprocessing and classes; set by `create_model` and `load_model`.
    card: ModelCard

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The forward pass cut into steps; calibration streams through them."""

    def forward(self, images: Tensor) -> Tensor:
        state: tuple[Tensor, ...] = (images,)
        for stage in self.stages():
            state = stage.forward(*state)
        return state[0]
