"""How steps become kernels: what joins a phase, where barriers stand, what runs side by side."""

from __future__ import annotations

import pytest

from visq.runtime.cuda.phases import FULL, Launch, launches_of
from visq.runtime.cuda.scans import channels_of
from visq.runtime.cuda.steps import RotationStep, RowStep, ScanStep, Step
from visq.runtime.cuda.text import Place, Text


def place(name: str, rows: int = 197) -> Place:
    return Place(name, rows, 64, coded=True)


def written(reads: str, writes: str) -> tuple[Text, tuple[Place, ...], frozenset[str]]:
    """Returns a step's text, arguments and what it writes; each letter is a place."""
    text = Text()
    for name in reads + writes:
        text.place(place(name))
    text.line(f"pass  # {len(reads)} {len(writes)}")
    return text, tuple(place(name) for name in reads + writes), frozenset(writes)


def rows(reads: str, writes: str, elsewhere: str = "", count: int = 197, multiplies: bool = True) -> RowStep:
    text, arguments, stored = written(reads, writes)
    return RowStep(writes, "linear", arguments, stored, text, count, 768, frozenset(elsewhere), multiplies)


def scan(reads: str, writes: str, width: int = 384, states: int = 16) -> ScanStep:
    text, arguments, stored = written(reads, writes)
    return ScanStep(writes, "scan", arguments, stored, ((text, channels_of(states, width)),), 197, width)


def lanes(reads: str, writes: str) -> ScanStep:
    """Returns a scan with a function for many images and one for few."""
    texts = [written(reads, writes)[0] for _ in range(2)]
    texts[1].line("pass  # for few images")
    _, arguments, stored = written(reads, writes)
    return ScanStep(writes, "scan", arguments, stored, ((texts[0], 32), (texts[1], 8)), 197, 384)


def names(launches: list[Launch]) -> list[str]:
    """Returns the places of each launch, as letters."""
    return ["".join(x.name for x in launch.arguments if isinstance(x, Place)) for launch in launches]


def barriers(launch: Launch) -> list[str]:
    """Returns the body of a kernel, a word a line."""
    body = launch.kernel.partition("def kernel(")[2].splitlines()[1:]
    return [line.split("(")[0].strip() for line in body]


def test_a_chain_is_one_kernel_with_barriers_where_it_reads_itself() -> None:
    (launch,) = launches_of([rows("a", "b"), rows("b", "c"), rows("b", "d"), rows("cd", "e")])
    assert barriers(launch) == ["step_0", "tl.debug_barrier", "step_0", "step_0", "tl.debug_barrier", "step_1"]
    assert launch.kernel.count("@triton.jit") == 2  # three equal steps are one function
    assert launch.shape(1) == ((13, 1), {"ROWS": 16, **dict.fromkeys(("B0", "B1", "B2", "B3"), 64)})
    assert launch.shape(128)[0] == (788, 1) and launch.shape(128)[1]["ROWS"] == 32


def test_other_rows_end_a_phase() -> None:
    steps: list[Step] = [rows("a", "b"), rows("b", "c", elsewhere="b"), rows("c", "d"), rows("d", "e", count=1)]
    assert names(launches_of(steps)) == ["ab", "bcd", "de"]
    steps = [rows("ab", "c", elsewhere="a")]  # nobody wrote it in this phase
    assert names(launches_of([rows("x", "b"), *steps])) == ["xbac"]


def test_chains_and_scans_run_side_by_side() -> None:
    steps: list[Step] = [rows("a", "b"), rows("b", "c"), rows("a", "p"), rows("p", "q")]
    steps += [scan("bc", "d"), rows("d", "e", elsewhere="d"), scan("pq", "r"), rows("er", "f")]
    phase, scans, last = launches_of(steps)
    assert names([phase, scans, last]) == ["abcpq", "bcdpqr", "derf"]
    joined = barriers(launches_of(steps[:2])[0])
    assert barriers(phase) == ["if tl.program_id", *joined, "else:", "step_0", "tl.debug_barrier", "step_0"]
    assert phase.shape(2)[0][1] == 2 and scans.shape(2)[0] == (2, 24, 2)


def test_scans_that_differ_or_wait_do_not_join() -> None:
    assert len(launches_of([scan("a", "b"), scan("a", "c", width=96)])) == 2
    assert len(launches_of([scan("a", "b"), scan("b", "c")])) == 2


def test_a_scan_for_few_images_and_for_many() -> None:
    (launch,) = launches_of([lanes("a", "b"), lanes("c", "d")])
    few, many = FULL // 24 - 1, FULL // 24 + 1
    assert launch.shape(few) == ((few, 48, 2), {"BLOCK": 8, "FEW": 1})
    assert launch.shape(many) == ((many, 12, 2), {"BLOCK": 32, "FEW": 0})
    assert barriers(launch)[1:5] == ["if FEW:", "step_0", "else:", "step_1"]
    assert len(launches_of([lanes("a", "b"), scan("c", "d")])) == 2


@pytest.mark.parametrize(("states", "block"), [(1, 64), (5, 32), (16, 16), (24, 8), (200, 2)])
def test_blocks_of_a_scan_are_powers_of_two(states: int, block: int) -> None:
    (launch,) = launches_of([scan("a", "b", states=states)])
    assert launch.shape(3) == ((3, 384 // block, 1), {"BLOCK": block})


def test_a_rotation_stands_alone() -> None:
    turn = RotationStep("r", "rotation", (place("b"), place("c")), frozenset("c"), 197, 64, 4)
    launches = launches_of([rows("a", "b"), turn, rows("c", "d")])
    assert names(launches) == ["ab", "bc", "cd"] and launches[1].kernel == "butterflies"
