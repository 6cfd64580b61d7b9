"""What the engine's threads do to others: a forked child, a busy processor."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.csrc.network import engine, images
from visq.native import extension

pytestmark = pytest.mark.skipif(not extension.available(), reason="needs the C++ extension")

#: Forks while another thread predicts. Prints how many children gave the right bits and how many did not end.
FORKS = """
import os, sys, threading, time
import numpy as np
from tests.csrc.network import engine, images

network = engine(2)
x = images(network, 16)
expected = network(x)
stop = threading.Event()

def predict():
    while not stop.is_set():
        network(x)

thread = threading.Thread(target=predict)
thread.start()
right = hanging = 0
for attempt in range(8):
    time.sleep(0.003 * attempt)
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(network(x[:3]), expected[:3]) else 1)
    end = time.monotonic() + 60
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.01)
    if found == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
        hanging += 1
        break
    right += found[1] == 0
stop.set()
thread.join()
print(right, hanging)
"""


def test_a_child_forked_while_another_thread_predicts_can_predict() -> None:
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", FORKS], cwd=root, env=env, capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == ["8", "0"], done.stderr


def fastest(threads: int, turns: int = 5) -> float:
    """Seconds that the fastest of several runs of a network took."""
    network = engine(threads, layers=12)
    x = images(network, 1)
    expected, times = engine(1, layers=12)(x), []
    for _ in range(turns):
        start = time.perf_counter()
        found = network(x)
        times.append(time.perf_counter() - start)
        assert np.array_equal(found, expected)
    return min(times)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs the affinity of Linux")
def test_two_threads_on_one_processor_are_not_ten_times_slower_than_one() -> None:
    """A thread that waits lets the other one work: phases follow each other every few microseconds."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert fastest(2) < 10 * fastest(1)
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_the_engine_refuses_a_number_of_threads_by_name(threads: int) -> None:
    network = engine(1)
    x = images(network, 1)
    with pytest.raises(ValueError, match=f"threads is {threads}, not between 1 and 1024"):
        network._engine.run(x, np.empty_like(network(x)), threads)
