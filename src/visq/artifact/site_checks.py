"""Checks the record of each quantized site against the site's tensors, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from visq.artifact.packing import unpack
from visq.artifact.schema import Codes, QuantizerRecord, SiteRecord
from visq.errors import VisqError, first_problem, need
from visq.integer.arithmetic import runs_of
from visq.integer.scales import fault_of_scale

#: The dtypes of an artifact's tensors, by their safetensors names.
DTYPES = {"F32": np.float32, "F16": np.float16, "U8": np.uint8, "I16": np.int16}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}

#: Keeps a code minus its zero point within 16 bits.
LARGEST_ZERO_POINT = 16000

_LINEAR = ("quantizer", "rotated")


@dataclass(frozen=True)
class Part:
    """The rules for one tensor of a site.

    Attributes:
        kinds: the kinds of quantizers that may have the tensor.
        required: whether quantizers of these kinds must have it.
        dtypes, axes: the allowed dtypes and the number of axes.
        positive: whether every value and its reciprocal must be above 0.
    """

    kinds: tuple[str, ...] = _LINEAR
    required: bool = False
    dtypes: tuple[str, ...] = ("F32",)
    axes: int = 1
    positive: bool = False


#: The schema of a site's tensors, by short name.
PARTS: dict[str, Part] = {
    "scale": Part((*_LINEAR, "ladder"), required=True, positive=True),
    "zero_point": Part(dtypes=("U8", "I16")),
    "group": Part(dtypes=("U8", "I16")),
    "smooth": Part(positive=True),
    "table": Part(),
    "rotation": Part(("rotated",), required=True, axes=2),
    "divisor": Part(("rotated",)),
    "step": Part(("state",), required=True, positive=True),
    "channel": Part(("state",), required=True, positive=True),
    "state": Part(("state",), required=True, positive=True),
    "codes": Part((*_LINEAR, "ladder"), dtypes=("U8",)),
}

#: The axes that scales may go along, by the kind of site.
_AXES = {"weight": (None, 0), "activation": (None, -1, -2), "inner": (None,)}


def check_site(name: str, record: SiteRecord, parts: Mapping[str, np.ndarray]) -> QuantizerRecord:
    """Checks everything about a site that needs no network, and returns its quantizer record.

    Arguments:
        parts: the site's tensors by short name.
    Raises:
        VisqError: the site is wrong; the message names the site and the key or tensor.
    """
    try:
        quantizer = QuantizerRecord.model_validate(record.quantizer)
    except ValueError as error:
        raise VisqError(f"sites.{name}: quantizer.{first_problem(error)}") from error
    need(record.kind in _AXES, f"sites.{name}.kind is {record.kind}, expected {', '.join(_AXES)}")
    for part, tensor in parts.items():
        _check_part(name, quantizer, part, tensor)
    for part, rule in PARTS.items():
        missing = rule.required and quantizer.kind in rule.kinds and part not in parts
        need(not missing, f"sites.{name}: tensor {part} is missing")
    if quantizer.kind == "state":
        need(record.kind == "inner", f"sites.{name}.kind is {record.kind}, a state's is inner")
    elif quantizer.kind == "ladder":
        need(record.kind == "weight", f"sites.{name}.kind is {record.kind}, a ladder's is weight")
    else:
        _check_linear(name, record, quantizer, parts)
    _check_range(name, quantizer, parts)
    is_weight = record.kind == "weight"
    need(is_weight == (record.codes is not None), f"sites.{name}: weights have codes, and only they")
    need(is_weight == ("codes" in parts), f"sites.{name}: weights have a tensor codes, and only they")
    if record.codes is not None:
        _check_codes(name, record.codes, quantizer, parts)
    return quantizer


def _check_part(name: str, quantizer: QuantizerRecord, part: str, tensor: np.ndarray) -> None:
    rule = PARTS.get(part)
    if rule is None or quantizer.kind not in rule.kinds:
        raise VisqError(f"sites.{name}: a quantizer of kind {quantizer.kind} has no tensor {part}")
    dtype = NAMES.get(tensor.dtype, str(tensor.dtype))
    need(dtype in rule.dtypes, f"sites.{name}: {part} is {dtype}, expected {' or '.join(rule.dtypes)}")
    shape = list(tensor.shape)
    if part == "codes":
        need(tensor.ndim == 1, f"sites.{name}: codes must be one row of bytes, not {shape}")
        return
    need(tensor.ndim == rule.axes and tensor.size > 0, f"sites.{name}: {part} has shape {shape}")
    if tensor.dtype.kind == "f":
        need(np.isfinite(tensor).all(), f"sites.{name}: {part} is not finite")
    if rule.positive:
        fault = fault_of_scale(tensor)
        need(fault is None, f"sites.{name}: {part} {fault}")


def _check_linear(name: str, record: SiteRecord, quantizer: QuantizerRecord, parts: Mapping[str, np.ndarray]) -> None:
    """Checks a quantizer with scales: their number, their axis, and the zero points, groups and table."""
    scale, axis = parts["scale"], quantizer.axis
    axes = _AXES[record.kind]
    need(axis in axes, f"sites.{name}.quantizer.axis is {axis}, expected {' or '.join(map(str, axes))}")
    need(axis is not None or scale.size == 1, f"sites.{name}: scale has shape {list(scale.shape)}, expected [1]")
    zero_point, group, table = parts.get("zero_point"), parts.get("group"), parts.get("table")
    if zero_point is not None:
        fits = zero_point.shape == scale.shape
        need(fits, f"sites.{name}: zero_point has shape {list(zero_point.shape)}, scale {list(scale.shape)}")
        inside = int(np.abs(zero_point.astype(np.int64)).max()) <= LARGEST_ZERO_POINT
        need(inside, f"sites.{name}: zero_point must stay within {LARGEST_ZERO_POINT}")
    if group is not None:
        inside = axis is not None and 0 <= int(group.min()) <= int(group.max()) < scale.size
        need(inside, f"sites.{name}: group must index the {scale.size} scales")
    if table is not None:
        largest = 1 << quantizer.spec.bits
        fits = table.size <= largest and bool((np.diff(table) >= 0).all())
        need(fits, f"sites.{name}: table must hold at most {largest} ascending values")
        need(zero_point is None or not zero_point.any(), f"sites.{name}: a table and a zero_point")
    if quantizer.kind == "rotated":
        _check_rotation(name, parts)
    if record.kind == "inner":
        need(
            zero_point is None or not zero_point.any(),
            f"sites.{name}.kind is inner, whose quantizers have no zero_point",
        )
        signed = "smooth" not in parts or quantizer.spec.signed
        need(signed, f"sites.{name}: only Bbar, which is signed, has a tensor smooth")


def _check_range(name: str, quantizer: QuantizerRecord, parts: Mapping[str, np.ndarray]) -> None:
    """Checks that every scale is valid and that every code's value is finite in float32."""
    spec = quantizer.spec
    codes = np.array([spec.qmin, spec.qmax], np.float32)
    if quantizer.kind == "ladder":
        codes = np.ones(2, np.float32)
    factors = [parts[part] for part in ("scale", "smooth", "step", "channel", "state") if part in parts]
    fault = fault_of_scale(*factors)
    need(fault is None, f"sites.{name}: its scale {fault}")
    if "table" in parts:
        codes = parts["table"]
    elif "zero_point" in parts:
        codes = _ends(codes, -parts["zero_point"].astype(np.float32), np.add)
    for factor in factors:
        codes = _ends(codes, factor)
    need(np.isfinite(codes).all(), f"sites.{name}: its scale is so large that its codes leave float32")


