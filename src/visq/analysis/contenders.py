"""Everything that can run a network here: the engine, PyTorch in several forms, and the runtimes of others."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from visq.device import CPU
from visq.errors import VisqError
from visq.export.network import artifact_to_onnx, network_to_onnx
from visq.export.runtimes import RUNTIMES, open_in
from visq.export.scan import CHUNKS
from visq.quant.site import named_sites
from visq.runtime import Engine, load_engine
from visq.simulation import undeploy

#: Images [batch, channels, size, size] float32 -> outputs, an array or a tensor.
Run = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class Contender:
    """One way to run the network.

    Attributes:
        backend: `int`, `eager-fp32`, `compile-bf16`, ...
        make: example images -> what runs batches of their shape.
        slow: timed a few times only.
        compiles: takes half a minute before it runs.
    """

    backend: str
    make: Callable[[np.ndarray], Run]
    slow: bool = False
    compiles: bool = False


#: Types of PyTorch's forward pass beside float32, by the type of device.
HALF = {"cuda": {"fp16": torch.float16, "bf16": torch.bfloat16}}
HALF_ON_CPU = {"bf16": torch.bfloat16}


def make_contenders(network: Any, engine: Engine | None, device: torch.device = CPU) -> list[Contender]:
    """Returns what runs the network without other packages. PyTorch has visq's fp32 scan, the reference a loop.

    Arguments:
        device: where PyTorch computes. A call takes images to it and outputs back, as the engine on a GPU does.
    """
    plain = without_quantizers(network).to(device)

    def eager(dtype: torch.dtype) -> Callable[[np.ndarray], Run]:
        return lambda example: lambda images: autocast(plain, torch.from_numpy(images).to(device), dtype).cpu()

    def compiled(dtype: torch.dtype, mode: str | None = None) -> Callable[[np.ndarray], Run]:
        def make(example: np.ndarray) -> Run:
            run = torch.compile(lambda x: autocast(plain, x, dtype), mode=mode)
            return lambda images: run(torch.from_numpy(images).to(device)).cpu()

        return make

    def reference(example: np.ndarray) -> Run:
        def run(images: np.ndarray) -> object:
            with naive_ops():
                return plain(torch.from_numpy(images).to(device)).cpu()

        return run

    half = HALF.get(device.type, HALF_ON_CPU)
    graphs = [Contender("graph-fp16", compiled(torch.float16, "reduce-overhead"), compiles=True)]

    found = [] if engine is None else [Contender("int", lambda example: engine)]
    return [
        *found,
        Contender("eager-fp32", eager(torch.float32)),
        *(Contender(f"eager-{name}", eager(dtype)) for name, dtype in half.items()),
        Contender("compile-fp32", compiled(torch.float32), compiles=True),
        *(Contender(f"compile-{name}", compiled(dtype), compiles=True) for name, dtype in half.items()),
        *(graphs if device.type == "cuda" else ()),
        Contender("plain-pytorch", reference, slow=True),
    ]


def optional_contenders(
    network: Any, folder: Path | None, engine: Engine | None, threads: int
) -> dict[str, Callable[[], Contender]]:
    """Returns, by name, what makes the contenders that need packages: torchao, and the runtimes of others.

    A runtime takes the FP32 network, and an artifact's own numbers; each gets the form of the scan that is fastest
    there. Making one raises VisqError where the package is not installed or the network has no form for it.
    """

    def maker(backend: str, runtime: str, content: Callable[[int], bytes]) -> Callable[[], Contender]:
        def make() -> Contender:
            run = open_in(runtime, content(CHUNKS[runtime]), threads)
            return Contender(backend, lambda example: run)

        return make

    found = {"torchao-int8": lambda: torchao(network)}
    if folder is not None:
        found["cuda"] = lambda: on_cuda(folder)
    for runtime in RUNTIMES:
        found[f"{runtime}-fp32"] = maker(
            f"{runtime}-fp32", runtime, lambda chunk: network_to_onnx(without_quantizers(network), chunk)
        )
        if folder is not None and engine is not None:
            found[f"{runtime}-int"] = maker(f"{runtime}-int", runtime, lambda chunk: artifact_to_onnx(folder, chunk))
    return found


def on_cuda(folder: Path) -> Contender:
    """Returns the engine on a GPU. Raises VisqError where it cannot run; images come from and logits go to the CPU."""
    engine = load_engine(folder, backend="cuda")
    return Contender("cuda", lambda example: engine)


def torchao(network: Any) -> Contender:
    """Returns PyTorch's own static int8: linears and convolutions by torchao, calibrated on the example images, and
    compiled with frozen weights. The rest of the network, visq's fp32 scan included, stays in FP32.

    Raises:
        VisqError: torchao is not installed.
    """
    if find_spec("torchao") is None:
        raise VisqError("torchao is not installed: pip install torchao")
    plain = without_quantizers(network)

    def make(example: np.ndarray) -> Run:
        from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        images = (torch.from_numpy(example),)
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(torch.export.export(plain, images).module(), quantizer)
        prepared(*images)
        run = lower_pt2e_quantized_to_x86(convert_pt2e(prepared), images)
        return lambda images: run(torch.from_numpy(images))

    return Contender("torchao-int8", make, compiles=True)


def autocast(network: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    half = contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(images.device.type, dtype)
    with half:
        result: torch.Tensor = network(images)
        return result


def without_quantizers(network: Any) -> Any:
    """Returns the network without its quantizers and computed by PyTorch, so that it is as fast as the FP32 model."""
    for _, site in named_sites(network):
        site.quantizer = None
    return undeploy(network).eval()


@contextlib.contextmanager
def naive_ops() -> Iterator[None]:
    """Runs every op as its readable loop inside a `with` block, as a user without kernels would."""
    before = os.environ.get("VISQ_OPS")
    os.environ["VISQ_OPS"] = "naive"
    try:
        yield
    finally:
        if before is None:
            del os.environ["VISQ_OPS"]
        else:
            os.environ["VISQ_OPS"] = before
