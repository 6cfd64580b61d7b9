"""Converts quantizers, codes and parameters to the plain tensors of `model.safetensors`, and back.

A floating-point parameter (float16 or float32) keeps its own name. A site's tensors are called `<site>.<part>`, and
`visq.artifact.site_checks.PARTS` lists the parts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from visq.artifact.packing import pack, unpack
from visq.artifact.schema import Codes, SiteRecord
from visq.errors import VisqError
from visq.quant.half import stored
from visq.quant.ladder import LadderQuantizer
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.serialize import quantizer_from_parts, quantizer_to_parts
from visq.quant.site import WEIGHT, Site, SiteQuantizer, named_sites, site_parameter

#: Parts stored as small integers. The first choice (dtype, smallest, largest) that fits is used.
SMALL_INTEGERS = {
    "zero_point": ((torch.uint8, 0, 255), (torch.int16, -32768, 32767)),
    "group": ((torch.uint8, 0, 255), (torch.int16, 0, 32767)),
}
#: Equal tensors of at least this many bytes are stored once.
SHARED_BYTES = 1024
ALLOWED_DTYPES = {part: tuple(dtype for dtype, _, _ in choices) for part, choices in SMALL_INTEGERS.items()}


def code_offset(quantizer: Quantizer | LadderQuantizer) -> int:
    """Returns the number added to a code before packing, which makes the smallest one 0."""
    return -quantizer.code_range()[0]


def parameter_name(model: nn.Module, name: str, site: Site) -> str:
    """Returns the name of the parameter that a weight site quantizes."""
    owner = name.rpartition(".")[0]
    return f"{owner}.{site.parameter}" if owner else site.parameter


def store(model: nn.Module) -> tuple[dict[str, SiteRecord], dict[str, Tensor]]:
    """Returns the records of a model's quantized sites and all its tensors, both by name.

    Raises:
        VisqError: a weight differs from its decoded codes, or a parameter is not finite.
    """
    records: dict[str, SiteRecord] = {}
    tensors: dict[str, Tensor] = {}
    coded: set[str] = set()
    for name, site in named_sites(model):
        if site.quantizer is None:
            continue
        meta, parts = quantizer_to_parts(site.quantizer)
        codes = None
        if site.kind == WEIGHT:
            codes, parts["codes"] = _encode(model, name, site)
            coded.add(codes.parameter)
        records[name] = SiteRecord(kind=site.kind, quantizer=meta, codes=codes)
        _add(tensors, {f"{name}.{part}": shrink(f"{name}.{part}", part, tensor) for part, tensor in parts.items()})
    for name, parameter in model.named_parameters():
        if name not in coded:
            if not torch.isfinite(parameter).all():
                raise VisqError(f"{name} holds NaN or Inf; the artifact would be useless")
            _add(tensors, {name: stored(parameter.detach())})
    return records, {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def share(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Splits tensors so that equal large ones are stored once.

    Rotations need this: a linear's input and weight use one matrix, and often the next layer uses it too.

    Returns:
        The tensors to store, and for each tensor left out the name of its stored equal.
    """
    stored: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[bytes, str] = {}
    for name, tensor in tensors.items():
        if tensor.nbytes >= SHARED_BYTES:
            content = f"{tensor.dtype}{list(tensor.shape)}".encode() + tensor.view(torch.uint8).numpy().tobytes()
            digest = hashlib.sha256(content).digest()
            if digest in first:
                shared[name] = first[digest]
                continue
            first[digest] = name
        stored[name] = tensor
    return stored, shared


def unshare(stored: Mapping[str, Tensor], shared: Mapping[str, str]) -> dict[str, Tensor]:
    """Inverts `share`. Raises VisqError if a shared name is stored or its target is not."""
    for name, target in shared.items():
        if name in stored or target not in stored:
            raise VisqError(f"shared.{name}: {target} must be stored, {name} must not")
    return {**stored, **{name: stored[target] for name, target in shared.items()}}


def _add(tensors: dict[str, Tensor], new: dict[str, Tensor]) -> None:
    twice = tensors.keys() & new.keys()
    if twice:
        raise VisqError(f"two tensors would be called {', '.join(sorted(twice))}")
    tensors |= new


