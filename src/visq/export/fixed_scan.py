"""The selective scan in the engine's fixed point, in whole numbers that float32 holds.

Products of at most 24 bits are exact, and so are their floors. A product of two 16-bit numbers is rounded before its
floor, so that in about one of 500 cases it differs from the engine's by one unit.
"""

from __future__ import annotations

import numpy as np

from visq.export.graph import Graph
from visq.export.scan import CHUNK, Chunk, Sequences, Write, chunked_scan
from visq.integer import fixed_scan as fixed
from visq.integer import fused_scan as fused
from visq.integer.fixed_scan import FixedScan
from visq.integer.fused_scan import FusedScan
from visq.integer.ladder_scan import FIRST, LadderScan
from visq.integer.scan_steps import ExponentSteps
from visq.integer.scans import IntegerScan

#: ONNX's number for the type of table indices.
INT32 = 6
#: The range of 16-bit numbers.
LOW, HIGH = -32768, 32767


def fixed_point_scan(
    graph: Graph,
    scan: IntegerScan,
    inputs: tuple[str, str, str, str],
    length: int,
    reverse: bool,
    chunk: int = CHUNK,
) -> str:
    """Returns y [B, L, C]. `inputs` are u, delta [B, L, C] and B [B, L, N], decoded, and C [B, L, N] in integers."""
    u, delta, B, C = inputs
    backwards = slice(None, None, -1 if reverse else 1)
    beta = _whole(graph, graph.scaled(B, scan.beta_scale[:length][backwards, None]), LOW, HIGH)
    drive = graph.scaled(u if isinstance(scan, FixedScan) else graph.mul(delta, u), scan.input_channel)
    limit = fixed.INPUT_HIGH if isinstance(scan, FixedScan) else fused.INPUT_HIGH
    g = _whole(graph, graph.scaled(drive, scan.input_step[:length][backwards, None]), -limit, limit)
    channels, states = {"g": g}, {"beta": beta, "C": C}
    if isinstance(scan, ExponentSteps):
        channels["d"] = _whole(graph, graph.scaled(delta, scan.delta_scale), 0, HIGH)
    steps: dict[str, np.ndarray]
    if isinstance(scan, FixedScan):
        channels["w"] = _whole(graph, graph.scaled(delta, scan.drive_channel), 0, fixed.DELTA_HIGH)
        bits = 16 if scan.abar_lut is not None else scan.abar_bits
        steps = {"decay": scan.decay[:length] * 2.0**-bits}
        steps["lift"] = 2.0 ** (scan.point + 1 - 16 + scan.lift[:length])
        write = _fixed(scan)
    else:
        if isinstance(scan, FusedScan):
            steps = {f"power{i}": column for i, column in enumerate(scan.power[:length].T)}
        else:
            # 2^x of the ladder's rate, which is in powers of two.
            rate = scan.rate.astype(np.float64) * np.log(2)
            r = graph.node("Exp", graph.scaled(delta, rate.astype(np.float32)))
            channels["r"] = _whole(graph, graph.scaled(r, np.float32(32768)), LOW, HIGH)
            steps = {"ratio": scan.ratio[:length]}
        steps["lift"] = 2.0 ** scan.lift[:length]
        write = _fused(scan)
    y = chunked_scan(graph, scan.shape, Sequences(channels, states, steps, length, reverse), chunk, write)
    unit = np.float32(1 if isinstance(scan, FixedScan) else 2.0**-scan.point)
    y = graph.scaled(graph.scaled(y, scan.y_channel * unit), scan.y_step[:length][:, None])
    return graph.flip(y, 1) if reverse else y


def _fixed(scan: FixedScan) -> Write:
    """Writes steps with codes of Abar and Bbar, as `visq.integer.fixed_scan` defines them."""

    def write(chunk: Chunk, state: str) -> tuple[str, str]:
        graph = chunk.graph
        abar = _power(chunk, scan, [chunk.constant(c) for c in scan.abar_power])
        if scan.abar_lut is not None:
            abar = _looked_up(graph, scan.abar_lut, _floor(chunk, abar, 0.5))
        else:
            code = _floor(
                chunk, graph.add(abar, chunk.constant(2.0 ** (scan.abar_fraction - 1))), 2.0**-scan.abar_fraction
            )
            abar = graph.node("Min", code, chunk.constant(scan.abar_high))
        kept = graph.mul(graph.node("Floor", graph.mul(abar, chunk["decay"])), chunk["lift"])
        bbar = _mulhrs(chunk, chunk["w"], chunk["beta"])
        if scan.bbar_lut is not None:
            drive = _mulhrs(chunk, _looked_up(graph, scan.bbar_lut, graph.add(bbar, chunk.constant(32768))), chunk["g"])
        else:
            fraction = 12 - scan.bbar_bits
            code = _floor(chunk, graph.add(bbar, chunk.constant(2.0 ** (fraction - 1))), 2.0**-fraction)
            code = _clip(graph, code, scan.bbar_low, scan.bbar_high)
            drive = _mulhrs(chunk, code, chunk["g"], 16 - scan.bbar_bits)
        drive = graph.add(drive, chunk.constant(2.0 ** (scan.point - 1)))
        states = []
        for step in range(chunk.size):
            decayed = graph.node("Floor", graph.mul(state, chunk.at(kept, step)))
            total = graph.add(decayed, chunk.at(drive, step))
            state = _clip(graph, _floor(chunk, total, 2.0**-scan.point), scan.state_low, scan.state_high)
            states.append(state)
        return state, chunk.read(states)

    return write


