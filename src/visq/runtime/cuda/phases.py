"""Joins steps into kernels.

Steps that read only their own rows of what steps before them write run tile by tile in one kernel: a phase. A barrier
stands where a step reads what the program's other threads have written. Chains of a phase that do not read each
other, and scans that do not read each other, run side by side, in programs of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from visq.runtime.cuda.steps import COLUMNS, AttentionStep, RotationStep, RowStep, ScanStep, Step
from visq.runtime.cuda.text import Arguments, Place, Text, power_of_two

#: Most rows of a tile. More rows or COLUMNS take all registers of a thread, as cuobjdump says of a Vim-Tiny's.
ROWS = 32
#: Programs of a scan that keep a GPU busy; from that many on, each does more with fewer instructions.
FULL = 512

#: Turns the number of images into a kernel's grid and compile-time parameters.
Shape = Callable[[int], tuple[tuple[int, ...], dict[str, int]]]


@dataclass(frozen=True)
class Launch:
    """Holds a kernel and what it runs on.

    Attributes:
        name: the first of its operations, for errors.
        kind: the kinds of its steps, for profiles.
        kernel: the text of a generated kernel, or the name of a function in `kernels`.
        arguments: places and parameters, in order.
        rows: rows of an image that the kernel computes; None where it takes no number of rows.
        warps: warps of a program.
    """

    name: str
    kind: str
    kernel: str
    arguments: tuple[Place | np.ndarray, ...]
    rows: int | None
    shape: Shape
    warps: int = 4

    def without_values(self) -> Launch:
        """Returns the launch without its parameters, once they are on the device."""
        return replace(self, arguments=())


def launches_of(steps: Sequence[Step]) -> list[Launch]:
    """Returns the launches that run steps, in order."""
    groups: list[list[Step]] = []
    for step in steps:
        home = _home(groups, step)
        if home is None:
            groups.append([step])
        else:
            home.append(step)
    return [_launch(group) for group in groups]


def _home(groups: list[list[Step]], step: Step) -> list[Step] | None:
    """Returns the group that a step joins: the last one, or the one before if the step reads nothing of the last."""
    for group in groups[:-3:-1]:
        if _joins(group, step):
            return group
        if step.reads & _writes(group):
            return None
    return None


def _joins(group: list[Step], step: Step) -> bool:
    first = group[0]
    if isinstance(first, RowStep) and isinstance(step, RowStep):
        return first.rows == step.rows and not step.elsewhere & _writes(group)
    if isinstance(first, ScanStep) and isinstance(step, ScanStep):
        channels = [[n for _, n in x.programs] for x in (first, step)]
        same = (first.rows, first.width) == (step.rows, step.width) and channels[0] == channels[1]
        return same and not step.reads & _writes(group)
    return False


def _writes(group: Sequence[Step]) -> frozenset[str]:
    return frozenset().union(*(step.writes for step in group))


def _launch(group: list[Step]) -> Launch:
    first = group[0]
    kind = "+".join(dict.fromkeys(step.kind for step in group))
    if isinstance(first, RotationStep):
        return _butterflies(first)
    if isinstance(first, AttentionStep):
        return _attention(first)
    if isinstance(first, ScanStep):
        return _scans(kind, [step for step in group if isinstance(step, ScanStep)])
    return _phase(kind, [step for step in group if isinstance(step, RowStep)])


def _butterflies(step: RotationStep) -> Launch:
    width, order, rows = step.width, step.order, step.rows
    sizes = {"W": width, "ORDER": order, "RUNS": width // order, "WIDE": power_of_two(order)}
    return Launch(step.name, step.kind, "butterflies", step.arguments, None, lambda b: ((b * rows,), sizes), warps=1)


def _attention(step: AttentionStep) -> Launch:
    kernel = _Kernel("")
    kernel.call(step.text, step.arguments, "M", "M")
    grid, arguments = step.tiles, tuple(kernel.arguments.values)
    return Launch(
        step.name, step.kind, kernel.text(), arguments, step.rows, lambda b: ((b * grid, step.heads), {}), step.warps
    )


def _scans(kind: str, steps: list[ScanStep]) -> Launch:
    first = steps[0]
    blocks = [channels for _, channels in first.programs]
    several = len(blocks) > 1
    kernel = _Kernel("BLOCK: tl.constexpr" + (", FEW: tl.constexpr" if several else ""))
    for index, step in enumerate(steps):
        kernel.side(2, index, len(steps))
        texts = [text for text, _ in step.programs]
        for test, text in zip(("if FEW:", "else:"), reversed(texts), strict=True) if several else [("", texts[0])]:
            with kernel.inside(test):
                kernel.call(text, text.arguments, "M, BLOCK: tl.constexpr", "M, BLOCK")

    def shape(batch: int) -> tuple[tuple[int, ...], dict[str, int]]:
        few = several and batch * -(-first.width // blocks[0]) * len(steps) < FULL
        block = blocks[few]
        grid = (batch, -(-first.width // block), len(steps))
        return grid, {"BLOCK": block, **({"FEW": int(few)} if several else {})}

    return Launch(first.name, kind, kernel.text(), tuple(kernel.arguments.values), first.rows, shape, warps=1)


def _phase(kind: str, steps: list[RowStep]) -> Launch:
    chains = _chains(steps)
    blocks = {id(step): f"B{index}" for index, step in enumerate(step for chain in chains for step in chain)}
    kernel = _Kernel(", ".join(["ROWS: tl.constexpr", *(f"{name}: tl.constexpr" for name in blocks.values())]))
    for index, chain in enumerate(chains):
        kernel.side(1, index, len(chains))
        fresh: set[str] = set()  # written since the last barrier
        for step in chain:
            if step.reads & fresh:
                kernel.line("tl.debug_barrier()")
                fresh = set()
            fresh |= step.writes
            parameters = "M, ROWS: tl.constexpr, BLOCK: tl.constexpr"
            kernel.call(step.text, step.arguments, parameters, f"M, ROWS, {blocks[id(step)]}")
    rows = steps[0].rows

    def shape(batch: int) -> tuple[tuple[int, ...], dict[str, int]]:
        count = batch * rows
        most = ROWS if count >= 4096 else 16
        tile = max(min(most, power_of_two(count)), 16 if any(step.multiplies for step in steps) else 2)
        sizes = {blocks[id(step)]: _block(step) for step in steps}
        return (-(-count // tile), len(chains)), {"ROWS": tile, **sizes}

    return Launch(steps[0].name, kind, kernel.text(), tuple(kernel.arguments.values), rows, shape)


def _block(step: RowStep) -> int:
    """Returns how many channels of a tile a step computes at a time."""
    return max(min(COLUMNS, power_of_two(step.width)), 16 if step.multiplies else 2)


def _chains(steps: list[RowStep]) -> list[list[RowStep]]:
    """Returns the steps as chains that do not read each other, each in order."""
    chains: list[list[RowStep]] = []
    for step in steps:
        mine = [chain for chain in chains if step.reads & _writes(chain)]
        others = [chain for chain in chains if not step.reads & _writes(chain)]
        chains = [*others, [*(x for chain in mine for x in chain), step]]
    order = {id(step): index for index, step in enumerate(steps)}
    chains = [sorted(chain, key=lambda step: order[id(step)]) for chain in chains]
    return sorted(chains, key=lambda chain: order[id(chain[0])])


class _Kernel:
    """Calls steps in one kernel; equal ones are one function."""

    def __init__(self, constants: str) -> None:
        self.arguments = Arguments()
        self._constants = constants
        self._functions: dict[str, str] = {}
        self._lines: list[str] = []
        self._indent = "    "

    def side(self, axis: int, index: int, count: int) -> None:
        """Says that what follows runs in the programs `index` of `count` along an axis of the grid."""
        if count > 1:
            last = "else:" if index else ""
            test = f"if tl.program_id({axis}) == {index}:"
            self._lines.append("    " + (last if index == count - 1 else f"el{test}" if index else test))
            self._indent = "        "

    def line(self, text: str) -> None:
        self._lines.append(self._indent + text)

    @contextlib.contextmanager
    def inside(self, test: str) -> Iterator[None]:
        """Indents what follows below a test, if there is one."""
        before = self._indent
        if test:
            self.line(test)
            self._indent += "    "
        yield
        self._indent = before

    def call(self, step: Text, arguments: Sequence[Place | np.ndarray], parameters: str, given: str) -> None:
        """Writes the call of a step's function with its arguments, and with what is given for its parameters."""
        source = step.function("step", parameters)
        name = self._functions.setdefault(source, f"step_{len(self._functions)}")
        names = ", ".join(self.arguments.name(x) for x in arguments)
        self.line(f"{name}({names}, {given})")

    def text(self) -> str:
        """Returns the functions and the kernel."""
        functions = [
            "@triton.jit\n" + source.replace("def step(", f"def {name}(", 1) for source, name in self._functions.items()
        ]
        constants = f", {self._constants}" if self._constants else ""
        kernel = f"def kernel({self.arguments.names}, M{constants}):"
        return "\n".join([*functions, kernel, *self._lines, ""])