def _encode(model: nn.Module, name: str, site: Site) -> tuple[Codes, Tensor]:
    """Returns a weight's record and its packed codes [bytes] uint8."""
    quantizer = site.quantizer
    assert isinstance(quantizer, Quantizer | LadderQuantizer)
    parameter = site_parameter(model, name, site).detach()
    codes = quantizer.encode(parameter)
    if site.baked and not _same(quantizer.decode(codes), parameter):
        raise VisqError(f"{name}: the weight changed after it was quantized; its codes would not be what was measured")
    offset, bits = code_offset(quantizer), quantizer.spec.code_bits
    packed = pack(codes.cpu().numpy(), bits, offset)
    record = Codes(parameter=parameter_name(model, name, site), bits=bits, offset=offset, shape=tuple(parameter.shape))
    return record, torch.from_numpy(packed)


def _same(a: Tensor, b: Tensor) -> bool:
    """Returns whether two tensors are equal up to the rounding of a rotation.

    That rounding depends on the number of threads.
    """
    return torch.equal(a, b) or bool((a - b).abs().max() <= 1e-6 * b.abs().max())


def shrink(name: str, part: str, tensor: Tensor) -> Tensor:
    """Returns a quantizer's tensor in its stored dtype: float32, or the smallest integer type that holds it."""
    if part == "codes":
        return tensor
    for dtype, low, high in SMALL_INTEGERS.get(part, ()):
        if low <= tensor.min() and tensor.max() <= high and torch.equal(tensor, tensor.round()):
            return tensor.to(dtype)
    if part in SMALL_INTEGERS:
        raise VisqError(f"{name} holds values that are no small integers")
    return tensor.float()


def restore_site(
    name: str, record: SiteRecord, parts: dict[str, Tensor], expected: Site, shape: torch.Size | None
) -> tuple[SiteQuantizer, Tensor | None]:
    """Returns the quantizer of a stored site and, for a weight, the parameter decoded from its codes.

    Arguments:
        parts: the site's tensors by short name.
        expected: the network's site of this name.
        shape: for a weight, the shape of its parameter.
    Raises:
        VisqError: the record or a tensor is wrong.
    """
    if record.kind != expected.kind:
        raise VisqError(f"sites.{name}.kind is {record.kind}, the network's is {expected.kind}")
    codes = parts.pop("codes", None)
    for part, tensor in parts.items():
        allowed = ALLOWED_DTYPES.get(part, (torch.float32,))
        if tensor.dtype not in allowed:
            raise VisqError(f"{name}.{part} is {tensor.dtype}, expected {' or '.join(map(str, allowed))}")
    try:
        quantizer = quantizer_from_parts(record.quantizer, parts)
        check_quantizer(quantizer)
    except VisqError as error:
        raise VisqError(f"{name}: {' '.join(str(error).split())}") from error
    if record.kind != WEIGHT:
        if record.codes is not None or codes is not None:
            raise VisqError(f"sites.{name}: only weights have codes")
        return quantizer, None
    if record.codes is None or codes is None or not isinstance(quantizer, Quantizer | LadderQuantizer):
        raise VisqError(f"sites.{name}: a weight needs codes")
    return quantizer, _decode(name, record.codes, codes, quantizer, shape)


def _decode(
    name: str, record: Codes, packed: Tensor, quantizer: Quantizer | LadderQuantizer, shape: torch.Size | None
) -> Tensor:
    if record.shape != tuple(shape or ()):
        raise VisqError(f"sites.{name}.codes.shape is {list(record.shape)}, the parameter's is {list(shape or ())}")
    if (record.bits, record.offset) != (quantizer.spec.code_bits, code_offset(quantizer)):
        raise VisqError(f"sites.{name}.codes: bits or offset do not belong to its quantizer")
    if packed.dtype != torch.uint8 or packed.ndim != 1:
        raise VisqError(f"{name}.codes must be one row of bytes")
    try:
        codes = torch.from_numpy(unpack(packed.numpy(), record.bits, record.shape, record.offset))
        low, high = quantizer.code_range()
        if codes.numel() and (codes.min() < low or codes.max() > high):
            raise VisqError(f"a code outside {low}..{high}")
        return quantizer.decode(codes)
    except VisqError as error:
        raise VisqError(f"{name}.codes: {error}") from error


