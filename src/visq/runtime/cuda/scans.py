"""Writes the kernel of a scan: one program takes one image and a block of channels through all rows.

The state stays in registers. The inputs of a few steps are loaded while the steps before them are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from visq.integer.arithmetic import LOG2E, midpoints
from visq.integer.codecs import FactorCodec
from visq.integer.fixed_scan import DELTA_HIGH, INPUT_HIGH, FixedScan
from visq.integer.float_scan import FloatScan
from visq.integer.forms import Form
from visq.integer.fused_scan import INPUT_HIGH as FUSED_HIGH
from visq.integer.fused_scan import KEPT_HIGH, FusedScan
from visq.integer.ladder_scan import LadderScan
from visq.integer.operations import Scan
from visq.runtime.cuda.bodies import Body, unsupported
from visq.runtime.cuda.text import At, Text, power_of_two

#: States of a channel that a program can hold; sums over more might leave 32 bits.
MOST_STATES = 256

#: Writes what becomes of y, given the kernel, the row and channels, and y's name.
Store = Callable[[Text, At, str], None]


class ScanText:
    """The kernel of a scan in integers under construction: channels lie along the first axis, states along the second.

    A step's inputs are in the variables `u0`, `delta0`, `B0`, `C0`, ...; 0 is the first of the steps loaded together.
    """

    #: Steps whose inputs are loaded together.
    ahead = 4

    def __init__(self, body: Body, form: Any, store: Store) -> None:
        source = body.operation.source
        assert isinstance(source, Scan)
        self.body, self.form, self.store, self.source = body, form, store, source
        self.rows, self.width = body.operation.rows, body.operation.width
        self.states = body.program.tensors[source.B].width
        self.padded = 1 << (self.states - 1).bit_length()
        self.text = Text()

    def write(self) -> Text:
        """Returns the whole kernel."""
        self.begin()
        self.text.line("begin = tl.zeros([], tl.int32)")
        for index in range(self.ahead):
            self._load("", index, f"begin + {index}")
        with self.text.loop(f"for start in range(0, {self.rows}, {self.ahead}):"):
            for index in range(self.ahead):
                self._load("later_", index, f"start + {self.ahead + index}")
            for index in range(self.ahead):
                self._step(index)
            for index in range(self.ahead):
                for name in self.names:
                    self.text.line(f"{name}{index} = later_{name}{index}")
        return self.text

    def _load(self, prefix: str, index: int, step: str) -> None:
        """Writes the loads of a step. Those of a step beyond the last row are those of the last row, and not used."""
        text = self.text
        channel, state = self._places(text.let(f"tl.minimum({step}, {self.rows - 1})"))
        for name, (tensor, at) in self.inputs(channel, state).items():
            place = self.body.places[tensor]
            pointer = f"{text.place(place)} + {at.row} * {place.width} + {at.column}"
            mask = "" if at.has is None else f", mask={at.has}, other=0"
            text.line(f"{prefix}{name}{index} = tl.load({pointer}{mask})")

    def _step(self, index: int) -> None:
        text, last = self.text, self.rows - 1
        inside = index == 0 or self.rows % self.ahead == 0
        t = text.let(f"start + {index}" if inside else f"tl.minimum(start + {index}, {last})")
        channel, state = self._places(t)
        y = self.step(index, t, channel, state)
        self.store(text, self._stored_at(channel, None if inside else f"start < {self.rows - index}"), y)

    def _stored_at(self, channel: At, there: str | None) -> At:
        """Returns where a step's y is stored; `there` says whether the step is one, None where it always is."""
        if there is None:
            return channel
        return replace(channel, has_column=self.text.let(f"has_c & (c * 0 + {there})"))

    def _places(self, t: str) -> tuple[At, At]:
        """Returns the rows and channels of a step, and its rows and states."""
        token = self.text.let(f"{self.rows - 1} - {t}" if self.source.reverse else f"{t} + 0")
        row = self.text.let(f"image * {self.rows} + {token}")
        return At(row, token, "c", None, "has_c"), At(row, token, "n", None, "has_n")

    # --- what a form may change

    @property
    def names(self) -> list[str]:
        """The variables of a step's inputs, without their number."""
        return ["u", "delta", "B", "C"]

    def inputs(self, channel: At, state: At) -> dict[str, tuple[str, At]]:
        """Returns the tensor of each variable, and where it is read."""
        source = self.source
        return {
            "u": (source.u, channel),
            "delta": (source.delta, channel),
            "B": (source.B, state),
            "C": (source.C, state),
        }

    def begin(self) -> None:
        """Writes what comes before the first step."""
        text = self.text
        text.line("image = tl.program_id(0).to(tl.int64)")
        text.line("c = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[:, None]")
        text.line(f"has_c = c < {self.width}")
        text.line(f"n = tl.arange(0, {self.padded})[None, :]")
        text.line(f"has_n = n < {self.states}")
        text.line(f"h = tl.zeros([BLOCK, {self.padded}], tl.int32)")
        form = self.form
        self.input_channel, self.y_channel = self.by_channel(form.input_channel), self.by_channel(self.y_scale())

    def y_scale(self) -> np.ndarray:
        """Returns the scale of y's sum for each channel."""
        found: np.ndarray = self.form.y_channel
        return found

    def step(self, index: int, t: str, channel: At, state: At) -> str:
        """Writes a step and returns y."""
        u, delta = (
            self.decoded(f"u{index}", self.source.u, channel),
            self.decoded(f"delta{index}", self.source.delta, channel),
        )
        B = self.decoded(f"B{index}", self.source.B, state)
        codes = self.body.codes_of(self.source.C)
        assert codes is not None  # or the scan would run in float32
        C = self.text.let(f"tl.where(has_n, {codes.integers(self.text, f'C{index}', state)}, 0)")
        y = self.text.fresh()
        self.text.line(f"h, {y} = {self.call(t, u, delta, B, C)}")
        return y

    def call(self, t: str, u: str, delta: str, B: str, C: str) -> str:
        """Returns the call that gives the next state and y."""
        raise NotImplementedError

    # --- parameters

    def decoded(self, variable: str, tensor: str, at: At) -> str:
        codes = self.body.codes_of(tensor)
        return variable if codes is None else codes.decode(self.text, variable, at)

    def by_channel(self, x: np.ndarray) -> str:
        return self.text.vector(np.broadcast_to(x, self.width), "c", "has_c", "1.0")

    def by_step(self, x: np.ndarray, t: str) -> str:
        dtype = np.float32 if x.dtype.kind == "f" else np.int32
        return self.text.load(f"{self.text.parameter(self.for_rows(x).astype(dtype))} + {t}", None)

    def for_rows(self, x: np.ndarray) -> np.ndarray:
        """Returns numbers [rows, ...] of numbers for all steps, for those of a sequence, or for each."""
        return np.tile(x, (self.rows // len(x), *[1] * (x.ndim - 1)))

    def by_state(self, x: np.ndarray) -> str:
        return self.text.load(f"{self.text.parameter(x)} + c * {self.states} + n", "has_c & has_n")

    def read_out(self, t: str) -> str:
        """Returns y's scales, and the point and range of the state."""
        form = self.form
        return f"{self.y_channel}, {self.by_step(form.y_step, t)}, {form.point}, {form.state_low}, {form.state_high}"


def scale_of_sums(form: Any) -> np.ndarray:
    """Returns y's scale for each channel where y reads the sums before they are rounded to the state's codes."""
    found: np.ndarray = form.y_channel * np.float32(2.0**-form.point)
    return found


class FusedText(ScanText):
    """A scan without codes of Abar and Bbar."""

    def begin(self) -> None:
        super().begin()
        self.delta_scale = self.by_channel(self.form.delta_scale)
        self.a = self.by_state(self.form.a.astype(np.int32))

    def y_scale(self) -> np.ndarray:
        return scale_of_sums(self.form)

    def power(self, t: str, delta: str) -> str:
        """Writes Abar times the ratio of scales."""
        d = self.text.let(f"tl.maximum(s.to_int16({delta} * {self.delta_scale}), 0)")
        coefficients = ", ".join(self.by_step(self.form.power[:, i], t) for i in range(4))
        return self.text.let(f"s.decay({d}, {self.a}, {coefficients}, {self.form.shift})")

    def call(self, t: str, u: str, delta: str, B: str, C: str) -> str:
        form, power = self.form, self.power(t, delta)
        scales = f"{self.by_step(form.beta_scale, t)}, {self.input_channel}, {self.by_step(form.input_step, t)}"
        lift = self.by_step(form.lift, t)
        ends = f"{self.read_out(t)}, {KEPT_HIGH}, {FUSED_HIGH}"
        return f"s.fused_step(h, {power}, {lift}, {u}, {delta}, {B}, {C}, {scales}, {ends})"


class LadderText(FusedText):
    """A fused scan whose decays are powers of one number a channel."""

    def begin(self) -> None:
        ScanText.begin(self)
        self.rate = self.by_channel(self.form.rate)

    def power(self, t: str, delta: str) -> str:
        r = self.text.let(f"s.to_int16(k.exp2({delta} * {self.rate}) * 32768.0)")
        return self.text.let(f"s.ladder_powers({r}, n, {self.by_step(self.form.ratio, t)}, {self.states})")


class FixedText(ScanText):
    """A scan with codes of Abar and Bbar."""

    def begin(self) -> None:
        super().begin()
        form, text = self.form, self.text
        self.delta_scale, self.drive_channel = self.by_channel(form.delta_scale), self.by_channel(form.drive_channel)
        self.a = self.by_state(form.a.astype(np.int32))
        powers = text.parameter(np.array(form.abar_power, np.int32))
        self.power = ", ".join(text.load(f"{powers} + {i}", None) for i in range(4))
        nothing = np.zeros(1, np.int32)
        self.abar_table, self.bbar_table = (
            text.parameter(nothing if table is None else table.astype(np.int32))
            for table in (form.abar_lut, form.bbar_lut)
        )

    def call(self, t: str, u: str, delta: str, B: str, C: str) -> str:
        form, let = self.form, self.text.let
        d = let(f"tl.maximum(s.to_int16({delta} * {self.delta_scale}), 0)")
        w = let(f"s.limit(s.to_int16({delta} * {self.drive_channel}), 0, {DELTA_HIGH})")
        beta = let(f"s.to_int16({B} * {self.by_step(form.beta_scale, t)})")
        g = let(f"s.to_int16(({u} * {self.input_channel}) * {self.by_step(form.input_step, t)})")
        g = let(f"s.limit({g}, {-INPUT_HIGH}, {INPUT_HIGH})")
        uniform = f"{form.shift}, {form.abar_fraction}, {form.abar_high}, {form.abar_bits}, {form.abar_lut is not None}"
        abar = let(f"s.fixed_abar({d}, {self.a}, {self.power}, {self.abar_table}, {uniform})")
        uniform = f"{form.bbar_low}, {form.bbar_high}, {form.bbar_bits}, {form.bbar_lut is not None}"
        drive = let(f"s.fixed_bbar(s.mulhrs({w}, {beta}), {self.bbar_table}, {uniform})")
        steps = f"{self.by_step(form.decay, t)}, {self.by_step(form.lift, t)}"
        return f"s.fixed_step(h, {abar}, {steps}, {drive}, {g}, {C}, {self.read_out(t)})"


class FloatText(ScanText):
    """A scan in float32. Its sum over states has an order, so each state has variables of its own."""

    ahead = 1

    @property
    def names(self) -> list[str]:
        return ["u", "delta", *(f"{name}{n}_" for n in range(self.states) for name in "BC")]

    def inputs(self, channel: At, state: At) -> dict[str, tuple[str, At]]:
        found = {"u": (self.source.u, channel), "delta": (self.source.delta, channel)}
        for n in range(self.states):
            found[f"B{n}_"], found[f"C{n}_"] = ((name, self._one(state, n)) for name in (self.source.B, self.source.C))
        return found

    def _one(self, state: At, n: int) -> At:
        return At(state.row, state.token, str(n), None, None)

    def begin(self) -> None:
        text, form = self.text, self.form
        text.line("image = tl.program_id(0).to(tl.int64)")
        text.line("c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)")
        text.line(f"has_c = c < {self.width}")
        for n in range(self.states):
            text.line(f"h{n} = tl.zeros([BLOCK], tl.float32)")
        self.rates = [self.by_channel(column) for column in (form.A * LOG2E).T]
        if form.bbar is not None:
            self.divisor = self.by_channel(form.bbar.channel)
            self.inverse = self.by_channel(np.float32(1) / form.bbar.channel)
        if form.h is not None:
            scale = form.h.channel[:, None] * form.h.state
            self.scales = [self.by_channel(column) for column in np.broadcast_to(scale, form.A.shape).T]

    def step(self, index: int, t: str, channel: At, state: At) -> str:
        let, form, source = self.text.let, self.form, self.source
        u, delta = self.decoded(f"u{index}", source.u, channel), self.decoded(f"delta{index}", source.delta, channel)
        w = delta
        if form.bbar is not None:
            w, u = let(f"{delta} * {self.inverse}"), let(f"{u} * {self.divisor}")
        y = self.text.fresh()
        self.text.line(f"{y} = tl.zeros([BLOCK], tl.float32)")
        if source.length is not None:  # each sequence begins without a state
            begins = let(f"(c * 0 + {t}) % {source.length} == 0")
            for n in range(self.states):
                self.text.line(f"h{n} = tl.where({begins}, 0.0, h{n})")
        for n in range(self.states):
            at = self._one(state, n)
            B, C = (self.decoded(f"{name}{n}_{index}", getattr(source, name), at) for name in "BC")
            decay = self.rounded(let(f"k.exp2({delta} * {self.rates[n]})"), form.abar)
            drive = self.rounded(let(f"{w} * {B}"), form.bbar)
            self.text.line(f"h{n} = {decay} * h{n} + {drive} * {u}")
            read = f"h{n}"
            if form.h is not None:
                if not form.h.read_quantized:
                    read = self.text.fresh()
                    self.text.line(f"{read} = h{n}")
                scale = let(f"{self.by_step(form.h.step, t)} * {self.scales[n]}")
                inverse = let(f"k.inverse({scale})")
                self.text.line(f"h{n} = s.factor_code(h{n}, {inverse}, {scale}, {form.h.low}, {form.h.high})")
            self.text.line(f"{y} = {y} + {C} * {read}")
        return y

    def rounded(self, x: str, codec: FactorCodec | None) -> str:
        """Writes x rounded to a code of Abar or Bbar and back."""
        text = self.text
        if codec is None:
            return x
        if codec.table is not None:
            middles = midpoints(codec.table)
            steps = middles.size.bit_length()
            padded = np.full(max((1 << steps) - 1, 1), np.inf, np.float32)
            padded[: middles.size] = middles
            index = text.let(f"k.count_below({x}, {text.parameter(padded)}, {middles.size}, {steps})")
            return text.let(f"tl.load({text.parameter(codec.table)} + {index})")
        step = np.float32(codec.step)
        numbers = (text.load(text.parameter(np.array([value])), None) for value in (np.float32(1) / step, step))
        return text.let(f"s.factor_code({x}, {', '.join(numbers)}, {codec.low}, {codec.high})")


#: Writes a scan, by the type of its form.
_TEXTS: dict[type, type[ScanText]] = {
    FixedScan: FixedText,
    FusedScan: FusedText,
    LadderScan: LadderText,
    FloatScan: FloatText,
}


def channels_of(states: int, width: int) -> int:
    """Returns the channels of a program, of which each takes the registers of its states."""
    return max(min(256 // power_of_two(states), power_of_two(width), 64), 2)


def scan_text(body: Body, form: Form, store: Store) -> Text:
    """Returns the kernel of a scan; `store` writes what becomes of y at rows and channels.

    Raises:
        VisqError: the engine has no such form, or more states than a program can hold.
    """
    make = _TEXTS.get(type(form))
    if make is None:
        raise unsupported(body.operation, f"scan of the form {type(form).__name__}")
    text = make(body, form, store)
    if text.states > MOST_STATES:
        raise unsupported(body.operation, f"scan of more than {MOST_STATES} states")
    return text.write()
