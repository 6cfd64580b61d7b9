"""Turns quantizers into plain tensors and JSON, and back; artifacts and calibration's stages are made of these."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.quant.ladder import LadderQuantizer
from visq.quant.quantizer import Quantizer, StateQuantizer
from visq.quant.rotated import RotatedQuantizer
from visq.quant.site import SiteQuantizer

_KINDS: dict[str, type[SiteQuantizer]] = {
    "quantizer": Quantizer,
    "rotated": RotatedQuantizer,
    "state": StateQuantizer,
    "ladder": LadderQuantizer,
}


def quantizer_to_parts(quantizer: SiteQuantizer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns a quantizer's metadata for JSON, and its tensors by short name."""
    tensors = dict(quantizer.named_buffers())
    assert isinstance(quantizer, (Quantizer, StateQuantizer, LadderQuantizer))
    kind = next(kind for kind, cls in _KINDS.items() if type(quantizer) is cls)
    meta: dict[str, Any] = {"kind": kind, "spec": quantizer.spec.model_dump(exclude_defaults=True)}
    if isinstance(quantizer, StateQuantizer):
        meta["read_quantized"] = quantizer.read_quantized
    elif isinstance(quantizer, Quantizer):
        meta["axis"] = quantizer.axis
    return meta, tensors


def quantizer_from_parts(meta: dict[str, Any], tensors: dict[str, Tensor]) -> SiteQuantizer:
    """Returns the quantizer that `quantizer_to_parts` took apart.

    Raises:
        VisqError: unknown kind, invalid spec, missing or invalid tensors.
    """
    options = {key: value for key, value in meta.items() if key not in ("kind", "spec")}
    try:
        return _KINDS[meta["kind"]](Spec.model_validate(meta["spec"]), **tensors, **options)
    except (KeyError, TypeError, ValueError) as error:
        raise VisqError(f"a stored quantizer cannot be read: {error}") from error