def check_quantizer(quantizer: nn.Module) -> None:
    """Checks shapes and ranges that the constructor does not: only a stored quantizer can have them wrong.

    Raises:
        VisqError: a tensor of the quantizer has the wrong shape or value.
    """
    if isinstance(quantizer, StateQuantizer):
        if any(tensor.ndim != 1 for tensor in (quantizer.step, quantizer.channel, quantizer.state)):
            raise VisqError("step, channel and state must be vectors")
        return
    if isinstance(quantizer, LadderQuantizer):
        if quantizer.scale.ndim != 1 or quantizer.scale.numel() == 0:
            raise VisqError(f"scale has shape {list(quantizer.scale.shape)}")
        return
    assert isinstance(quantizer, Quantizer)
    scale, zero_point, group, table = quantizer.scale, quantizer.zero_point, quantizer.group, quantizer.table
    if scale.ndim != 1 or scale.numel() == 0 or (quantizer.axis is None and scale.numel() != 1):
        raise VisqError(f"scale has shape {list(scale.shape)}")
    if quantizer.axis not in (None, 0, -1, -2):
        raise VisqError(f"axis is {quantizer.axis}")
    if zero_point is not None and zero_point.shape != scale.shape:
        raise VisqError(f"zero_point has shape {list(zero_point.shape)}, scale {list(scale.shape)}")
    if group is not None:
        inside = group.ndim == 1 and group.numel() and group.min() >= 0 and group.max() < scale.numel()
        if not inside or quantizer.axis is None:
            raise VisqError(f"group must index the {scale.numel()} scales")
    if table is not None:
        largest = 1 << quantizer.spec.bits
        if table.ndim != 1 or not 1 <= table.numel() <= largest or (table.diff() < 0).any():
            raise VisqError(f"table must hold at most {largest} ascending values")


def fill(model: Any, records: Mapping[str, SiteRecord], tensors: Mapping[str, Tensor]) -> None:
    """Fills a skeleton with stored tensors: parameters, quantizers, and weights decoded from codes.

    Raises:
        VisqError: missing or unexpected tensors, wrong shapes or dtypes, values that cannot be right.
    """
    sites = dict(named_sites(model))
    parameters = dict(model.named_parameters())
    values: dict[str, Tensor] = {}
    left = {key: tensor for key, tensor in tensors.items() if key in parameters}
    parts_of: dict[str, dict[str, Tensor]] = {}
    for key in tensors.keys() - left.keys():
        name, _, part = key.rpartition(".")
        parts_of.setdefault(name, {})[part] = tensors[key]
    for name, record in records.items():
        if name not in sites:
            raise VisqError(f"sites.{name}: the network has no such site")
        target = parameter_name(model, name, sites[name]) if record.kind == WEIGHT else None
        if record.codes is not None and record.codes.parameter != target:
            raise VisqError(f"sites.{name}.codes.parameter is {record.codes.parameter}, expected {target}")
        shape = parameters[target].shape if target in parameters else None
        sites[name].quantizer, decoded = restore_site(name, record, parts_of.pop(name, {}), sites[name], shape)
        if decoded is not None and target is not None:
            values[target], sites[name].baked = decoded, True
    for name in parameters.keys() - values.keys():
        if name not in left:
            raise VisqError(f"tensor {name} is missing")
        values[name] = _float_parameter(name, left.pop(name), parameters[name].shape)
    left |= {f"{name}.{part}": tensor for name, parts in parts_of.items() for part, tensor in parts.items()}
    if left:
        raise VisqError(f"unexpected tensors: {', '.join(sorted(left)[:5])}")
    model.load_state_dict(values, strict=False, assign=True)
    model.requires_grad_(False)


def _float_parameter(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    if tensor.dtype not in (torch.float16, torch.float32) or tensor.shape != shape:
        expected = f"float16 or float32 {list(shape)}"
        raise VisqError(f"tensor {name} is {tensor.dtype} {list(tensor.shape)}, expected {expected}")
    if math.prod(shape) and not torch.isfinite(tensor).all():
        raise VisqError(f"tensor {name} holds NaN or Inf")
    return tensor.float()
