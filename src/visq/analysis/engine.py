"""Puts the integer engine in the place of a model, so that whatever measures models measures it as well."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from visq.artifact.reading import load
from visq.models import ModelCard
from visq.recipes import Recipe
from visq.runtime import Engine, load_engine


class EngineModel(nn.Module):
    """Computes logits [B, classes] of images [B, channels, size, size] float32 with the engine of an artifact.

    Attributes:
        card, config, recipe, provenance: as those of the artifact's simulation.
    """

    def __init__(
        self,
        artifact: Path | str | Engine,
        threads: int | None = None,
        backend: str = "int",
        device: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(artifact, Engine):
            threads = torch.get_num_threads() if threads is None else threads
            artifact = load_engine(artifact, backend=backend, threads=threads, device=device)
        self.engine = artifact
        simulation = load(artifact.folder)
        self.card: ModelCard = simulation.card
        self.config, self.provenance = simulation.config, simulation.provenance
        self.recipe: Recipe = simulation.recipe
        self.simulation = simulation

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.engine(images.detach().numpy()))

    def stages(self) -> list[object]:
        """Returns no stages: nobody can look into the engine."""
        return []
