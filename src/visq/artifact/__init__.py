"""Artifacts: quantized models on disk as packed integers and JSON. docs/artifact.md describes the format."""

from visq.artifact.coverage import coverage_rows, kind_of
from visq.artifact.load import artifact_bytes, is_artifact, load, verify
from visq.artifact.save import check_destination, save, serialize
from visq.artifact.schema import ArtifactConfig, CalibrationData, CoverageRow, Provenance, read_config

__all__ = [
    "save",
    "load",
    "verify",
    "read_config",
    "serialize",
    "check_destination",
    "is_artifact",
    "artifact_bytes",
    "coverage_rows",
    "kind_of",
    "ArtifactConfig",
    "CalibrationData",
    "CoverageRow",
    "Provenance",
]
