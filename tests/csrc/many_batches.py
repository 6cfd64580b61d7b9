"""Runs many batches on several threads, from several Python threads: for ThreadSanitizer (`make sanitize`).

Prints what it ran. Ends with an error where bits differ, or where the sanitized build was asked for and not loaded.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import partial

import numpy as np

from tests.csrc.network import engine, images
from visq import _C
from visq.native.extension import engine_isas


def main() -> None:
    wanted = os.environ.get("VISQ_SANITIZED", "")
    if not str(_C.__file__).startswith(wanted):
        sys.exit(f"{_C.__file__} is not the build in {wanted}")
    runs = 0
    for isa in (engine_isas()[0], "scalar"):
        make = partial(engine, isa=isa, layers=2, rows=48, width=32)
        x = images(make(1), 5)
        expected = make(1)(x)
        for threads in (2, 4):
            network = make(threads)  # two Python threads share it: their calls take turns
            wrong: list[int] = []

            def repeat(network=network, expected=expected, wrong=wrong, x=x) -> None:  # type: ignore[no-untyped-def]
                for turn in range(10):
                    batch = turn % 5 + 1
                    if not np.array_equal(network(x[:batch]), expected[:batch]):
                        wrong.append(batch)

            callers = [threading.Thread(target=repeat) for _ in range(2)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            if wrong:
                sys.exit(f"{isa}, {threads} threads: other bits with batches of {sorted(set(wrong))}")
            runs += 20
    print(f"{runs} batches on 2 to 4 threads, all with the bits of one thread")


if __name__ == "__main__":
    main()
