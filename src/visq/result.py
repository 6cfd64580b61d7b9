"""Holds what `visq.quantize` returns: the quantized network, its check, and the ways on from there."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from visq.artifact import Check
    from visq.export import Exported
    from visq.integer.arithmetic import Floats
    from visq.pipeline import Quantized
    from visq.recipes import Recipe
    from visq.runtime import Engine


class Result:
    """A quantized network.

        result = visq.quantize("vim_nano_fmnist", "visq-w8a8-fused", "fashion-mnist")
        if result.check.verdict == "good":
            result.save("vim-w8a8")

    Attributes:
        model: the simulation, a torch module [B, channels, H, W] float32 -> logits [B, classes] float32. Its bits are
            the engine's where the network has an integer program.
        check: the self-check (docs/self-check.md); None if it was not asked for.
        recipe: the recipe that made it.
        notes: remarks on the calibration, such as too few images.
        path: the artifact's folder, or None before it is saved.
        calibration_seconds: wall time of the calibration.
        peak_rss: the most memory the process held meanwhile [bytes].
    """

    def __init__(self, quantized: Quantized, path: Path | None) -> None:
        self.model: Any = quantized.model
        self.check: Check | None = quantized.check
        self.recipe: Recipe = quantized.model.recipe
        self.notes: tuple[str, ...] = tuple(quantized.calibration.notes)
        self.path = path
        self.calibration_seconds: float = quantized.calibration.seconds
        self.peak_rss: int = quantized.peak_rss
        self._unsaved: tempfile.TemporaryDirectory[str] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the simulation's logits [B, classes] of normalized images [B, channels, H, W] float32."""
        logits: Tensor = self.model(images)
        return logits

    def __repr__(self) -> str:
        from visq.pipeline.wording import described

        if self.check is None:
            found = "not checked"
        else:
            found = f"{self.check.verdict}, {described(self.check.held_out or self.check.calibration)}"
        place = "not saved" if self.path is None else f"saved in {self.path}"
        return f"<visq.Result {self.model.card.name} with {self.recipe.name}: {found}; {place}>"

    def save(self, path: Path | str, *, overwrite: bool = False) -> Path:
        """Writes the artifact as the folder `path` and returns it.

        Raises:
            VisqError: the folder exists (`overwrite` replaces an artifact) or cannot be written. Nothing is left then.
        """
        from visq.artifact import save

        save(self.model, path, overwrite=overwrite)
        self.path = Path(path)
        return self.path

    def engine(self, *, threads: int | None = None) -> Engine:
        """Returns the integer engine of the network.

        Raises:
            VisqError: the network has no integer program; the message says why.
        """
        from visq.runtime import load_engine

        return load_engine(self._artifact(), threads=threads)

    def export(
        self, out: Path | str, *, format: str = "onnx", images: Floats | None = None, overwrite: bool = False
    ) -> Exported:
        """Writes the network for another runtime and compares it with the engine there (docs/export.md).

        Arguments:
            images: [B, channels, size, size] float32, normalized, for that comparison; random ones by default.
        Raises:
            VisqError: as in `visq.export.export`. No file is left then.
        """
        from visq.export import export

        return export(self._artifact(), out, format=format, images=images, overwrite=overwrite)

    def report(self, out: Path | str, **settings: Any) -> dict[str, Any]:
        """Writes one HTML page about the network and returns its numbers (docs/report.md).

        Arguments:
            settings: `data`, `limit`, `fp32`, `time` and the others of `visq.report.write`.
        Raises:
            VisqError: as in `visq.report.write`. No file is written then.
        """
        from visq.report import write

        return write(self._artifact(), out, **settings)

    def _artifact(self) -> Path:
        """Returns the artifact's folder: where it was saved, or a temporary one that lives as long as this object."""
        if self.path is not None:
            return self.path
        if self._unsaved is None:
            from visq.artifact import save

            self._unsaved = tempfile.TemporaryDirectory(prefix="visq-result-")
            save(self.model, Path(self._unsaved.name) / "unsaved")
        return Path(self._unsaved.name) / "unsaved"
