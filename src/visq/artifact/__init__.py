"""Stores quantized models on disk as packed integers and JSON. docs/artifact.md describes the format."""

from typing import TYPE_CHECKING

from visq._lazy import lazy

if TYPE_CHECKING:
    from visq.artifact.coverage import coverage_rows
    from visq.artifact.reading import artifact_bytes, is_artifact, load, load_verified, verify
    from visq.artifact.schema import (
        Agreement,
        ArtifactConfig,
        CalibrationData,
        Check,
        CoverageRow,
        LossySite,
        Provenance,
        read_config,
    )
    from visq.artifact.writing import check_destination, lowered, save, serialize

__all__ = [
    "save",
    "load",
    "load_verified",
    "verify",
    "read_config",
    "serialize",
    "check_destination",
    "lowered",
    "is_artifact",
    "artifact_bytes",
    "coverage_rows",
    "ArtifactConfig",
    "CalibrationData",
    "CoverageRow",
    "Provenance",
    "Check",
    "Agreement",
    "LossySite",
]

__getattr__ = lazy(
    __name__,
    {
        **dict.fromkeys(("coverage_rows",), "coverage"),
        **dict.fromkeys(("artifact_bytes", "is_artifact", "load", "load_verified", "verify"), "reading"),
        **dict.fromkeys(("check_destination", "lowered", "save", "serialize"), "writing"),
        **dict.fromkeys(
            (
                "Agreement",
                "ArtifactConfig",
                "CalibrationData",
                "Check",
                "CoverageRow",
                "LossySite",
                "Provenance",
                "read_config",
            ),
            "schema",
        ),
    },
)
