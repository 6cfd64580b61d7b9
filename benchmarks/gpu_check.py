"""Everything to be learnt from a GPU in 8 minutes: the engine's bits, speed beside PyTorch, the CPU engine's threads.

    python benchmarks/gpu_check.py [--json build/gpu-check/result.json] [--artifact DIR] [--seconds 450]
    python benchmarks/gpu_check.py --prepare      makes the artifacts (Vim-Tiny, MambaVision), and nothing else

No network and no packages but visq's, and of these Pillow may be missing. Without a GPU it is a dry run: the same parts
on a tiny network in Triton's interpreter, so that the script itself is tested; its times mean nothing. Each part that
fails is reported, and the others go on. The table comes last.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
if importlib.util.find_spec("PIL") is None:  # visq reads pictures with it, and nothing here does
    sys.modules["PIL"] = sys.modules["PIL.Image"] = MagicMock(Image=MagicMock(Image=MagicMock))

import torch

DRY = not torch.cuda.is_available()
if DRY:
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
from benchmarks.gpu_programs import programs
from torch import nn

from visq.models import create_model, mambavision
from visq.models.layers import CausalConv1d, SelectiveScan
from visq.native.extension import available, engine_isa
from visq.ops import backends
from visq.ops._scan import ScanInputs
from visq.ops.selective_scan import triton as scan_kernel
from visq.pipeline import quantize
from visq.quant.site import named_sites
from visq.recipes import Recipe, get_recipe
from visq.runtime.bundle import read_bundle
from visq.runtime.cpu.engine import CpuEngine
from visq.runtime.cuda.engine import CudaEngine
from visq.runtime.oracle import Oracle
from visq.simulation import undeploy

RECIPE = "visq-w8a8-fused"
#: The same with a ladder for A, which needs one exponential a channel.
LADDER = "visq-ladder-w8a8-fused"
FOLDER = ROOT / "build" / "gpu-check"
TINY = dict(image_size=28, patch_size=14, stride=14, channels=1, embed_dim=16, depth=2, d_state=4, num_classes=10)
#: Geometries of MambaVision: that of `mambavision_nano_imagenette`, and the one of a dry run.
ATTENTION = dict(
    image_size=128, stem_dim=16, embed_dim=24, depths=(1, 1, 4, 2), num_heads=(2, 4), windows=(8, 4), num_classes=10
)
TINY_ATTENTION = dict(
    image_size=32,
    stem_dim=4,
    embed_dim=8,
    depths=(1, 1, 2, 2),
    num_heads=(2, 4),
    windows=(2, 1),
    d_state=4,
    num_classes=5,
)
BATCHES = (1,) if DRY else (1, 8, 64, 128)
THREADS = (1, 2) if DRY else (1, 2, 4, 8, 12, 16)
#: Inputs that take turns, so that no call finds its own in the caches.
ROTATED = 1 if DRY else 4


def network(full: bool = not DRY, attention: bool = False) -> Any:
    """Returns a Vim-Tiny with random weights, or a small MambaVision; those of a dry run are smaller."""
    torch.manual_seed(0)
    if attention:
        return mambavision.fold_norms(create_model("mambavision", **(ATTENTION if full else TINY_ATTENTION)).eval())
    model = create_model("vim_tiny") if full else create_model("vim", **TINY)
    return model.eval()


def noise(model: Any, count: int, seed: int = 0) -> torch.Tensor:
    card = model.card.preprocess
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, card.channels, card.image_size, card.image_size, generator=generator)


def quick(recipe: Recipe) -> Recipe:
    """Returns a recipe with the same sites, granularities and codebooks, without learners and with few searches.

    Random weights have no accuracy to lose, and the program's operations and forms stay the same. The state keeps its
    estimator: with ranges alone its scan would run in float32.
    """
    sites = tuple(
        rule if rule.bits == "state" else rule.model_copy(update={"estimator": "minmax"}) for rule in recipe.scope.sites
    )
    update = {"sites": sites, "learners": (), "search_images": 1}
    return recipe.model_copy(update={"scope": recipe.scope.model_copy(update=update)})


def prepared(folder: Path, model: Any, recipe: str = RECIPE) -> Path:
    """Returns the artifact's folder; makes it from a network and noise where it is missing."""
    if not (folder / "config.json").is_file():
        from visq.data import as_dataset

        images = as_dataset([(image, 0) for image in noise(model, 2).numpy()], model.card.preprocess, split="calib")
        print(f"calibrating {recipe} on noise into {folder}", flush=True)
        quantize(model, quick(get_recipe(recipe)), images, out=folder, check=False)
    return folder


