"""What `config.json` of an artifact says, and the two hashes that make every change of it or of the tensors visible."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from visq.errors import VisqError, first_problem
from visq.integer.program import Program
from visq.recipes import Recipe

SCHEMA_VERSION = 1
CONFIG_FILE = "config.json"
TENSOR_FILE = "model.safetensors"


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(Strict):
    """The network: its family and every field of the family's configuration."""

    family: str
    geometry: dict[str, int | float | str | tuple[int, ...]]


class CalibrationData(Strict):
    """The images a calibration saw; `fingerprint` is that of the chosen subset."""

    data: str
    fingerprint: str
    images: int
    seed: int


class Provenance(Strict):
    """Where a quantized model comes from."""

    model: str
    checkpoint_sha256: str | None = None
    calibration: CalibrationData | None = None


class Codes(Strict):
    """A weight's packed codes: stored code = code + offset, in `bits` bits."""

    parameter: str
    bits: int = Field(ge=2, le=8)
    offset: int = Field(ge=0, le=128)
    shape: tuple[int, ...]


class SiteRecord(Strict):
    """A quantized site: `quantizer` is the metadata of `visq.quant.serialize`; weights have codes."""

    kind: str
    quantizer: dict[str, Any]
    codes: Codes | None = None


class CoverageRow(Strict):
    """Sites of one kind: how many there are, are targeted by the recipe, and have a quantizer."""

    kind: str
    sites: int
    targeted: int
    quantized: int
    bits: tuple[int, ...]
    granularity: tuple[str, ...]


class TensorFile(Strict):
    """model.safetensors as a whole."""

    sha256: str
    bytes: int


class ArtifactConfig(Strict):
    """The whole `config.json`.

    `tensors` is (dtype, shape) by tensor name; `shared` names, for a tensor that is not stored, the equal one that is.
    `program` is what the integer engine runs; where there is none, `no_program` says why.
    It holds no date and no timing: the same calibration gives the same bytes.
    """

    schema_version: Literal[1]
    visq_version: str
    architecture: Architecture
    preprocess: dict[str, Any]
    classes: tuple[str, ...] | None
    recipe: Recipe
    provenance: Provenance
    coverage: tuple[CoverageRow, ...]
    sites: dict[str, SiteRecord]
    tensor_file: TensorFile
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    shared: dict[str, str]
    program: Program | None = None
    no_program: str | None = None
    self_hash: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values with a fresh self-hash."""
        values = self.model_dump(mode="json", exclude={"program", "sites"})
        values["sites"] = {name: site.model_dump(mode="json", exclude_none=True) for name, site in self.sites.items()}
        values["program"] = None if self.program is None else self.program.to_json()
        values["self_hash"] = self_hash(values)
        return values


def canonical(values: Any) -> bytes:
    """JSON with sorted keys and no white space: what hashes are taken of."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def self_hash(values: dict[str, Any]) -> str:
    """sha256 of everything in a config but the hash itself."""
    return hashlib.sha256(canonical({key: value for key, value in values.items() if key != "self_hash"})).hexdigest()


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def render(values: dict[str, Any]) -> str:
    """The text of config.json: a line for each key, and a line for each entry of a key that has several."""

    def compact(value: Any) -> str:
        return json.dumps(value, separators=(", ", ": "), allow_nan=False)

    def entry(value: Any) -> str:
        if isinstance(value, dict) and value:
            return "{\n" + ",\n".join(f"  {json.dumps(key)}: {compact(item)}" for key, item in value.items()) + "\n }"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n" + ",\n".join(f"  {compact(item)}" for item in value) + "\n ]"
        return compact(value)

    return "{\n" + ",\n".join(f" {json.dumps(key)}: {entry(value)}" for key, value in values.items()) + "\n}\n"


def read_config(folder: Path) -> ArtifactConfig:
    """`config.json` of an artifact, checked as far as it goes alone: JSON, schema version, self-hash, every key.

    Raises:
        VisqError: naming the file and the key.
    """
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        raise VisqError(f"{folder} is not an artifact: no such folder")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VisqError(f"{folder} is not an artifact: it has no {CONFIG_FILE}") from None
    except OSError as error:
        raise VisqError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise VisqError(f"{path} is not valid JSON ({error}); the artifact is damaged, quantize again") from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version is None:
        raise VisqError(f"{path}: schema_version is missing; this is not an artifact of visq")
    if version != SCHEMA_VERSION:
        reads = f"this visq reads {SCHEMA_VERSION}; use the visq that wrote it"
        raise VisqError(f"{path}: schema_version {version} is not supported, {reads}")
    try:
        found = self_hash(values)
    except ValueError as error:
        raise VisqError(f"{path}: {error}") from error
    if found != values.get("self_hash"):
        raise VisqError(
            f"{path}: self_hash does not match, the file was edited or is damaged; restore it or quantize again"
        )
    try:
        return ArtifactConfig.model_validate(values)
    except ValueError as error:
        raise VisqError(f"{path}: {first_problem(error)}") from error
