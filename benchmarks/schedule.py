"""Simulates the engine's schedule on more threads than this machine has: the speed-up of one image and of a batch.

    python benchmarks/schedule.py [--model vim_tiny] [--recipe visq-w8a8-fused] [--artifact DIR] [--rounds 60]
                                  [--batch 64] [--handoff 0.15] [--json schedule.json]

Runs one image on one thread and takes the least time of every phase. Then it plays the schedule of csrc/run/run.cpp:
a phase starts when the last task of the one before has ended; a free thread takes the next task; taking one moves a
cache line, so that tasks are handed out one after the other, `--handoff` microseconds each. Tasks of a phase take
equally long. A batch gives each thread whole images as long as there is one for every thread; all work together on the
rest.

It leaves out what threads do to each other's caches and memory, and clocks that fall when more cores work: speed-ups
are upper bounds of what a machine will show. `bound` says which phases keep one image from `threads` times its speed.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench_recipes import artifact
from visq.runtime.bundle import read_bundle
from visq.runtime.cpu.engine import CpuEngine

THREADS = (1, 2, 4, 6, 8, 12, 16)


def makespan(tasks: int, seconds: float, threads: int, handoff: float) -> float:
    """Returns when the last of equal tasks ends that take `seconds` in all."""
    each = seconds / tasks
    free = [0.0] * min(threads, tasks)
    last_handed = 0.0
    for _ in range(tasks):
        last_handed = max(heapq.heappop(free), last_handed) + handoff
        heapq.heappush(free, last_handed + each)
    return max(free)


def one_image(phases: list[tuple[str, int, float]], threads: int, handoff: float) -> float:
    """Returns the seconds of one image. A single thread takes its tasks without handing them over."""
    if threads == 1:
        return sum(seconds for _, _, seconds in phases)
    return sum(makespan(tasks, seconds, threads, handoff) for _, tasks, seconds in phases)


def measured(engine: CpuEngine, rounds: int) -> list[float]:
    """Returns the least seconds of every phase on one thread, over `rounds` runs of an image."""
    program = engine.program
    image = np.random.default_rng(0).normal(size=(1, program.channels, program.height, program.width))
    image = image.astype(np.float32)
    least: list[float] = []
    for index in range(rounds + 3):
        engine.enable_profile()
        engine(image)
        found = [seconds for _, _, seconds in engine.phase_times(1)]
        if index >= 3:  # the first ones warm up
            least = [min(pair) for pair in zip(least, found, strict=True)] if least else found
    return least


def simulate(engine: CpuEngine, least: list[float], batch: int, handoff: float) -> list[dict[str, Any]]:
    """Returns a row for each number of threads."""
    rows = []
    alone = sum(least)
    for threads in THREADS:
        tasks = [(kind, tasks) for kind, tasks, _ in engine.phase_times(threads)]
        phases = [(kind, tasks, seconds) for (kind, tasks), seconds in zip(tasks, least, strict=True)]
        single = one_image(phases, threads, handoff)
        whole = batch // threads * threads
        together = whole // threads * alone + (batch - whole) * single
        lost: dict[str, float] = defaultdict(float)
        for kind, count, seconds in phases:
            lost[kind] += one_image([(kind, count, seconds)], threads, handoff) - seconds / threads
        rows.append(
            {
                "threads": threads,
                "one_image_ms": round(1e3 * single, 3),
                "one_image_speedup": round(alone / single, 2),
                "batch_speedup": round(batch * alone / together, 2),
                "bound": {kind: round(1e3 * value, 3) for kind, value in sorted(lost.items(), key=lambda x: -x[1])},
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vim_tiny")
    parser.add_argument("--recipe", default="visq-w8a8-fused")
    parser.add_argument("--artifact", type=Path, help="instead of a network with random weights")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--handoff", type=float, default=0.15, help="microseconds")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as room:
        bundle = read_bundle(args.artifact or artifact(args.model, args.recipe, Path(room)))
        assert bundle.config.program is not None
        engine = CpuEngine(bundle.config.program, bundle, threads=1)
    least = measured(engine, args.rounds)
    rows = simulate(engine, least, args.batch, 1e-6 * args.handoff)
    print(f"{len(least)} phases, {1e3 * sum(least):.2f} ms on one thread")
    print("threads  one image, ms  speed-up  batch's speed-up  ms lost by kind of phase")
    for row in rows:
        lost = ", ".join(f"{kind} {value}" for kind, value in list(row["bound"].items())[:3])
        one, batch = row["one_image_speedup"], row["batch_speedup"]
        print(f"{row['threads']:7}  {row['one_image_ms']:13}  {one:8}  {batch:16}  {lost}")
    if args.json:
        about = {
            "artifact": str(args.artifact.name if args.artifact else f"{args.model}, {args.recipe}, random weights"),
            "isa": engine.isa,
            "phases": len(least),
            "one_thread_ms": round(1e3 * sum(least), 3),
            "batch": args.batch,
            "handoff_us": args.handoff,
            "rows": rows,
        }
        args.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
