"""Defines the keys of an artifact's `config.json`. Two hashes reveal every change of it or of the tensors."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, StrictBool, model_validator

from visq.errors import VisqError, first_problem
from visq.files import read_text
from visq.integer.operations import Size, Strict
from visq.integer.program import Program
from visq.integer.spec import Spec
from visq.recipes import Recipe

SCHEMA_VERSION = 1
CONFIG_FILE = "config.json"
TENSOR_FILE = "model.safetensors"


class Architecture(Strict):
    """The network: its family and every field of the family's configuration."""

    family: str
    geometry: dict[str, int | float | str | tuple[int, ...] | tuple[str, ...]]


class CalibrationData(Strict):
    """The images that a calibration used; `fingerprint` identifies the chosen subset."""

    data: str
    fingerprint: str
    images: int
    seed: int


class Provenance(Strict):
    """The source of a quantized model: its name, its checkpoint and its calibration."""

    model: str
    checkpoint_sha256: str | None = None
    calibration: CalibrationData | None = None


class Codes(Strict):
    """A weight's packed codes: stored code = code + offset, in `bits` bits; 0 bits for a ladder, which has none."""

    parameter: str
    bits: int = Field(ge=0, le=8)
    offset: int = Field(ge=0, le=128)
    shape: tuple[int, ...]


class QuantizerRecord(Strict):
    """The metadata of a stored quantizer: the schema of `SiteRecord.quantizer`, which itself stays plain JSON.

    `axis` is the axis that the scales go along, or None for one scale. A hidden state has `read_quantized` instead, a
    ladder nothing.
    """

    kind: Literal["quantizer", "rotated", "state", "ladder"]
    spec: Spec
    axis: Literal[0, -1, -2] | None = None
    read_quantized: StrictBool | None = None

    @model_validator(mode="after")
    def _complete(self) -> QuantizerRecord:
        if ("read_quantized" in self.model_fields_set) != (self.kind == "state"):
            raise ValueError("read_quantized belongs to quantizers of kind state, and to no others")
        if self.kind == "state" and self.read_quantized is None:
            raise ValueError("read_quantized must be true or false")
        if ("axis" in self.model_fields_set) == (self.kind in ("state", "ladder")):
            raise ValueError("axis belongs to every quantizer but those of kind state and ladder")
        if (self.spec.granularity.kind == "ladder") != (self.kind == "ladder"):
            raise ValueError("granularity ladder belongs to quantizers of kind ladder, and to no others")
        return self


class SiteRecord(Strict):
    """A quantized site.

    `quantizer` holds the metadata of `visq.quant.serialize` (see `QuantizerRecord`). Only a weight has codes.
    """

    kind: str
    quantizer: dict[str, Any]
    codes: Codes | None = None


class CoverageRow(Strict):
    """Counts for one kind of site: all sites, sites that the recipe targets, and sites with a quantizer."""

    kind: str
    sites: int
    targeted: int
    quantized: int
    bits: tuple[int, ...]
    granularity: tuple[str, ...]


class Agreement(Strict):
    """Outputs of the deployed network beside FP32's on one set of images.

    Attributes:
        images: number of images compared.
        agree: number of decisions that are FP32's; null where the network has no classes.
        positions: number of positions compared, where the network gives each a class; missing where images have one.
        sqnr_db: SQNR in dB over images with finite outputs; null where the outputs are equal or none is finite.
        psnr_db: PSNR in dB of outputs in 0..1, for networks without classes; null where `sqnr_db` would be.
        non_finite: number of images whose outputs hold NaN or Inf.
    """

    images: int
    agree: int | None
    sqnr_db: float | None
    psnr_db: float | None = None
    non_finite: int = 0
    positions: int | None = None

    @property
    def decisions(self) -> int:
        """Returns how many classes were compared."""
        return self.images if self.positions is None else self.positions


class LossySite(Strict):
    """A site that rounds badly: `kind` is its row of the coverage table; `sqnr_db` null means NaN or Inf."""

    name: str
    kind: str
    bits: int
    sqnr_db: float | None


class Check(Strict):
    """The self-check after calibration (docs/self-check.md).

    Attributes:
        problem: the reason why the network did not run; null where it ran.
    """

    verdict: Literal["good", "doubtful", "broken"]
    calibration: Agreement
    held_out: Agreement | None
    worst_sites: tuple[LossySite, ...]
    problem: str | None = None