def _ends(a: np.ndarray, b: np.ndarray, combine: np.ufunc = np.multiply) -> np.ndarray:
    """Combines the smallest and largest values of two vectors. Returns [2, 2] float32."""
    with np.errstate(all="ignore"):
        ends: np.ndarray = combine.outer([a.min(), a.max()], [b.min(), b.max()]).astype(np.float32)
    return ends


def _check_rotation(name: str, parts: Mapping[str, np.ndarray]) -> None:
    matrix, divisor = parts["rotation"], parts.get("divisor")
    order = len(matrix)
    width = order if divisor is None else divisor.size
    runs = runs_of(width, order)
    need(matrix.shape == (order, order) and runs > 0, f"sites.{name}: its rotation and divisor do not fit each other")
    close = np.abs(matrix @ matrix.T - np.eye(order, dtype=np.float32) / runs).max() <= 1e-4 / runs
    need(close, f"sites.{name}: rotation must be an orthogonal matrix")
    usable = divisor is None or fault_of_scale(np.abs(divisor)) is None
    need(usable, f"sites.{name}: divisor must not be 0, nor so near it that 1 / divisor is infinite")


def code_offset(quantizer: QuantizerRecord, has_table: bool) -> int:
    """Returns the number added to a weight's code before packing: `-qmin`, or 0 for an index into a table."""
    return 0 if has_table else -quantizer.spec.qmin


