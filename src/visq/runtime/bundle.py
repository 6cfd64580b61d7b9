"""An artifact as the engine reads it: no torch, every size and hash checked before anything is computed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as safetensors_load

from visq.artifact.packing import unpack
from visq.artifact.schema import CONFIG_FILE, TENSOR_FILE, ArtifactConfig, read_config
from visq.errors import VisqError
from visq.recipes.schema import first_problem
from visq.runtime.arithmetic import Floats, Ints
from visq.runtime.program import Constant
from visq.runtime.quantizers import Factor, Quantizer, StateQuantizer, make_factor, make_quantizer, make_state

_DTYPES = {"float32": "F32", "uint8": "U8", "int16": "I16"}


@dataclass(frozen=True)
class Weight:
    """A coded weight: codes [N, ...] less their zero point, a scale for each row or one, and what the quantizer
    multiplies its columns by (1 where nothing), in the coordinates of `rotation` if there is one."""

    codes: Ints
    scale: Floats
    smooth: Floats
    rotation: Floats | None = None
    divisor: Floats | None = None

    def decoded(self) -> Floats:
        rows = (-1,) + (1,) * (self.codes.ndim - 1)
        return self.codes.astype(np.float32) * self.scale.reshape(rows) * self.smooth


@dataclass
class Bundle:
    """Config and tensors of an artifact; quantizers and weights are made on first use and kept."""

    config: ArtifactConfig
    tensors: dict[str, np.ndarray]
    _made: dict[tuple[str, str], Any] = field(default_factory=dict)

    def quantizer(self, site: str) -> Quantizer:
        return self._once(site, "activation", make_quantizer)

    def state(self, site: str) -> StateQuantizer:
        return self._once(site, "inner", make_state)

    def factor(self, site: str) -> Factor:
        return self._once(site, "inner", make_factor)

    def rotation(self, site: str) -> tuple[Floats, Floats]:
        """(matrix R [C, C], divisor [C]) of a rotated site."""
        parts = self._parts(site)
        matrix = parts["rotation"]
        divisor = parts.get("divisor", np.ones(matrix.shape[0], np.float32))
        return matrix, divisor

    def weight(self, name: str) -> Weight | Floats:
        """A weight by the name of its site where it is quantized, or a parameter by its own name."""
        if name not in self.config.sites:
            return self.parameter(name)
        key = ("weight", name)
        if key not in self._made:
            self._made[key] = self._weight(name)
        weight: Weight | Floats = self._made[key]
        return weight

    def parameter(self, name: str) -> Floats:
        if name not in self.tensors or self.tensors[name].dtype != np.float32:
            raise VisqError(f"the program needs parameter {name}, which the artifact does not hold")
        return self.tensors[name]

    def constant(self, constant: Constant) -> Floats:
        """The value of a program's constant, float32."""
        found = self.weight(constant.name)
        value = found.decoded() if isinstance(found, Weight) else found
        for function in constant.functions:
            value = np.exp(value.astype(np.float64)).astype(np.float32) if function == "exp" else -value
        return value

    def _weight(self, name: str) -> Weight | Floats:
        record, parts = self.config.sites[name], self._parts(name)
        if record.codes is None:
            raise VisqError(f"sites.{name} has no codes")
        codes = unpack(parts["codes"], record.codes.bits, record.codes.shape, record.codes.offset).astype(np.int64)
        try:
            quantizer = make_quantizer(name, record.quantizer, parts)
        except (ValueError, KeyError, TypeError) as error:
            raise VisqError(f"sites.{name}.quantizer cannot be read: {first_line(error)}") from error
        if quantizer.table is not None:
            rows = (-1,) + (1,) * (codes.ndim - 1)
            values: Floats = quantizer.table[codes] * quantizer.scale.reshape(rows) * quantizer.smooth
            return values
        zero = quantizer.zero.astype(np.int64).reshape((-1,) + (1,) * (codes.ndim - 1))
        rotation, divisor = self.rotation(name) if "rotation" in parts else (None, None)
        return Weight(codes - zero, quantizer.scale, quantizer.smooth, rotation, divisor)

    def _parts(self, site: str) -> dict[str, np.ndarray]:
        prefix = f"{site}."
        found = {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}
        return {part: value for part, value in found.items() if "." not in part}

    def _once(self, site: str, kind: str, make: Any) -> Any:
        key = (make.__name__, site)
        if key not in self._made:
            record = self.config.sites.get(site)
            if record is None or record.kind != kind:
                raise VisqError(f"the program names site {site}, which the artifact does not quantize")
            try:
                self._made[key] = make(site, record.quantizer, self._parts(site))
            except (ValueError, KeyError, TypeError) as error:
                raise VisqError(f"sites.{site}.quantizer cannot be read: {first_line(error)}") from error
        return self._made[key]


def first_line(error: Exception) -> str:
    """What is wrong, in one line."""
    return first_problem(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"


_DAMAGED = "the artifact is damaged, quantize again or copy it again"


def read_bundle(path: Path | str) -> Bundle:
    """Read an artifact's config and tensors, after hash, size, dtype and shape of everything were compared.

    Raises:
        VisqError: anything missing, damaged or edited, naming the file and the key.
    """
    folder = Path(path)
    config = read_config(folder)
    file = folder / TENSOR_FILE
    try:
        data = file.read_bytes()
    except OSError as error:
        raise VisqError(f"{file} cannot be read: {error.strerror or error}; {_DAMAGED}") from error
    if len(data) != config.tensor_file.bytes or hashlib.sha256(data).hexdigest() != config.tensor_file.sha256:
        raise VisqError(f"{file}: size or sha256 do not match {CONFIG_FILE}; {_DAMAGED}")
    try:
        tensors = safetensors_load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise VisqError(f"{file} is not a valid safetensors file ({error}); {_DAMAGED}") from error
    found = {name: (_DTYPES.get(str(value.dtype)), value.shape) for name, value in tensors.items()}
    expected = {name: (dtype, tuple(shape)) for name, (dtype, shape) in config.tensors.items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise VisqError(f"{file}: {', '.join(wrong[:5])} are not what {CONFIG_FILE} says; {_DAMAGED}")
    for name, target in config.shared.items():
        if name in tensors or target not in config.tensors:
            raise VisqError(f"{folder / CONFIG_FILE}: shared.{name}: {target} must be stored, {name} must not")
        tensors[name] = tensors[target]
    for name, value in tensors.items():
        if value.dtype == np.float32 and not np.isfinite(value).all():
            raise VisqError(f"{file}: {name} holds NaN or Inf")
    return Bundle(config, tensors)
