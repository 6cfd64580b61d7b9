"""Makes programs of scans for tests."""

import numpy as np

from tests.runtime.programs import Maker
from visq.integer import operations as ir
from visq.integer.codecs import FactorCodec, StateCodec
from visq.integer.ladder import ladder_log
from visq.integer.operations import Constant

FUSED = {"abar": None, "bbar": None, "read_quantized": False}


def start_scan(
    maker: Maker,
    rows: int,
    width: int,
    states: int,
    *,
    abar: str | None = "uniform",
    bbar: str | None = "uniform",
    h: str | None = "steps",
    c: str = "tensor",
    b: str | None = "tensor",
    u: str | None = "tensor",
    delta: str | None = "unsigned",
    bits: int = 8,
    reverse: bool = False,
    read_quantized: bool = True,
    largest_u: float = 1.0,
    ladder: bool = False,
) -> None:
    rng = maker.rng

    def factor(kind: str | None, signed: bool, top: float) -> str | None:
        if kind is None:
            return None
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        table = np.sort(rng.uniform(-top if signed else 0, top, 2**bits)).astype(np.float32)
        table = table if kind.startswith("table") else None
        channel = np.geomspace(1.0, 0.01, width) if kind.endswith("channels") else np.ones(1)
        return maker.site(FactorCodec(bits, low, high, np.float32(top / high), channel.astype(np.float32), table))

    names = {
        "u": maker.random(rows, width, u, scale=largest_u, reverse=reverse),
        "B": maker.random(rows, states, b, reverse=reverse),
        "C": maker.random(rows, states, c, reverse=reverse),
    }
    source = maker.random(rows, width, scale=2.0)
    maker.operation(ir.Rows(), rows, 0)
    maker.operations[-1]["widths"] = {}
    maker.step(ir.Load(dst=0, tensor=source), width)
    maker.step(ir.Unary(op="softplus", dst=1, src=0), width)
    names["delta"] = maker.store(1, delta, reverse)
    log_a = maker.parameter(width, states)
    if ladder:
        maker.bundle.ladders.add(log_a)
        maker.bundle.tensors[log_a] = ladder_log(rng.uniform(0.05, 2.0, width).astype(np.float32), states)
    size = rows if h == "steps" else 1
    state = None
    if h is not None:
        state = maker.site(
            StateCodec(
                low=-(2 ** (bits - 1)),
                high=2 ** (bits - 1) - 1,
                bits=bits,
                step=(rng.uniform(0.5, 2.0, size) * largest_u / 2 ** (bits - 1)).astype(np.float32),
                channel=rng.uniform(0.25, 4.0, width).astype(np.float32),
                state=(rng.uniform(0.5, 2.0, states) if h == "states" else np.ones(states)).astype(np.float32),
                read_quantized=read_quantized,
            )
        )
    maker.operation(
        ir.Scan(
            **names,
            A=Constant(name=log_a, functions=("exp", "neg")),
            abar=factor(abar, False, 1.0),
            bbar=factor(bbar, True, 2.0),
            h=state,
            reverse=reverse,
        ),
        rows,
        width,
    )


def make_scan(maker: Maker, rows: int, width: int, states: int, **options: object) -> str:
    """Adds a scan whose y is stored as codes and as floats, and returns the name of the float tensor."""
    start_scan(maker, rows, width, states, **options)  # type: ignore[arg-type]
    maker.store(kind="tensor")
    return maker.store()


def at_their_ends(maker: Maker) -> None:
    """Changes A and the state's steps: decays are one, the scale shrinks eightfold, states and input are largest."""
    for name, values in list(maker.bundle.tensors.items()):
        if values.shape == (24, 8):
            maker.bundle.tensors[name] = np.full_like(values, -20)
    state = next(s for s in maker.bundle.sites.values() if isinstance(s, StateCodec))
    object.__setattr__(state, "step", np.float32(1e-4 * 0.125 ** np.minimum(np.arange(12), 6)))