def _fused(scan: FusedScan | LadderScan) -> Write:
    """Writes steps without codes of Abar and Bbar, as `visq.integer.fused_scan` defines them."""

    def write(chunk: Chunk, state: str) -> tuple[str, str]:
        graph, half = chunk.graph, 2.0 ** (scan.point - 1)
        if isinstance(scan, LadderScan):
            power = _powers(chunk, chunk["r"], scan.states)
        else:
            power = _power(chunk, scan, [chunk[f"power{i}"] for i in range(4)])
        power = graph.mul(power, chunk.constant(2.0 ** (scan.point + 2 - 16)))
        drive = graph.add(_mulhrs(chunk, chunk["beta"], chunk["g"]), chunk.constant(half))
        totals = []
        for step in range(chunk.size):
            kept = graph.node("Floor", graph.mul(state, chunk.at(power, step)))
            if scan.lift.any():  # otherwise no scale shrinks so much that the limit matters
                kept = graph.mul(kept, chunk.at(chunk["lift"], step))
                kept = _clip(graph, kept, -fused.KEPT_HIGH, fused.KEPT_HIGH)
            total = graph.add(kept, chunk.at(drive, step))
            state = _clip(graph, _floor(chunk, total, 2.0**-scan.point), scan.state_low, scan.state_high)
            totals.append(total)
        return state, chunk.read(totals, chunk.constant(-half))

    return write


def _power(chunk: Chunk, scan: ExponentSteps, coefficients: list[str]) -> str:
    """Returns 2^-(d a) as `exp2_fixed` gives it for its fraction, shifted right by its whole part."""
    graph = chunk.graph
    exponent = graph.mul(chunk["d"], chunk.constant(scan.a.T * 2.0**-scan.shift))
    whole = graph.node("Floor", exponent)
    fraction = graph.mul(_floor(chunk, graph.node("Sub", exponent, whole), 65536), chunk.constant(2.0**-16))
    c0, c1, c2, value = coefficients
    for c in (c2, c1, c0):
        value = graph.node("Sub", c, graph.node("Floor", graph.mul(fraction, value)))
    # Half a unit keeps the inexact power of two on the right side of the floor.
    shift = graph.node("Exp", graph.mul(whole, chunk.constant(-np.log(2))))
    return str(graph.node("Floor", graph.mul(graph.add(value, chunk.constant(0.5)), shift)))


def _powers(chunk: Chunk, r: str, states: int) -> str:
    """Returns r^(n + 1) times the ratio of a step, as `visq.integer.ladder_scan.powers` does."""

    def product(a: str, b: str) -> str:
        return _mulhrs(chunk, a, b)

    def joined(parts: list[str]) -> str:
        return str(chunk.graph.node("Concat", *parts, axis=2))

    square = product(r, r)
    fourth = product(square, square)
    first = product(joined([r, square]), chunk["ratio"])
    group = joined([first, product(first, square)])
    found = [joined([group, product(group, fourth)])]
    eighth = product(fourth, fourth)
    while len(found) * FIRST < states:
        found.append(product(found[-1], eighth))
    every = found[0] if len(found) == 1 else joined(found)
    return every if len(found) * FIRST == states else chunk.graph.slice(every, 2, 0, states)


def _whole(graph: Graph, x: str, low: int, high: int) -> str:
    """Returns x rounded half to even, within limits."""
    return _clip(graph, graph.node("Round", x), low, high)


def _clip(graph: Graph, x: str, low: int, high: int) -> str:
    return str(graph.node("Clip", x, *(graph.constant(np.float32(end)) for end in (low, high))))


def _floor(chunk: Chunk, x: str, factor: float) -> str:
    """Returns x times a power of two, rounded down."""
    return str(chunk.graph.node("Floor", chunk.graph.mul(x, chunk.constant(factor))))


def _mulhrs(chunk: Chunk, a: str, b: str, shift: int = 0) -> str:
    """Returns `mulhrs` of a, shifted left, and b."""
    scaled = chunk.graph.mul(chunk.graph.mul(a, b), chunk.constant(2.0 ** (shift - 15)))
    return str(chunk.graph.node("Floor", chunk.graph.add(scaled, chunk.constant(0.5))))


def _looked_up(graph: Graph, table: np.ndarray, index: str) -> str:
    return str(graph.node("Gather", graph.constant(table.astype(np.float32)), graph.node("Cast", index, to=INT32)))
