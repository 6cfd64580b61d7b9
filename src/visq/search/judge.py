"""Measures a choice of bits as it would be deployed: its artifact's bytes, and how often it decides as FP32 does."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visq.artifact import Agreement, CalibrationData, Check, LossySite, Provenance, artifact_bytes, save
from visq.native.extension import available
from visq.pipeline.check import Reference, compared, on_engine
from visq.progress import Progress
from visq.quant.site import named_sites
from visq.recipes import Recipe
from visq.runtime import load_engine
from visq.search import latency
from visq.search.groups import Group, kinds_of
from visq.search.quantizers import Library
from visq.search.recipe_file import read_back, recipe_text
from visq.search.state import Measurements

#: Images in a batch of the engine, and of its profile.
BATCH = 32
PROFILED = 8


@dataclass(frozen=True)
class Verdict:
    """What was measured of a choice.

    Attributes:
        bytes: of the artifact.
        images: held-out images; 0 where there are none.
        agree: how many of them get FP32's decision; None for networks without classes.
        sqnr_db: of the outputs against FP32's; None where nothing is to be compared.
    """

    bytes: int
    images: int
    agree: int | None
    sqnr_db: float | None

    @property
    def drop(self) -> float | None:
        """Returns the share of held-out images with another decision than FP32's, in percent."""
        return None if self.agree is None or not self.images else 100 * (1 - self.agree / self.images)


class Judge:
    """Builds networks from a library's quantizers and measures them.

    Arguments:
        exact: held-out images and FP32's outputs; None where there are none.
    """

    def __init__(
        self, library: Library, base: Recipe, groups: Sequence[Group], exact: Reference | None, store: Measurements
    ) -> None:
        self.library, self.base, self.groups, self.exact, self.store = library, base, groups, exact, store
        self.names = [name for name, _ in named_sites(library.model)]

    def widths(self, choice: Sequence[int]) -> dict[str, int]:
        """Returns the width of every site; `choice` has that of every group."""
        found = {name: width for group, width in zip(self.groups, choice, strict=True) for name in group.sites}
        return {**dict.fromkeys(kinds_of(self.base, self.names), max(self.library.quantizers)), **found}

    def recipe(self, choice: Sequence[int], name: str = "searched") -> tuple[str, Recipe]:
        """Returns the recipe of a choice, as text and as calibration takes it."""
        title = f"{self.base.family} with bits searched site by site"
        text = recipe_text(name, self.base, self.names, self.widths(choice), title)
        return text, read_back(text, f"{name}.yaml")

    def __call__(self, choice: Sequence[int]) -> Verdict:
        """Returns the verdict on a choice, which is measured once."""
        key = hashlib.sha256(bytes(choice)).hexdigest()[:16]
        found = self.store.document(f"choice {key}", lambda: self._with_artifact(choice, self._measure))
        return Verdict(**found)

    def profile(self, choice: Sequence[int]) -> dict[str, float]:
        """Returns the engine's milliseconds by kind of operation, one thread; empty without the C++ extension."""
        profile: dict[str, float] = self._with_artifact(choice, self._profile)
        return profile

    def _with_artifact(self, choice: Sequence[int], measure: Callable[[Any, Path], Any]) -> Any:
        network = self.library.network(self.widths(choice))
        network.recipe, network.provenance = self.recipe(choice)[1], placeholder(self.library.model)
        network.check = placeholder_check(self.names, self.exact is not None)
        with tempfile.TemporaryDirectory(prefix="visq-search-") as folder:
            artifact = Path(folder) / "artifact"
            save(network, artifact)
            return measure(network, artifact)

    def _measure(self, network: Any, artifact: Path) -> Mapping[str, Any]:
        found: dict[str, Any] = {"bytes": artifact_bytes(artifact), "images": 0, "agree": None, "sqnr_db": None}
        if self.exact is None:
            return found
        run = on_engine(artifact)[1] if available() else network
        agreement = compared(run, self.exact, BATCH, Progress("silent"))
        return found | {"images": agreement.images, "agree": agreement.agree, "sqnr_db": agreement.sqnr_db}

    def _profile(self, network: Any, artifact: Path) -> dict[str, float]:
        assert self.exact is not None
        engine = load_engine(artifact, threads=1)
        images = next(self.exact.images.batches(PROFILED))[0].numpy()
        return latency.profile(engine, images)


def placeholder_check(names: Sequence[str], held_out: bool) -> Check:
    """Returns a self-check about as long as a real one, so that an artifact's bytes are those of the finished one."""
    one = Agreement(images=100, agree=100, sqnr_db=10.25)
    middle = sorted(names, key=len)[len(names) // 2]
    worst = LossySite(name=middle, kind=middle.partition(".")[2], bits=4, sqnr_db=10.25)
    return Check(verdict="good", calibration=one, held_out=one if held_out else None, worst_sites=(worst,) * 3)


def placeholder(model: Any) -> Provenance:
    """Returns a provenance of the length that a calibration writes."""
    data = CalibrationData(data="search", fingerprint="0" * 64, images=0, seed=0)
    return Provenance(model=model.card.name, checkpoint_sha256=model.card.checkpoint_sha256, calibration=data)
