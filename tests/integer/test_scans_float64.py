"""Checks the forms of the selective scan with 4-bit codes against float64, written from docs/integer-semantics.md.

A rounding that falls the other way changes all later steps, so comparing whole runs says little. With one state and
known C, y shows the state after every step. So each step is checked by itself: real arithmetic computes it from the
state before, and the bound is the loss that the page's formats allow in one step. The reference shares no code with the
plans, the codecs or the scans.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from visq.integer.codecs import make_codec, make_factor_codec, make_state_codec
from visq.integer.fixed_scan import FixedScan
from visq.integer.float_scan import FloatScan, float_scan
from visq.integer.fused_scan import FusedScan
from visq.integer.scan_steps import ScanCodecs
from visq.integer.scans import integer_form, integer_scan

ULP = 2.0**-24
BITS, LOW, HIGH = 4, -8, 7
L, CHANNELS = 60, 24


class Case:
    """Random inputs of a scan [L, CHANNELS] with `states` states, and quantizers as an artifact stores them."""

    def __init__(self, seed: int, states: int = 1, steps: bool = True, divisors: bool = False) -> None:
        rng = np.random.default_rng(seed)
        f32 = np.float32
        self.delta_scale, self.B_scale, self.C_scale = f32(0.02), f32(0.3), f32(0.25)
        self.a_scale, self.b_scale = f32(1 / 15), f32(0.07)
        self.S = (rng.uniform(0.5, 2.0, L) if steps else np.full(1, 1.3)).astype(f32) * f32(0.02)
        self.r = rng.uniform(0.5, 2.0, CHANNELS).astype(f32)
        self.divisors = rng.uniform(0.25, 1.0, CHANNELS).astype(f32) if divisors else np.ones(1, f32)
        self.A = -rng.uniform(0.5, 4.0, (CHANNELS, states)).astype(f32)
        self.delta_codes = rng.integers(0, 16, (L, CHANNELS))
        self.delta = (self.delta_codes * self.delta_scale).astype(f32)
        self.u = rng.normal(0, 0.3, (L, CHANNELS)).astype(f32)
        self.B_codes = rng.integers(LOW, HIGH + 1, (L, states))
        self.B = (self.B_codes * self.B_scale).astype(f32)
        self.C = rng.integers(1, HIGH + 1, (L, states))
        signed, unsigned = {"bits": BITS}, {"bits": BITS, "signed": False}
        one = lambda spec, scale, name: (name, {"spec": spec, "axis": None}, {"scale": np.array([scale])})  # noqa: E731
        self.stored = {
            "delta": one(unsigned, self.delta_scale, "delta"),
            "B": one(signed, self.B_scale, "B"),
            "C": one(signed, self.C_scale, "C"),
            "abar": one(unsigned, self.a_scale, "abar"),
            "bbar": one(signed, self.b_scale, "bbar"),
        }
        if divisors:
            self.stored["bbar"][2]["smooth"] = self.divisors
        self.state = {"step": self.S, "channel": self.r, "state": np.ones(states, f32)}

    def codecs(self, fused: bool) -> ScanCodecs:
        record = {"spec": {"bits": BITS}, "read_quantized": not fused}
        return ScanCodecs(
            delta=make_codec(*self.stored["delta"]),
            B=make_codec(*self.stored["B"]) if fused else None,
            C=make_codec(*self.stored["C"]),
            abar=None if fused else make_factor_codec(*self.stored["abar"]),
            bbar=None if fused else make_factor_codec(*self.stored["bbar"]),
            h=make_state_codec("h", record, self.state),
        )

    def exact(self) -> dict[str, np.ndarray]:
        """Returns S, the previous S divided by it, decay [L, CHANNELS] and decay's error from A in 16 bits, in float64.

        The exponent of two is off by half a unit of 2^-16 for each code of delta.
        """
        S = np.broadcast_to(self.S.astype(np.float64), L)[:, None]
        decay = np.exp(self.delta.astype(np.float64) * self.A[:, 0].astype(np.float64))
        return {
            "S": S,
            "ratio": np.concatenate([np.ones((1, 1)), S[:-1] / S[1:]]),
            "decay": decay,
            "decay_error": decay * np.log(2) * self.delta_codes * 0.5 * 2.0**-16 * 1.01,
        }


def allowed(real: np.ndarray, slack: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the smallest and the largest code that a number known up to `slack` may round to."""
    return np.clip(np.ceil(real - 0.5 - slack), low, high), np.clip(np.floor(real + 0.5 + slack), low, high)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("divisors", [False, True])
