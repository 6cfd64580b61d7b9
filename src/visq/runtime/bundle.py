"""Reads an artifact for the engine without torch, and checks every size and hash before anything is computed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from visq.artifact.packing import unpack
from visq.artifact.schema import CONFIG_FILE, TENSOR_FILE, ArtifactConfig, file_sha256, read_config
from visq.artifact.site_checks import DTYPES
from visq.artifact.validation import check_artifact, check_tensor_table
from visq.errors import VisqError
from visq.integer.arithmetic import Floats, runs_of
from visq.integer.codecs import Codec, FactorCodec, StateCodec, make_codec, make_factor_codec, make_state_codec
from visq.integer.operations import Constant
from visq.integer.resampling import bilinear
from visq.integer.weights import Weight, coded_weight, made, stored_ladder


@dataclass
class Bundle:
    """The config and tensors of an artifact. Codecs are made on first use and kept; weights are made on every call."""

    config: ArtifactConfig
    tensors: Mapping[str, np.ndarray]
    _made: dict[tuple[str, str], Any] = field(default_factory=dict)
    _by_site: dict[str, list[str]] = field(default_factory=dict)

    def codec(self, site: str) -> Codec:
        """Returns the codec of an activation site. Raises VisqError where the artifact has none."""
        return self._once(site, "activation", make_codec)

    def state(self, site: str) -> StateCodec:
        """Returns the codec of a hidden state. Raises VisqError where the artifact has none."""
        return self._once(site, "inner", make_state_codec)

    def factor(self, site: str) -> FactorCodec:
        """Returns the codec of Abar or Bbar. Raises VisqError where the artifact has none."""
        return self._once(site, "inner", make_factor_codec)

    def forget(self) -> None:
        """Drops the codecs made so far; the next use makes them again."""
        self._made.clear()

    def rotation(self, site: str) -> tuple[Floats, Floats]:
        """Returns the matrix [m, m] and divisor [C] of a rotated site; `arithmetic.rotate` applies them."""
        parts = self._parts(site)
        matrix = parts.get("rotation", np.zeros(0, np.float32))
        divisor = parts.get("divisor", np.ones(len(matrix), np.float32))
        order = len(matrix)
        if matrix.shape != (order, order) or divisor.ndim != 1 or not runs_of(len(divisor), order):
            raise VisqError(f"{site}: its rotation and divisor do not fit each other")
        return matrix.astype(np.float32), divisor.astype(np.float32)

    def weight(self, name: str) -> Weight | Floats:
        """Returns a weight by the name of its site if it is quantized, otherwise a parameter by its own name."""
        if name not in self.config.sites:
            return self.parameter(name)
        return self._weight(name)

    def parameter(self, name: str) -> Floats:
        """Returns a stored parameter, float32. Raises VisqError where the artifact does not hold it."""
        value = self.tensors.get(name)
        if value is None or value.dtype not in (np.float16, np.float32):
            raise VisqError(f"the program needs parameter {name}, which the artifact does not hold")
        return value.astype(np.float32)

    def constant(self, constant: Constant) -> Floats:
        """Returns the value of a program's constant, float32."""
        found = self.weight(constant.name)
        value = found.decoded() if isinstance(found, Weight) else found
        for function in constant.functions:
            value = np.exp(value.astype(np.float64)).astype(np.float32) if function == "exp" else -value
        if constant.grid is None:
            return value
        side = math.isqrt(value.shape[1])
        return bilinear(value.reshape(side, side, -1), *constant.grid).reshape(1, -1, value.shape[2])

    def is_ladder(self, name: str) -> bool:
        """Returns whether a weight is stored as a decay ladder."""
        record = self.config.sites.get(name)
        return record is not None and record.quantizer.get("kind") == "ladder"

    def _weight(self, name: str) -> Weight | Floats:
        record, parts = self.config.sites[name], self._parts(name)
        if record.codes is None:
            raise VisqError(f"sites.{name} has no codes")
        codes = unpack(parts["codes"], record.codes.bits, record.codes.shape, record.codes.offset)
        if self.is_ladder(name):
            return stored_ladder(parts, codes)
        codec: Codec = made(make_codec, name, record.quantizer, parts)
        rotation, divisor = self.rotation(name) if "rotation" in parts else (None, None)
        return coded_weight(codes, codec, rotation, divisor)

    def _parts(self, site: str) -> dict[str, np.ndarray]:
        if not self._by_site:
            for name in self.tensors:
                owner, _, part = name.rpartition(".")
                self._by_site.setdefault(owner, []).append(part)
        return {part: self.tensors[f"{site}.{part}"] for part in self._by_site.get(site, ())}

    def _once(self, site: str, kind: str, make: Any) -> Any:
        key = (make.__name__, site)
        if key not in self._made:
            record = self.config.sites.get(site)
            if record is None or record.kind != kind:
                raise VisqError(f"the program names site {site}, which the artifact does not quantize")
            self._made[key] = made(make, site, record.quantizer, self._parts(site))
        return self._made[key]


_DAMAGED = "the artifact is damaged, quantize again or copy it again"


def read_bundle(path: Path | str) -> Bundle:
    """Reads an artifact's config and tensors and validates them, as `visq.artifact.load` does.

    Raises:
        VisqError: something is missing, damaged or edited. The message names the file and the key.
    """
    folder = Path(path)
    config = read_config(folder)
    file = folder / TENSOR_FILE
    try:
        size = file.stat().st_size
        if size != config.tensor_file.bytes or file_sha256(file) != config.tensor_file.sha256:
            raise VisqError(f"{file}: size or sha256 do not match {CONFIG_FILE}; {_DAMAGED}")
        with safe_open(file, framework="np"):  # opening checks that offsets, dtypes and shapes fit the file
            tensors = StoredTensors(file)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise VisqError(f"{file} is not a valid safetensors file ({error}); {_DAMAGED}") from error
    except OSError as error:
        raise VisqError(f"{file} cannot be read: {error.strerror or error}; {_DAMAGED}") from error
    found = tensors.kinds()
    expected = {name: (dtype, tuple(shape)) for name, (dtype, shape) in config.tensors.items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise VisqError(f"{file}: {', '.join(wrong[:5])} are not what {CONFIG_FILE} says; {_DAMAGED}")
    try:
        check_tensor_table(config)
        for name, target in config.shared.items():
            tensors.share(name, target)
        check_artifact(config, tensors)
    except VisqError as error:
        raise VisqError(f"{folder}: {error}") from error
    return Bundle(config, tensors)


class StoredTensors(Mapping[str, np.ndarray]):
    """The tensors of a safetensors file; each one is read on access, because the engine packs it and drops it.

    The file stays open, so that the artifact may be replaced on disk meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        length = int.from_bytes(self._file.read(8), "little")
        header = json.loads(self._file.read(length))
        header.pop("__metadata__", None)
        self._entries = {
            name: (8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
            for name, entry in header.items()
        }

    def kinds(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Returns the (dtype, shape) of every tensor by name."""
        return {name: (dtype, shape) for name, (_, dtype, shape) in self._entries.items()}

    def share(self, name: str, target: str) -> None:
        """Makes `name` another name of tensor `target`."""
        self._entries[name] = self._entries[target]

    def __getitem__(self, name: str) -> np.ndarray:
        offset, dtype, shape = self._entries[name]
        self._file.seek(offset)
        return np.fromfile(self._file, DTYPES[dtype], math.prod(shape)).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