def ladder(artifact: Path) -> Path:
    """Returns the artifact with a ladder, which lies beside the other."""
    return prepared(artifact.with_name(f"{artifact.name}-ladder"), network(), LADDER)


# --- bits


def same(engine: CudaEngine, oracle: Oracle, images: np.ndarray) -> dict[str, Any]:
    """Returns how many images and tensors have the oracle's bits."""
    expected = oracle(images)
    found = engine(images)
    tensors = engine.tensors if engine.separate_memory else {}
    wrong = [name for name in tensors if not np.array_equal(tensors[name], oracle.tensors[name])]
    return {"equal": bool(np.array_equal(found, expected)) and not wrong, "wrong_tensors": wrong[:5]}


def small_programs() -> dict[str, Any]:
    found = {}
    for name, maker, output in programs(DRY):
        program = maker.program(output)
        engine = CudaEngine(program, maker.bundle, separate_memory=True)
        found[name] = same(engine, Oracle(program, maker.bundle), maker.images(2))
    return {"all_equal": all(row["equal"] for row in found.values()), "programs": found}


def whole_network(artifact: Path, model: Any) -> dict[str, Any]:
    """Compares the engine with the oracle on one image, and with the C++ engine on more where there is one."""
    bundle = read_bundle(artifact)
    program = bundle.config.program
    assert program is not None
    images = noise(model, 2 if DRY else 48).numpy()  # scans have one kernel for few images and one for many
    engine = CudaEngine(program, bundle)
    first = same(CudaEngine(program, bundle, separate_memory=True), Oracle(program, bundle), images[:1])
    found = {"oracle": first, "kernels_a_forward": engine.kernels, "bytes_an_image": engine.bytes_an_image}
    if available():
        expected = CpuEngine(program, bundle)(images)
        found["cpp"] = [bool(np.array_equal(engine(images[:n]), expected[:n])) for n in sorted({1, 2, len(images)})]
    return found


def attention_network(artifact: Path) -> dict[str, Any]:
    """Compares a MambaVision, whose artifact lies beside the other network's."""
    model = network(attention=True)
    return whole_network(prepared(artifact.with_name(f"{artifact.name}-attention"), model), model)


# --- speed


def milliseconds(calls: list[Callable[[], object]], seconds: float) -> dict[str, float]:
    """Returns the median and 90th percentile of calls that take turns, after 3 turns to warm up."""
    for _ in range(1 if DRY else 3):
        for call in calls:
            call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < (1 if DRY else 20) or (time.perf_counter() < end and len(times) < 2000):
        call = calls[len(times) % len(calls)]
        if DRY:
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
            continue
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        call()
        after.record()
        torch.cuda.synchronize()
        times.append(before.elapsed_time(after))
    return {"median": statistics.median(times), "p90": float(np.quantile(times, 0.9)), "calls": len(times)}


def sqnr(found: torch.Tensor, exact: torch.Tensor) -> float:
    error = (found.double() - exact.double()).square().sum().item()
    return math.inf if error == 0 else 10 * math.log10(exact.double().square().sum().item() / error)