class TensorFile(Strict):
    """The size in bytes and the hash of model.safetensors."""

    sha256: str
    bytes: int


class ArtifactConfig(Strict):
    """The whole `config.json`.

    `tensors` is (dtype, shape) by tensor name. `shared` maps a tensor that is not stored to its stored equal.
    The integer engine runs `program`; without a program, `no_program` gives the reason. `deploy_sizes` are sizes
    (height, width) that the engine makes another program for when it loads the artifact.
    `check` is the self-check, or None if none was made.
    No key holds a date or a timing, so that the same calibration gives the same bytes.
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
    deploy_sizes: tuple[tuple[Size, Size], ...] = ()
    check: Check | None = None
    self_hash: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values with a fresh self-hash."""
        left_out = {"program", "sites", *(key for key in ("check", "deploy_sizes") if not getattr(self, key))}
        values = self.model_dump(mode="json", exclude=left_out)
        values["sites"] = {name: site.model_dump(mode="json", exclude_none=True) for name, site in self.sites.items()}
        for found in (values.get("check") or {}).values():
            if (
                isinstance(found, dict) and found.get("positions", 0) is None
            ):  # artifacts of classifiers have no such key
                del found["positions"]
        values["program"] = None if self.program is None else self.program.to_json()
        values["self_hash"] = self_hash(values)
        return values


def canonical(values: Any) -> bytes:
    """Returns JSON with sorted keys and no white space, the input of the hashes."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def self_hash(values: dict[str, Any]) -> str:
    """Returns the sha256 of a config without its `self_hash`."""
    return hashlib.sha256(canonical({key: value for key, value in values.items() if key != "self_hash"})).hexdigest()


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def render(values: dict[str, Any]) -> str:
    """Returns the text of config.json, with a line for each key and for each entry of a key with several."""

    def compact(value: Any) -> str:
        return json.dumps(value, separators=(", ", ": "), allow_nan=False)

    def entry(value: Any) -> str:
        if isinstance(value, dict) and value:
            return "{\n" + ",\n".join(f"  {json.dumps(key)}: {compact(item)}" for key, item in value.items()) + "\n }"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n" + ",\n".join(f"  {compact(item)}" for item in value) + "\n ]"
        return compact(value)

    return "{\n" + ",\n".join(f" {json.dumps(key)}: {entry(value)}" for key, value in values.items()) + "\n}\n"


#: The deepest nesting that `parse_json` accepts. No config comes near it.
MAX_DEPTH = 64


def parse_json(text: str) -> Any:
    """Parses a JSON document and returns its value.

    Raises:
        ValueError: the text is not JSON, a number is NaN, Inf or beyond float64, or the nesting exceeds MAX_DEPTH.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    def number(digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            raise ValueError(f"{digits[:40]} is beyond float64")
        return value

    value = json.loads(text, parse_constant=refuse, parse_float=number)
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for parent in level if isinstance(parent, dict | list) for item in _items(parent)]
    if level:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return value


def _items(parent: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return parent.values() if isinstance(parent, dict) else parent


def read_config(folder: Path) -> ArtifactConfig:
    """Reads `config.json` of an artifact and checks its JSON, schema version, self-hash and every key.

    Raises:
        VisqError: the file is missing or wrong; the message names the file and the key.
    """
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        what = "it is no folder" if folder.exists() else "no such folder"
        raise VisqError(f"{folder} is not an artifact: {what}; give a folder that `visq quantize --out` wrote")
    try:
        values = parse_json(read_text(path))
    except FileNotFoundError:
        raise VisqError(f"{folder} is not an artifact: it has no {CONFIG_FILE}") from None
    except OSError as error:
        raise VisqError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise VisqError(f"{path} is not valid JSON ({error}); the artifact is damaged, quantize again") from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version is None:
        raise VisqError(f"{path}: schema_version is missing; this is not an artifact of visq")
    if type(version) is not int or version != SCHEMA_VERSION:
        reads = f"this visq reads {SCHEMA_VERSION}; use the visq that wrote it"
        raise VisqError(f"{path}: schema_version {version!s:.40} is not supported, {reads}")
    if self_hash(values) != values.get("self_hash"):
        raise VisqError(
            f"{path}: self_hash does not match, the file was edited or is damaged; restore it or quantize again"
        )
    try:
        return ArtifactConfig.model_validate(values)
    except ValueError as error:
        raise VisqError(f"{path}: {first_problem(error)}") from error
