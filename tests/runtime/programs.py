"""Makes small programs by hand with random parameters, without a network or an artifact."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visq.integer import operations as ir
from visq.integer.codecs import Codec, FactorCodec, StateCodec
from visq.integer.operations import Constant, Operation, TensorDecl
from visq.integer.program import Program
from visq.native.extension import EMULATED, PORTABLE, engine_isas, has_engine_isa
from visq.runtime.bundle import Bundle, Weight

#: Every instruction set the engine can be tested with here.
ISAS = (*engine_isas(), *filter(has_engine_isa, [PORTABLE, EMULATED]))


@dataclass
class Parameters(Bundle):
    """A bundle with quantizers and weights that a test puts in, instead of reading an artifact."""

    config: Any = None
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    sites: dict[str, Any] = field(default_factory=dict)
    rotations: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    ladders: set[str] = field(default_factory=set)

    def codec(self, site: str) -> Codec:
        found: Codec = self.sites[site]
        return found

    def state(self, site: str) -> StateCodec:
        found: StateCodec = self.sites[site]
        return found

    def factor(self, site: str) -> FactorCodec:
        found: FactorCodec = self.sites[site]
        return found

    def rotation(self, site: str) -> tuple[np.ndarray, np.ndarray]:
        return self.rotations[site]

    def is_ladder(self, name: str) -> bool:
        return name in self.ladders

    def weight(self, name: str) -> Weight | np.ndarray:
        return self.sites[name] if name in self.sites else self.parameter(name)


#: Kinds of activation quantizers: the axis of their scales, then zero points, tables and smoothing.
QUANTIZERS = (
    "tensor",
    "channel",
    "token",
    "tensor asymmetric",
    "channel asymmetric",
    "token asymmetric",
    "token one zero",
    "smooth",
    "token smooth",
    "tensor 4 bits",
    "unsigned",
    "table",
    "table channel",
    "groups",
    "groups asymmetric",
    "twin table",
    "token twin table",
)


def quantizer(kind: str, rows: int, width: int, rng: np.random.Generator, top: float = 3.0) -> Codec:
    """Returns a random codec of a kind for values up to about `top`; it clips some of them."""
    bits = 4 if "4 bits" in kind else 8
    asymmetric = "asymmetric" in kind or "one zero" in kind
    unsigned = asymmetric or kind == "unsigned"
    low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    by_token, across = kind.startswith("token"), "channel" in kind or "groups" in kind
    scales = rng.uniform(0.5, 1.5, rows if by_token else width if across else 1) * top / (high - low) * 2
    scale = scales.astype(np.float32)
    if "groups" in kind:  # scales differ by powers of two
        scale = np.ldexp(scale[:1], -rng.integers(0, 5, scale.size)).astype(np.float32)
    zeros = scale.size if "asymmetric" in kind else 1
    zero = np.zeros(1, np.float32)
    if asymmetric:
        zero = rng.integers(high // 4, 3 * high // 4, zeros).astype(np.float32)
    smooth = np.ones(1, np.float32)
    if "smooth" in kind:
        smooth = rng.uniform(0.5, 2.0, width).astype(np.float32)
    table = None
    if "table" in kind:
        table = np.sort(rng.normal(0, 60, 16 if across else 200)).astype(np.float32)
        low, high = 0, table.size - 1
    if "twin" in kind:
        codes = np.arange(-128, 128)
        table = (np.where(codes < 0, codes / 32, codes) / 4).astype(np.float32)
        low, high = 0, table.size - 1
    step = ((np.ones(1, np.float32) if by_token else scale) * smooth).astype(np.float32)
    return Codec(
        low=low,
        high=high,
        offset=0 if unsigned or table is not None else 2 ** (bits - 1),
        scale=scale,
        smooth=smooth,
        step_channel=step,
        inverse_channel=np.float32(1) / step,
        step_token=scale if by_token else None,
        inverse_token=np.float32(1) / scale if by_token else None,
        zero=zero,
        zero_by_token=by_token and zero.size > 1,
        table=table,
        thresholds=None if table is None else ((table[1:] + table[:-1]) / np.float32(2)).astype(np.float32),
    )


def weight(
    rows: int, columns: tuple[int, ...], rng: np.random.Generator, per_row: bool = True, bits: int = 8
) -> Weight:
    codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, *columns))
    scale = rng.uniform(0.001, 0.01, rows if per_row else 1).astype(np.float32)
    return Weight(codes, scale, np.ones(1, np.float32))


class Maker:
    """A program written by hand: `operation` starts an operation, `step` and `store` add to its body."""

    def __init__(self, seed: int = 0, channels: int = 3, size: int = 8) -> None:
        self.rng = np.random.default_rng(seed)
        self.bundle = Parameters()
        self.channels, self.size = channels, size
        self.tensors: dict[str, TensorDecl] = {}
        self.operations: list[dict[str, Any]] = []

    # --- parameters

    def name(self, what: str) -> str:
        return f"{what}{len(self.bundle.tensors) + len(self.bundle.sites)}"

    def parameter(self, *shape: int, scale: float = 1.0) -> str:
        name = self.name("p")
        self.bundle.tensors[name] = (self.rng.normal(0, scale, shape)).astype(np.float32)
        return name

    def site(self, value: Any) -> str:
        name = self.name("s")
        self.bundle.sites[name] = value
        return name

    def quantizer(self, kind: str, rows: int, width: int, top: float = 3.0) -> str:
        return self.site(quantizer(kind, rows, width, self.rng, top))

    # --- operations

    def operation(self, source: Any, rows: int, width: int) -> None:
        self.operations.append({"source": source, "rows": rows, "width": width, "body": [], "widths": {0: width}})

    def step(self, instruction: Any, width: int) -> int:
        op = self.operations[-1]
        op["body"].append(instruction)
        op["widths"][instruction.dst] = width
        return int(instruction.dst)

    def register(self) -> int:
        return len(self.operations[-1]["widths"])

    def width(self, register: int) -> int:
        return int(self.operations[-1]["widths"][register])

    def store(self, src: int = 0, kind: str | None = None, reverse: bool = False, top: float = 3.0) -> str:
        """Stores register `src` in a new tensor, as codes of a quantizer `kind` or as floats, and returns its name."""
        op, name = self.operations[-1], f"t{len(self.tensors)}"
        site = None if kind is None else self.quantizer(kind, op["rows"], self.width(src), top)
        self.tensors[name] = TensorDecl(rows=op["rows"], width=self.width(src), site=site, reverse=reverse)
        op["body"].append(ir.Store(src=src, tensor=name))
        return name

    def random(self, rows: int, width: int, kind: str | None = None, scale: float = 1.0, reverse: bool = False) -> str:
        """Adds a tensor [rows, width] that depends on the image, and returns its name.

        A linear layer of the image gives one row. It is repeated and multiplied by random numbers.
        """
        side = self.size
        self.operation(ir.Patches(patch=side, stride=1), 1, self.channels * side * side)
        base = self.store()
        columns = self.channels * side * side
        self.operation(ir.Linear(input=base, weight=self.parameter(width, columns, scale=columns**-0.5)), 1, width)
        row = self.store()
        self.operation(ir.Concat(parts=((row, 0, 1),) * rows), rows, width)
        spread = Constant(name=self.parameter(1, rows, width, scale=scale))
        register = self.step(ir.WithConstant(op="mul_constant", dst=self.register(), src=0, constant=spread), width)
        return self.store(register, kind, reverse, top=3.0 * scale)

    def program(self, output: str) -> Program:
        operations = tuple(
            Operation(name=f"op{i}", rows=op["rows"], width=op["width"], source=op["source"], body=tuple(op["body"]))
            for i, op in enumerate(self.operations)
        )
        return Program(
            channels=self.channels, size=self.size, output=output, tensors=self.tensors, operations=operations
        )

    def images(self, batch: int = 1) -> np.ndarray:
        shape = (batch, self.channels, self.size, self.size)
        return self.rng.normal(0, 1, shape).astype(np.float32)
