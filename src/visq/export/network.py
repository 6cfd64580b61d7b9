"""FP32 networks and artifacts as ONNX files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from visq.artifact import Provenance, save
from visq.errors import VisqError
from visq.recipes import get_recipe
from visq.runtime.bundle import read_bundle


def network_to_onnx(network: Any, chunk: int | None = None) -> bytes:
    """Returns an FP32 network as an ONNX file: images [batch, channels, size, size] float32 -> logits [batch, classes].

    It is lowered to a program as a quantized one is, so that both have the same form.

    Arguments:
        network: a network without quantizers, in eval mode, with `card`.
        chunk: steps of a scan that one iteration computes; see `visq.export.scan`.
    Raises:
        VisqError: the extra is missing, or the network has no program or something in it no ONNX form.
    """
    with tempfile.TemporaryDirectory(prefix="visq-export-") as name:
        folder = Path(name) / "fp32"
        config = save(network, folder, recipe=get_recipe("fp32"), provenance=Provenance(model=network.card.name))
        if config.program is None:
            raise VisqError(f"the network has no program: {config.no_program}")
        return artifact_to_onnx(folder, chunk)


def artifact_to_onnx(folder: Path, chunk: int | None = None) -> bytes:
    """Returns an artifact's program as an ONNX file; `chunk` and errors as in `network_to_onnx`."""
    try:
        from visq.export.program import to_onnx
    except ImportError as error:
        raise VisqError(f"ONNX needs an extra: pip install 'visq[onnx]' ({error})") from error
    bundle = read_bundle(folder)
    if bundle.config.program is None:
        raise VisqError(f"{folder} has no integer program: {bundle.config.no_program}")
    content: bytes = to_onnx(bundle.config.program, bundle, chunk).SerializeToString()
    return content