def captured(
    run: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Returns a graph of `run`, the input it reads and the output it writes."""
    given = images.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run(given)
    return graph, given, output


@torch.library.custom_op("gpu_check::scan", mutates_args=())
def half_scan(u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    return scan_kernel.forward(ScanInputs(u, delta, A, B, C))


@half_scan.register_fake
def _(u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    return u.new_empty(u.shape)


class HalfScan(nn.Module):
    """The Triton kernel of the scan on half precision, which the op itself refuses."""

    def __init__(self, scan: SelectiveScan) -> None:
        super().__init__()
        self.softplus = scan.softplus

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return half_scan(*inputs)


class HalfConv(nn.Module):
    """The causal convolution as shifted products, which torch.compile joins with what follows."""

    def __init__(self, conv: CausalConv1d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        taps, total = self.weight.shape[2], self.bias
        padded = nn.functional.pad(x, (0, 0, taps - 1, 0))
        for k in range(taps):
            total = total + padded[:, k : k + x.shape[1]] * self.weight[:, 0, k]
        return total


def in_half(device: torch.device, half: torch.dtype) -> Any:
    """Returns the network in half precision, with its norms in float32."""
    model = network().to(device, half)
    for name, module in list(model.named_modules()):
        owner, _, last = name.rpartition(".")
        if isinstance(module, CausalConv1d):
            setattr(model.get_submodule(owner), last, HalfConv(module))
        elif isinstance(module, SelectiveScan):
            setattr(model.get_submodule(owner), last, HalfScan(module))
        elif last.startswith("norm"):
            module.float().register_forward_hook(lambda module, given, output: output.to(half))
    return model


def float_contenders(device: torch.device) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Returns the network in half precision, eager and with every block compiled; scans are visq's Triton kernels."""
    half = torch.bfloat16 if DRY else torch.float16
    eager = in_half(device, half)
    found = {"eager fp16": lambda images: eager(images.to(half))}
    if not DRY:
        compiled = in_half(device, half)
        block = torch.compile(type(compiled.layers[0]).forward, dynamic=False)
        for layer in compiled.layers:
            layer.forward = block.__get__(layer)
        found["compile fp16"] = lambda images: compiled(images.to(half))
    return found


def loaded(artifact: Path) -> CudaEngine:
    bundle = read_bundle(artifact)
    assert bundle.config.program is not None
    return CudaEngine(bundle.config.program, bundle)


def speed(artifact: Path, seconds: float) -> dict[str, Any]:
    """Times the engine beside PyTorch; all read images that are on the GPU."""
    engines = {"visq engine": loaded(artifact), "visq engine, ladder": loaded(ladder(artifact))}
    engine = engines["visq engine"]
    exact = undeploy(network()).to(engine.device)
    for _, site in named_sites(exact):
        site.quantizer = None
    others = float_contenders(engine.device)
    rows: list[dict[str, Any]] = []
    for batch in BATCHES:
        inputs = [noise(exact, batch, seed).to(engine.device) for seed in range(ROTATED)]
        expected = exact(inputs[0])
        runs: dict[str, list[Callable[[], object]]] = {}
        agreement = {}

        def add(name: str, run: Callable[[torch.Tensor], torch.Tensor], inputs: Any = inputs, runs: Any = runs) -> None:
            runs[name] = [lambda x=x: run(x) for x in inputs]

        for name, ours in engines.items():
            agreement[name] = sqnr(torch.from_numpy(ours(inputs[0].cpu().numpy())), expected.cpu())
            add(name, ours.on_device)
        for name, run in others.items():
            with attempted(rows, {"contender": name, "batch": batch}):
                agreement[name] = sqnr(run(inputs[0]).float(), expected)
                add(name, run)
                if not DRY:
                    graph, given, output = captured(run, inputs[0])

                    def replay(x: torch.Tensor, graph: Any = graph, given: torch.Tensor = given) -> None:
                        given.copy_(x)
                        graph.replay()

                    replay(inputs[0])
                    torch.cuda.synchronize()
                    graphed = f"{name} + graph"
                    agreement[graphed] = sqnr(output.float(), expected)
                    add(graphed, replay)  # type: ignore[arg-type]
        for name, calls in runs.items():
            if not DRY:
                torch.cuda.reset_peak_memory_stats()
            took = milliseconds(calls, seconds / len(BATCHES) / len(runs))
            peak = 0 if DRY else torch.cuda.max_memory_allocated()
            rows.append(
                {
                    "contender": name,
                    "batch": batch,
                    "ms": took,
                    "images_per_second": 1e3 * batch / took["median"],
                    "sqnr_db_to_fp32": agreement[name],
                    "peak_bytes": peak,
                }
            )
            print(f"batch {batch}, {name}: {took['median']:.3f} ms", flush=True)
    profile = {
        f"{name}, batch {batch}": ours.profile(noise(exact, batch).numpy(), 1 if DRY else 10)
        for name, ours in engines.items()
        for batch in (BATCHES[0], BATCHES[-1])
    }
    return {"rows": rows, "profile_ms_an_image": profile}


def cpu_threads(artifact: Path, seconds: float) -> dict[str, Any]:
    """Times the C++ engine by its number of threads."""
    if not available():
        return {"skipped": "the C++ extension is not installed"}
    bundle, model = read_bundle(artifact), network()
    assert bundle.config.program is not None
    rows = []
    threads = [n for n in THREADS if n <= (os.cpu_count() or 1)]
    for batch in (1, 4 if DRY else 32):
        images = noise(model, batch).numpy()
        for count in threads:
            engine = CpuEngine(bundle.config.program, bundle, threads=count)
            engine(images)
            times = []
            end = time.perf_counter() + seconds / 2 / len(threads)
            while len(times) < 3 or time.perf_counter() < end:
                start = time.perf_counter()
                engine(images)
                times.append(1e3 * (time.perf_counter() - start) / batch)
            rows.append(
                {"isa": engine_isa(), "batch": batch, "threads": count, "ms_an_image": statistics.median(times)}
            )
    return {"rows": rows}


def sanitized(seconds: float) -> dict[str, Any]:
    """Runs the small programs under compute-sanitizer, where it is installed."""
    tool = shutil.which("compute-sanitizer")
    if DRY or tool is None:
        return {"skipped": "no GPU" if DRY else "compute-sanitizer is not installed"}
    found = {}
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, __file__, "--only-programs"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds / 2, check=False)
            found[check] = {"code": done.returncode, "end": done.stdout[-400:]}
        except subprocess.TimeoutExpired:
            found[check] = {"code": None, "end": f"not done in {seconds / 2:.0f} s"}
    return found


