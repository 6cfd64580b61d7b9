"""Images a second and latency of an engine that many threads ask for single images, with and without batching.

    python benchmarks/bench_batching.py ARTIFACT [--threads 2] [--seconds 5] [--out results/bench_batching.json]

Each caller submits an image and waits for its logits, again and again. Without batching, callers take turns.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import visq
from common import machine, write_json
from visq.integer.arithmetic import Floats

CALLERS = (1, 8, 64)


def measure(ask: Callable[[Floats], object], image: Floats, callers: int, seconds: float) -> dict[str, float]:
    """Returns images a second, and percentiles 50 and 99 of the time from submission to result [ms]."""
    ends = time.perf_counter() + 0.5 + seconds
    begins = ends - seconds
    times: list[list[float]] = [[] for _ in range(callers)]

    def call(own: list[float]) -> None:
        while (start := time.perf_counter()) < ends or not own:  # a busy machine may end no call in time
            ask(image)
            if start >= begins:
                own.append(time.perf_counter() - start)

    threads = [threading.Thread(target=call, args=(own,)) for own in times]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found, seconds = np.concatenate(times), time.perf_counter() - begins
    half, most = 1e3 * np.percentile(found, [50, 99])
    return {"images_per_second": len(found) / seconds, "p50_ms": float(half), "p99_ms": float(most)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    engine = visq.load(args.artifact, backend="int", threads=args.threads)
    program, one_by_one = engine.program, threading.Lock()
    shape = (program.channels, program.size, program.size)
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def alone(image: Floats) -> None:
        with one_by_one:
            engine(image[None])

    rows = []
    for callers in CALLERS:
        rows.append({"callers": callers, "how": "in turn", **measure(alone, image, callers, args.seconds)})
        with engine.batching(batch=args.batch, delay=args.delay) as requests:
            found = measure(lambda image: requests.submit(image).result(), image, callers, args.seconds)
        rows.append({"callers": callers, "how": f"batches of {args.batch}, {1e3 * args.delay:g} ms", **found})
    print("| callers | how | images/s | p50 ms | p99 ms |\n|---|---|---|---|---|")
    for row in rows:
        values = (f"{row[key]:.1f}" for key in ("images_per_second", "p50_ms", "p99_ms"))
        print(f"| {row['callers']} | {row['how']} | {' | '.join(values)} |")
    if args.out is not None:
        write_json(
            args.out, {"artifact": args.artifact.name, "threads": args.threads, "machine": machine(), "rows": rows}
        )


if __name__ == "__main__":
    main()