def _check_codes(name: str, record: Codes, quantizer: QuantizerRecord, parts: Mapping[str, np.ndarray]) -> None:
    """Checks the number, bits and range of a weight's packed codes."""
    owner, found = name.rpartition(".")[0], record.parameter.rpartition(".")[0]
    need(found == owner, f"sites.{name}.codes.parameter is {record.parameter}, expected a parameter of {owner}")
    table, spec = parts.get("table"), quantizer.spec
    if quantizer.kind == "ladder":
        _check_ladder(name, record, parts)
        return
    offset = code_offset(quantizer, table is not None)
    right = (record.bits, record.offset) == (spec.bits, offset)
    need(right, f"sites.{name}.codes: bits or offset do not belong to its quantizer, expected {spec.bits}, {offset}")
    shape = list(record.shape)
    need(shape and min(shape) >= 1, f"sites.{name}.codes.shape is {shape}")
    rows = parts["group"].size if "group" in parts else parts["scale"].size
    need(quantizer.axis is None or rows == shape[0], f"sites.{name}.codes.shape is {shape}, its scales are for {rows}")
    smooth = parts.get("smooth")
    fits = smooth is None or smooth.size == shape[-1]
    need(fits, f"sites.{name}: smooth has {0 if smooth is None else smooth.size} elements for {shape[-1]}")
    count, packed = math.prod(shape), parts["codes"]
    expected = (count * record.bits + 7) // 8
    sizes = f"{packed.size} bytes for {count} codes of {record.bits} bits (codes.shape {shape}), expected {expected}"
    need(packed.size == expected, f"{name}.codes: {sizes}")
    low, high = (0, table.size - 1) if table is not None else (spec.qmin, spec.qmax)
    if high - low + 1 == 1 << record.bits and count * record.bits % 8 == 0:
        return  # every bit pattern is a valid code, so unpacking finds nothing
    try:
        codes = unpack(packed, record.bits, record.shape, record.offset)
    except VisqError as error:
        raise VisqError(f"{name}.codes: {error}") from error
    need(low <= codes.min() and codes.max() <= high, f"{name}.codes: a code outside {low}..{high}")


def _check_ladder(name: str, record: Codes, parts: Mapping[str, np.ndarray]) -> None:
    """Checks that a ladder has no bits and a scale for each channel."""
    shape, scale = list(record.shape), parts["scale"]
    need((record.bits, record.offset) == (0, 0), f"sites.{name}.codes: bits and offset must be 0, a ladder has no bits")
    fits = len(shape) == 2 and min(shape) >= 1 and shape[0] == scale.size
    need(fits, f"sites.{name}.codes.shape is {shape}, its scales are for {scale.size}")
    need(parts["codes"].size == 0, f"{name}.codes: {parts['codes'].size} bytes, a ladder has none")


def check_sizes(name: str, quantizer: QuantizerRecord, parts: Mapping[str, np.ndarray], rows: int, width: int) -> None:
    """Checks that the vectors of an activation's quantizer fit a tensor [rows, width].

    Raises:
        VisqError: a size does not fit; the message names the site and the tensor.
    """
    sizes = {None: 1, -1: width, -2: rows}
    key = "group" if "group" in parts else "scale"
    found, expected = parts[key].size, sizes[quantizer.axis]
    need(found == expected, f"sites.{name}: {key} has {found} elements for {expected}")
    smooth = parts.get("smooth")
    fits = smooth is None or smooth.size == width
    need(fits, f"sites.{name}: smooth has {0 if smooth is None else smooth.size} elements for {width}")
    if quantizer.kind == "rotated":
        found = parts["divisor"].size if "divisor" in parts else len(parts["rotation"])
        need(found == width, f"sites.{name}: its rotation is for {found} channels, not {width}")
