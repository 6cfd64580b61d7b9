"""Speed of the scans at Vim-Tiny's geometry: the Python loop, torch.compile of it, and the C++ kernels.

One run; contenders take turns, so that a busy machine hurts all alike; medians. Prints a table and writes
benchmarks/results/bench_scan.json:

    python benchmarks/bench_scan.py [--threads 2] [--seconds 3] [--no-compile] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table as TextTable
from torch import Tensor

from common import machine, write_json
from visq.ops import StateRounding, quantized_scan, selective_scan
from visq.ops._scan import ScanInputs
from visq.ops.selective_scan import naive

LENGTH, D_INNER, N = 197, 384, 16
COMPILE_LIMIT = 180.0  # seconds
Run = Callable[[], object]


def inputs(batch: int) -> list[Tensor]:
    """u, delta, A, B, C with the strides a Vim block produces."""
    torch.manual_seed(0)
    u = torch.randn(batch, LENGTH, 2 * D_INNER)[..., :D_INNER]
    delta = torch.nn.functional.softplus(torch.randn(batch, LENGTH, D_INNER) - 4)
    A = -torch.arange(1.0, N + 1).expand(D_INNER, N).contiguous()
    B, C = torch.randn(batch, LENGTH, 12 + 2 * N)[..., 12:].split(N, dim=-1)
    return [u, delta, A, B, C]


def loop(u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """The selective scan as a plain loop over tokens."""
    return naive.forward(ScanInputs(u, delta, A, B, C))


def contenders(batch: int) -> dict[str, Run]:
    """What is timed, by name."""
    x = inputs(batch)
    leaves = [t.detach().requires_grad_() for t in x]
    grad_y = torch.randn(batch, LENGTH, D_INNER)

    def state(read_quantized: bool) -> StateRounding:
        step = torch.full((LENGTH,), 0.02)
        return StateRounding(step, torch.ones(D_INNER), torch.ones(N), -128, 127, read_quantized)

    read, raw = state(True), state(False)
    return {
        "Python loop, forward": lambda: loop(*x),
        "C++ fp32, forward": lambda: selective_scan(*x),
        "C++ 8-bit state, y reads hq": lambda: quantized_scan(*x, state=read),
        "C++ 8-bit state, y reads h": lambda: quantized_scan(*x, state=raw),
        "Python loop, forward + backward": lambda: torch.autograd.grad(loop(*leaves), leaves, grad_y),
        "C++ fp32, forward + backward": lambda: torch.autograd.grad(selective_scan(*leaves), leaves, grad_y),
        "C++ 8-bit state, forward + backward": lambda: torch.autograd.grad(
            quantized_scan(*leaves, state=read), leaves, grad_y
        ),
    }


def compiled_loop(batch: int) -> tuple[Run, float]:
    """torch.compile of the Python loop, and the seconds its first call took."""
    x = inputs(batch)
    function = torch.compile(loop, fullgraph=True, dynamic=False)
    start = time.perf_counter()
    function(*x)
    return lambda: function(*x), time.perf_counter() - start


def measure(runs: dict[str, Run], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each call; contenders take turns until the time is spent, at least five rounds."""
    for run in runs.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    stop = time.perf_counter() + seconds * len(runs)
    while time.perf_counter() < stop or len(next(iter(times.values()))) < 5:
        for name, run in runs.items():
            # Fast kernels get more calls a round, so that all medians rest on enough of them.
            for _ in range(1 if name.startswith(("Python", "torch.compile")) else 10):
                start = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.5, help="time for each contender and batch size")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile of the loop (minutes)")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "bench_scan.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    rows, notes = [], []
    compile_worth_it = not arguments.no_compile
    for batch in (1, 8):
        runs = contenders(batch)
        if compile_worth_it:
            try:
                runs["torch.compile of the loop, forward"], took = compiled_loop(batch)
                notes.append(f"batch {batch}: torch.compile of the loop took {took:.0f} s")
                compile_worth_it = took < COMPILE_LIMIT
            except Exception as error:  # a compiler's failure is a result here
                notes.append(f"batch {batch}: torch.compile of the loop failed: {str(error).splitlines()[0]}")
        elif not arguments.no_compile:
            notes.append(f"batch {batch}: torch.compile of the loop skipped, it took over {COMPILE_LIMIT:.0f} s before")
        for name, times in measure(runs, arguments.seconds).items():
            times.sort()
            rows.append(
                {
                    "name": name,
                    "batch": batch,
                    "threads": arguments.threads,
                    "latency_ms": {"median": statistics.median(times), "p90": times[int(0.9 * (len(times) - 1))]},
                    "calls": len(times),
                }
            )

    result = {
        "geometry": {"L": LENGTH, "d_inner": D_INNER, "N": N},
        "rows": rows,
        "notes": notes,
        "machine": machine(),
    }
    write_json(arguments.json, result)
    report(result)


def report(result: dict) -> None:
    """Prints the rows; "times" is the speed against the Python loop doing the same."""
    medians = {(row["name"], row["batch"]): row["latency_ms"]["median"] for row in result["rows"]}
    title = f"{result['machine']['processor']}, {result['machine']['threads']} threads, one direction of one layer"
    table = TextTable("scan", "batch", "median ms", "p90 ms", "times", title=title)
    for row in result["rows"]:
        loop = "Python loop, forward" + (" + backward" if "backward" in row["name"] else "")
        speed = medians[loop, row["batch"]] / row["latency_ms"]["median"]
        cells = (f"{row['latency_ms'][key]:.3f}" for key in ("median", "p90"))
        table.add_row(row["name"], str(row["batch"]), *cells, f"{speed:.1f}x")
    console = Console()
    console.print(table)
    for note in result["notes"]:
        console.print(note)


if __name__ == "__main__":
    main()