def test_fixed_scan(seed: int, steps: bool, divisors: bool) -> None:
    case = Case(seed, steps=steps, divisors=divisors)
    form = integer_form(L, case.A, case.codecs(fused=False))
    assert isinstance(form, FixedScan), form
    y = integer_scan(form, case.u, case.delta, case.B, case.C).astype(np.float64)
    x = case.exact()
    h = y / (case.C * case.r * x["S"] * np.float64(case.C_scale))
    assert np.abs(h - np.rint(h)).max() < 1e-4  # y shows whole codes
    h = np.rint(h)
    before = np.concatenate([np.zeros((1, CHANNELS)), h[:-1]])

    # Abar's code: v is within 6 of its units. A code has 2^F units.
    F = np.floor(np.log2(65535 / (1 / case.a_scale + 0.5)))
    a_low, a_high = allowed(x["decay"] / case.a_scale, 6 * 2.0**-F + x["decay_error"] / case.a_scale, 0, 15)

    # Bbar's code: w, beta and their product are off by half a unit each. A unit of the product is 2^-G of a code.
    G, delta, B = 12 - BITS, case.delta.astype(np.float64), case.B.astype(np.float64)
    p = 14 if divisors else np.floor(np.log2(31743 / (15 * float(case.delta_scale))))
    w, beta = delta / case.divisors * 2**p, B * 2 ** (15 - p + G) / case.b_scale
    unit = (0.5 * np.abs(beta) + 0.5 * w + 0.25) * 2.0**-15 + 0.5
    b_low, b_high = allowed(delta / case.divisors * B / case.b_scale, (unit + 0.01) * 2.0**-G, LOW, HIGH)

    P = 12 - BITS
    g = case.u * case.divisors.astype(np.float64) / case.r * case.b_scale * 2.0 ** (BITS - 16 + 15 + P) / x["S"]
    assert np.abs(g).max() < 16375  # nothing saturates
    found, single = np.zeros(h.shape, bool), np.zeros(h.shape, bool)
    for a in (a_low, a_high):
        for b in (b_low, b_high):
            real = before * a * case.a_scale * x["ratio"] + b * case.b_scale * case.divisors * case.u / (
                case.r * x["S"]
            )
            # `kept` is off by decay's half unit and two cuts. Its product with h is cut; that of b and g is rounded.
            kept = a * 2.0 ** (16 - BITS) * 0.5 * 2.0**-16 + 2
            lift = np.clip(np.ceil(np.log2(x["ratio"])), 0, 3)
            slack = np.abs(before) * 2.0 ** (P + 1 + lift) * kept * 2.0**-16 + 1
            slack += np.abs(b) * 2.0**12 * (0.5 + 4 * ULP * np.abs(g)) * 2.0**-15 + 0.5
            low, high = allowed(real, slack * 2.0**-P, LOW, HIGH)
            found |= (low <= h) & (h <= high)
            single |= low == high
    assert found.all(), f"{(~found).sum()} of {found.size} steps"
    sure = (a_low == a_high) & (b_low == b_high) & single
    assert sure.mean() > 0.85 and len(np.unique(h)) > 10  # most steps allow one code only


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("steps", [False, True])
def test_fused_scan(seed: int, steps: bool) -> None:
    case = Case(seed, steps=steps)
    form = integer_form(L, case.A, case.codecs(fused=True))
    assert isinstance(form, FusedScan), form
    y = integer_scan(form, case.u, case.delta, case.B, case.C).astype(np.float64)
    x, P = case.exact(), 14 - BITS
    total = y / (case.C * case.r * 2.0**-P * x["S"] * np.float64(case.C_scale))  # in units of 2^-P of a code
    assert np.abs(total - np.rint(total)).max() < 0.01
    h = np.clip(np.floor(np.rint(total) * 2.0**-P + 0.5), LOW, HIGH)
    before = np.concatenate([np.zeros((1, CHANNELS)), h[:-1]])
    lift = np.clip(np.ceil(np.log2(x["ratio"])) - 1, 0, 2)
    q14 = 2.0 ** (14 - lift) * x["ratio"]
    g = case.delta.astype(np.float64) * case.u / case.r * float(case.B_scale) * 2.0 ** (15 + P - 12) / x["S"]
    assert (np.abs(g) < 14335).mean() > 0.9
    kept = np.clip(before * x["decay"] * x["ratio"] * 2.0**P, -16384, 16384)
    g = np.clip(g, -14335, 14335)
    real = kept + case.B_codes * 2.0**12 * g * 2.0**-15
    # v is within 6 units of Q14, and cut when shifted. Its product with h is cut; g and its product are rounded.
    v = 7 + x["decay_error"] * q14
    slack = (np.abs(before) * 2.0 ** (P + 2) * v * 2.0**-16 + 1) * 2.0**lift
    slack += np.abs(case.B_codes) * 2.0**12 * (0.5 + 4 * ULP * np.abs(g)) * 2.0**-15 + 0.5
    assert (np.abs(total - real) <= slack + 0.01).all(), (np.abs(total - real) / slack).max()
    assert slack.max() < 2.0**P / 16 and len(np.unique(h)) > 8  # a sixteenth of a code


