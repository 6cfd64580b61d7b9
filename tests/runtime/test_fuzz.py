"""Checks that oracle, engine and simulation agree on changed artifacts with fitting hashes.

All refuse such an artifact with one clear error, or all run it with the same bits.
"""

from __future__ import annotations

import contextlib
import random
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import visq
from tests.runtime.mutants import Artifact, mutate
from visq.artifact import load
from visq.errors import VisqError
from visq.models import create_model
from visq.native.extension import available
from visq.runtime.engine import Engine

GEOMETRY: dict[str, dict[str, Any]] = {
    "vim": {"patch_size": 14, "stride": 14, "embed_dim": 16, "depth": 1, "d_state": 3},
    "vmamba": {"embed_dim": 8, "depths": [1], "mlp_ratio": 1},
    "mambavision": {
        **{"stem_dim": 4, "embed_dim": 4, "depths": [1, 1, 2, 2], "num_heads": [2, 2], "windows": [1, 1]},
        **{"mlp_ratio": 1, "d_state": 2, "norm": "folded"},
    },
    "localvim": {"patch_size": 14, "embed_dim": 8, "depth": 1, "d_state": 2, "directions": ["h w2_flip"], "reduced": 2},
}
#: Networks and recipes that together have every scope and every form of products and scans.
CASES = [
    ("vim", "kscaled-w4a4"),
    ("vim", "minmax-w8a8-linear"),
    ("vim", "kscaled-w4a4-paper"),
    ("vim", "visq-rotated-w4a4-fused"),
    ("vmamba", "kscaled-w4a4"),
    ("vmamba", "minmax-w8a8-linear"),
    ("vmamba", "kscaled-w8a8-paper"),
    ("vmamba", "visq-w8a8-fused"),
    ("mambavision", "minmax-w8a8-full"),
    ("localvim", "minmax-w8a8-linear"),
]
#: Numbers of mutants of the normal run and of the slow run, over all cases.
USUAL, MANY = 300, 50_000
#: Seconds of processor time, and bytes beyond the process's present size, that a mutant may take.
SECONDS, MEMORY = 20, 3 << 30
#: Seconds on the clock after which a mutant hangs; far more than SECONDS, because other people use the machine too.
HANGS = 600
#: Words of errors that only the simulation can find: they need the network, which the engine does not have.
OF_THE_NETWORK = (
    "program is not that of the network",
    "coverage is not that of its sites",
    "architecture.family",
    "architecture.geometry: missing or unknown",  # its keys are the family's
    "matches no site of this model",  # the sites that a recipe skips are not in the artifact
    "targeted sites without a quantizer",  # for the same reason
)

Outcome = np.ndarray | VisqError


@pytest.fixture(scope="module", params=range(len(CASES)), ids=["-".join(case) for case in CASES])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Artifact]:
    """Returns the number of a case and its quantized artifact."""
    torch.manual_seed(0)
    name, recipe = CASES[request.param]
    model = create_model(name, image_size=28, channels=1, num_classes=10, **GEOMETRY[name])
    model.card = visq.load_model("vim_nano_fmnist").card
    folder = tmp_path_factory.mktemp("fuzz") / "a"
    visq.quantize(model, recipe, "fashion-mnist", samples=2, out=folder)
    return request.param, Artifact.read(folder)


def executors(folder: Path, images: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """Returns, by name, functions that load and run an artifact: oracle, simulation and engine."""
    found = {
        "oracle": lambda: Engine(folder, kernel="oracle")(images),
        "simulation": lambda: load(folder)(torch.from_numpy(images)).numpy(),
    }
    return found | ({"engine": lambda: Engine(folder, threads=1)(images)} if available() else {})


def outcome(run: Callable[[], np.ndarray]) -> Outcome:
    """Returns the logits, or the VisqError that refused the artifact; any other exception is a failure."""
    try:
        with torch.no_grad(), np.errstate(all="ignore"):
            return run()
    except VisqError as error:
        assert str(error) and "\n" not in str(error)
        return error


def verdict(found: dict[str, Outcome]) -> str:
    """Returns `refused` or `accepted` if all agree, `of the network` if only the simulation can find the fault."""
    logits = [value for value in found.values() if isinstance(value, np.ndarray)]
    same = all(np.array_equal(value, logits[0], equal_nan=True) for value in logits)
    assert same, f"the same artifact gives other bits: {found}"
    if len(logits) in (0, len(found)):
        return "accepted" if logits else "refused"
    error = found["simulation"]
    only_network = isinstance(error, VisqError) and any(words in str(error) for words in OF_THE_NETWORK)
    assert only_network and len(logits) == len(found) - 1, f"accepted by some only: {found}"
    return "of the network"


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Raises an error in a block that takes too much processor time, hangs, or takes too much memory.

    Processor time does not depend on other people's load; the clock ends what waits for ever.
    """

    def late(*_: Any) -> None:
        raise TimeoutError(f"a mutant took more than {SECONDS} s of processor time, or {HANGS} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.alarm(HANGS)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run(case: tuple[int, Artifact], folder: Path, count: int) -> Counter[str]:
    """Makes and runs `count` mutants of a case, and returns the number of mutants by verdict."""
    number, original = case
    program = original.config["program"]
    shape = (1, program["channels"], program["size"], program["size"])
    images = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    found: Counter[str] = Counter()
    for seed in range(number * MANY, number * MANY + count):
        mutant = mutate(original, seed)
        if mutant.same(original):
            continue
        mutant.write(folder, random.Random(seed))
        try:
            with limits():
                found[verdict({name: outcome(run) for name, run in executors(folder, images).items()})] += 1
        except Exception as error:
            raise AssertionError(f"mutant {seed} of {'-'.join(CASES[number])}: {error}") from error
    return found


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_mutants(case: tuple[int, Artifact], tmp_path: Path, one_thread: None) -> None:
    count = USUAL // len(CASES)
    found = run(case, tmp_path / "m", count)
    assert found["refused"] > count // 3 and found["accepted"] >= 1


@pytest.mark.slow
def test_many_mutants(case: tuple[int, Artifact], tmp_path: Path, one_thread: None) -> None:
    found = run(case, tmp_path / "m", MANY // len(CASES))
    print(dict(found))
    assert found["accepted"] > MANY // len(CASES) // 50