# --- the whole


@contextlib.contextmanager
def attempted(errors: list[dict[str, Any]], what: dict[str, Any]) -> Iterator[None]:
    """Notes an error and goes on."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        errors.append({**what, "error": f"{type(error).__name__}: {str(error)[:500]}"})


def where() -> dict[str, Any]:
    import triton

    card = "none: dry run in Triton's interpreter" if DRY else torch.cuda.get_device_name()
    return {
        "dry_run": DRY,
        "card": card,
        "capability": None if DRY else torch.cuda.get_device_capability(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "kernels": {op: choice.kernel for op, choice in backends.describe("cpu" if DRY else "cuda").items()},
    }


def table(result: dict[str, Any]) -> str:
    """Returns the lines that are printed last."""
    place = result["where"]
    bits, network_bits = result.get("small_programs", {}), result.get("whole_network", {})
    attention_bits, ladder_bits = (result.get(name, {}) for name in ("attention_network", "ladder_network"))
    lines = [
        "",
        ("DRY RUN, times mean nothing. " if DRY else "") + f"{place['card']}, torch {place['torch']}, {RECIPE}",
        f"bits of small programs equal the oracle's: {bits.get('all_equal', bits)}",
        f"bits of the network: {network_bits}",
        f"bits of the network with a ladder: {ladder_bits}",
        f"bits of a MambaVision: {attention_bits}",
        f"{'batch':>5}  {'contender':<22}{'ms':>10}{'p90':>10}{'images/s':>11}{'dB to fp32':>12}{'peak MiB':>10}",
    ]
    for row in result.get("speed", {}).get("rows", []):
        if "error" in row:
            lines.append(f"{row['batch']:>5}  {row['contender']:<22}{row['error'][:80]}")
            continue
        numbers = f"{row['ms']['median']:>10.3f}{row['ms']['p90']:>10.3f}{row['images_per_second']:>11.0f}"
        rest = f"{row['sqnr_db_to_fp32']:>12.1f}{row['peak_bytes'] / 2**20:>10.0f}"
        lines.append(f"{row['batch']:>5}  {row['contender']:<22}{numbers}{rest}")
    for name, kinds in result.get("speed", {}).get("profile_ms_an_image", {}).items():
        parts = ", ".join(f"{kind} {ms:.4f}" for kind, ms in sorted(kinds.items(), key=lambda item: -item[1]))
        lines.append(f"profile, {name}, ms an image: {parts or 'none without a GPU'}")
    for row in result.get("cpu_threads", {}).get("rows", []):
        lines.append(
            f"CPU engine, {row['isa']}, batch {row['batch']}, {row['threads']} threads: "
            f"{row['ms_an_image']:.2f} ms an image"
        )
    lines += [
        f"{name}: {result[name]['skipped']}"
        for name in ("cpu_threads", "sanitizer")
        if "skipped" in result.get(name, {})
    ]
    lines += [f"FAILED {row['part']}: {row['error']}" for row in result["errors"]]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=FOLDER / "result.json")
    parser.add_argument("--artifact", type=Path, default=FOLDER / ("tiny" if DRY else RECIPE))
    parser.add_argument("--seconds", type=float, default=8 if DRY else 450, help="for everything")
    parser.add_argument("--parts", default="", help="only these, with commas between them")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--only-programs", action="store_true")
    options = parser.parse_args()
    if options.prepare:
        prepared(FOLDER / RECIPE, network(full=True))
        prepared(FOLDER / f"{RECIPE}-ladder", network(full=True), LADDER)
        prepared(FOLDER / f"{RECIPE}-attention", network(full=True, attention=True))
        return 0
    if options.only_programs:
        return 0 if small_programs()["all_equal"] else 1
    begin = time.perf_counter()
    result: dict[str, Any] = {"where": where(), "errors": []}

    def left() -> float:
        return max(options.seconds - (time.perf_counter() - begin), 10)

    def part(name: str, run: Callable[[], dict[str, Any]]) -> None:
        if options.parts and name not in options.parts.split(","):
            return
        start = time.perf_counter()
        with attempted(result["errors"], {"part": name}):
            result[name] = run()
            result[name]["seconds"] = round(time.perf_counter() - start, 1)
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.json.with_suffix(".new")
        temporary.write_text(json.dumps(result, indent=1, default=str))
        temporary.replace(options.json)

    with torch.no_grad():
        artifact = prepared(options.artifact, network())
        part("small_programs", small_programs)
        part("whole_network", lambda: whole_network(artifact, network()))
        part("ladder_network", lambda: whole_network(ladder(artifact), network()))
        part("speed", lambda: speed(artifact, min(0.3 * options.seconds, 0.5 * left())))
        part("attention_network", lambda: attention_network(options.artifact))
        part("cpu_threads", lambda: cpu_threads(artifact, min(0.1 * options.seconds, 0.5 * left())))
        part("sanitizer", lambda: sanitized(left()))
    print(table(result))
    unequal = [
        not result.get("small_programs", {}).get("all_equal", True),
        *(
            not result.get(name, {}).get("oracle", {}).get("equal", True)
            for name in ("whole_network", "ladder_network", "attention_network")
        ),
    ]
    failed = any("error" in row for row in result.get("speed", {}).get("rows", []))
    return 1 if any(unequal) or failed or result["errors"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