@pytest.mark.parametrize("fused", [False, True])
def test_y_adds_up_the_states(fused: bool) -> None:
    """A scan of four states is the sum of four scans of one state, but for three roundings of y."""
    case = Case(9, states=4)
    form = integer_form(L, case.A, case.codecs(fused))
    assert isinstance(form, FixedScan | FusedScan)
    together = integer_scan(form, case.u, case.delta, case.B, case.C)
    single = np.stack(
        [
            integer_scan(
                replace(form, a=form.a[:, n : n + 1]), case.u, case.delta, case.B[:, n : n + 1], case.C[:, n : n + 1]
            )
            for n in range(4)
        ]
    ).astype(np.float64)
    assert (np.abs(together - single.sum(0)) <= 8 * ULP * np.abs(single).sum(0) + 1e-30).all()
    assert np.abs(together).max() > 0.1


def test_float_scan() -> None:
    """The bound adds the error of every step to the error that the state carries on."""
    case = Case(3, states=5)
    C = case.C.astype(np.float32) * case.C_scale
    y = float_scan(FloatScan(case.A, None, None, None, "a test"), case.u, case.delta, case.B, C)
    state, error = np.zeros((CHANNELS, 5)), np.zeros((CHANNELS, 5))
    for t in range(L):
        delta, u, B, c = (x[t].astype(np.float64) for x in (case.delta, case.u, case.B, C))
        exponent = delta[:, None] * case.A
        decay, drive = np.exp(exponent), delta[:, None] * B * u[:, None]
        # exp2 is within 2e-7, and its argument has three roundings. Products and the sum round once each.
        relative = 2e-7 + 3 * ULP * np.abs(exponent)
        error = error * decay * (1 + 1e-5) + np.abs(state) * decay * (relative + ULP) + np.abs(drive) * 2 * ULP
        state = decay * state + drive
        error += ULP * np.abs(state) * 1.01
        slack = (np.abs(c) * error).sum(1) + 6 * ULP * np.abs(c * state).sum(1)
        assert (np.abs(y[t] - (c * state).sum(1)) <= slack).all()


def test_float_scan_with_codes() -> None:
    """Abar, Bbar and h are rounded in float32. Each step must match, except where a value lies beside a boundary."""
    case = Case(4)
    codecs = case.codecs(fused=False)
    C = case.C.astype(np.float32) * case.C_scale
    form = FloatScan(case.A, codecs.abar, codecs.bbar, codecs.h, "a test")
    y = float_scan(form, case.u, case.delta, case.B, C).astype(np.float64)
    x = case.exact()
    h = np.rint(y / (C * case.r * x["S"]))
    before = np.concatenate([np.zeros((1, CHANNELS)), h[:-1]])
    a = np.clip(np.rint(x["decay"] / case.a_scale), 0, 15)
    b = np.clip(np.rint(case.delta.astype(np.float64) * case.B / case.b_scale), LOW, HIGH)
    real = before * a * case.a_scale * x["ratio"] + b * case.b_scale * case.u / (case.r * x["S"])
    low, high = allowed(real, 1e-5 * (1 + np.abs(real)), LOW, HIGH)
    beside = lambda value: np.abs(value - np.floor(value) - 0.5) < 1e-4  # noqa: E731
    unsure = beside(x["decay"] / case.a_scale) | beside(case.delta.astype(np.float64) * case.B / case.b_scale)
    assert (((low <= h) & (h <= high)) | unsure).all() and unsure.mean() < 0.05
