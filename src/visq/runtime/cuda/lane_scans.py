"""Writes the kernel of a fused scan whose states lie in the registers of lanes: a warp takes 32 lanes through all rows.

A lane holds all states of a channel, or four of them, and the lanes beside it hold the others. The first way needs the
fewest instructions. The second has more programs, which a GPU needs when there are few images. B and C are the same for
all channels, so a step before the scan turns them into the numbers that the scan multiplies. The sums and the state are
whole numbers in float32 (`lane_kernels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeGuard

import numpy as np

from visq.integer.forms import Form
from visq.integer.fused_scan import INPUT_HIGH, KEPT_HIGH, FusedScan
from visq.integer.ladder_scan import LadderScan
from visq.integer.operations import Scan
from visq.runtime.cuda.bodies import Body
from visq.runtime.cuda.codecs import SiteCodes
from visq.runtime.cuda.lane_kernels import DRIVE, KEPT, WHOLE
from visq.runtime.cuda.scans import ScanText, Store, scale_of_sums
from visq.runtime.cuda.text import At, Place, Text, begin_tile

LANES = 32
#: Most states of a channel; more take more registers than a lane has.
MOST_STATES = 32
#: States of a lane where a channel has lanes beside each other.
FEW = 4


def fits(form: Form, states: int) -> bool:
    """Returns whether a scan has a kernel here; the others are those of `scans`."""
    return type(form) in _TEXTS and states <= MOST_STATES


def padded(states: int) -> int:
    """Returns the states of a channel that lanes hold; those beyond `states` have B and C zero."""
    return -(-states // FEW) * FEW if states >= FEW else states


def counts(states: int) -> tuple[int, ...]:
    """Returns how many states a lane may hold, all of a channel first."""
    size = padded(states)
    return (size, FEW) if size // FEW in (2, 4, 8) else (size,)


def inputs_place(body: Body, states: int) -> Place:
    """Returns where the scan's inputs are: for each row beta, the integers of C, and their sum."""
    return body.temporary("B and C", 2 * padded(states) + FEW)


def inputs_text(body: Body, form: Form, place: Place) -> Text:
    """Returns the step that computes `inputs_place`, for a tile of rows."""
    source = body.operation.source
    assert isinstance(source, Scan) and isinstance(form, FusedScan | LadderScan)
    scan = ScanText(body, form, lambda text, at, y: None)
    text, rows, states = scan.text, scan.rows, scan.states
    begin_tile(text, rows)
    text.line(f"n = tl.arange(0, {scan.padded})[None, :]")
    text.line(f"has_n = n < {states}")
    at = At("row", "t", "n", "has_m", "has_n")
    step = text.let(f"{rows - 1} - t" if source.reverse else "t + 0")
    places = (text.place(body.places[name]) for name in (source.B, source.C))
    B, C = (text.load(f"{name} + row * {states} + n", "has_m & has_n") for name in places)
    beta_scale = text.load(f"{text.parameter(scan.for_rows(form.beta_scale))} + {step}", "has_m", "0.0")
    beta = text.let(f"s.to_int16({scan.decoded(B, source.B, at)} * {beta_scale}).to(tl.float32)")
    codes = body.codes_of(source.C)
    assert codes is not None
    integers = text.let(f"tl.where(has_m & has_n, {codes.integers(text, C, at)}, 0)")
    start, size = text.let(f"{text.place(place)} + row * {place.width}"), padded(states)
    inside = text.let(f"has_m & (n < {size})")
    text.line(f"tl.store({start} + n, tl.where(has_n, {beta}, 0.0), mask={inside})")
    text.line(f"tl.store({start} + {size} + n, {integers}.to(tl.float32, bitcast=True), mask={inside})")
    total = text.let(f"tl.sum({integers}, 1)[:, None]")
    text.line(f"tl.store({start} + {2 * size}, {total}.to(tl.float32, bitcast=True), mask=has_m)")
    return text


class LaneText(ScanText):
    """The kernel of a scan without codes of Abar and Bbar.

    Arguments:
        place: what `inputs_text` has computed.
        count: states of a lane.
    """

    def __init__(
        self,
        body: Body,
        form: FusedScan | LadderScan,
        store: Store,
        written: Sequence[SiteCodes],
        place: Place,
        count: int,
    ) -> None:
        super().__init__(body, form, store)
        self.written, self.place, self.count, self.all = written, place, count, padded(self.states)
        self.group = self.all // count
        # Where there are many programs, each waits for its loads while others compute.
        self.ahead = 2 if self.group == 1 else 4
        # A step's inputs are fetched ahead where few programs wait for them.
        self.fetches = self.group > 1
        self.betas, self.integers = ([f"{name}{i}_" for i in range(count)] for name in ("beta", "integer"))
        self.numbers = [f"number{i}_" for i in range(self.parameters().shape[1])]
        self.lifts = bool(form.lift.any())
        half = 2 ** (form.point - 1)
        self.drive = DRIVE + half + 0.5
        #: What is added to a step's sum.
        self.offset = KEPT + DRIVE + half
        self.unit = 2.0 ** (form.point - 14)

    @property
    def channels(self) -> int:
        """Channels of a program."""
        return LANES // self.group

    @property
    def names(self) -> list[str]:
        shared = [*self.betas, *self.integers, *self.numbers, "sum"] if self.fetches else []
        return ["u", "delta", *shared]

    def inputs(self, channel: At, state: At) -> dict[str, tuple[str, At]]:
        return {"u": (self.source.u, channel), "delta": (self.source.delta, channel)}

    def _load(self, prefix: str, index: int, step: str) -> None:
        super()._load(prefix, index, step)
        if self.fetches:
            self._load_shared(prefix, index, self.text.let(f"tl.minimum({step}, {self.rows - 1})"))

    def _load_shared(self, prefix: str, index: int, t: str) -> None:
        """Writes the loads of what is the same for all channels of step t."""
        text, width = self.text, self.parameters().shape[1]
        channel, _ = self._places(t)
        row = text.let(f"{text.place(self.place)} + {channel.row} * {self.place.width}")
        mine = text.let(f"{row} + first")
        integers = "tl.pointer_type(tl.int32), bitcast=True"
        for i in range(0, self.count, FEW):
            self._fetch(f"{mine} + {i}", [f"{prefix}{name}{index}" for name in self.betas[i : i + FEW]])
            pointer = f"({mine} + {self.all + i}).to({integers})"
            self._fetch(pointer, [f"{prefix}{name}{index}" for name in self.integers[i : i + FEW]])
        for i in range(0, width, FEW):
            pointer = f"{self.steps} + ({t}) * {width} + lane * 0 + {i}"
            self._fetch(pointer, [f"{prefix}{name}{index}" for name in self.numbers[i : i + FEW]])
        text.line(f"{prefix}sum{index} = tl.load(({row} + {2 * self.all}).to({integers}))")

    def _fetch(self, pointer: str, names: list[str]) -> None:
        """Writes the loads of numbers beside each other: four at once, or one after another."""
        if len(names) == FEW:
            self.text.line(f"{', '.join(names)} = lanes.four({pointer})")
        else:
            for i, name in enumerate(names):
                self.text.line(f"{name} = tl.load({pointer} + {i})")

    def begin(self) -> None:
        text, form = self.text, self.form
        text.line("image = tl.program_id(0).to(tl.int64)")
        text.line(f"lane = tl.arange(0, {LANES})")
        text.line(f"c = tl.program_id(1) * BLOCK + lane // {self.group}")
        text.line(f"first = lane % {self.group} * {self.count}")
        text.line(f"has_c = c < {self.width}")
        # Lanes beside each other have the same y, and the first one stores it.
        text.line("owns = lane == lane" if self.group == 1 else f"owns = lane % {self.group} == 0")
        for i in range(self.count):
            text.line(f"h{i} = tl.zeros([{LANES}], tl.float32)")
        self.input_channel, self.y_channel = self.by_channel(form.input_channel), self.by_channel(self.y_scale())
        self.steps = text.parameter(self.parameters())
        # Reading and writing codes once here leaves the loads of their scales outside of the loop.
        text.line(f"no_code, no_value = tl.zeros([{LANES}], tl.uint8), tl.zeros([{LANES}], tl.float32)")
        nowhere = At("image", "0", "c", None, "has_c")
        for codes in filter(_by_channel, (self.body.codes_of(self.source.u), self.body.codes_of(self.source.delta))):
            codes.decode(text, "no_code", nowhere)
        for codes in filter(_by_channel, self.written):
            codes.encode(text, "no_value", nowhere)

    def _stored_at(self, channel: At, there: str | None) -> At:
        mask = "owns" if there is None else self.text.let(f"owns & ({there})")
        return replace(channel, token=self.text.let(f"{channel.token} + lane * 0"), has_row=mask)

    def y_scale(self) -> np.ndarray:
        return scale_of_sums(self.form)

    def parameters(self) -> np.ndarray:
        """Returns what each step multiplies and adds, [rows, 4 or 8] float32."""
        raise NotImplementedError

    def powers(self, numbers: list[str], delta: str) -> list[str]:
        """Writes Abar times the ratio of scales for each state of a lane, in multiples of `unit`.

        Arguments:
            numbers: a step's parameters.
        """
        raise NotImplementedError

    def step(self, index: int, t: str, channel: At, state: At) -> str:
        text, form, let = self.text, self.form, self.text.let
        if not self.fetches:
            self._load_shared("", index, t)
        betas, integers, numbers = (
            [f"{x}{index}" for x in names] for names in (self.betas, self.integers, self.numbers)
        )
        u, delta = (self.decoded(f"{name}{index}", getattr(self.source, name), channel) for name in ("u", "delta"))
        g = let(f"k.whole((({delta} * {u}) * {self.input_channel}) * {numbers[0]})")
        g = let(f"k.clamp({g}, -{INPUT_HIGH}.0, {INPUT_HIGH}.0) * {2.0**-15}")
        powers = self.powers(numbers, delta)
        total = text.fresh()
        text.line(f"{total} = tl.zeros([{LANES}], tl.int32)")
        ends = f"{form.state_low}, {form.state_high}"
        less = (self.offset - 2 ** (form.point - 1)) * 2.0**-form.point
        for i in range(self.count):
            kept = text.fresh()
            text.line(f"{kept} = lanes.kept(h{i}, {powers[i]}, {numbers[2]}, {self.lifts}, {KEPT_HIGH}.0, {KEPT})")
            drive = let(f"lanes.floor_fma({g}, {betas[i]}, {self.drive})")
            both = text.fresh()
            text.line(f"{both} = lanes.floor_add({kept}, {drive})")
            text.line(f"{total} += {both}.to(tl.int32, bitcast=True) * {integers[i]}")
            text.line(f"h{i} = lanes.rounded({both}, {2.0**-form.point}, {less}, {ends})")
        bits = int(np.float32(self.offset).view(np.int32))
        y = text.fresh()
        text.line(f"{y} = (lanes.sum_of_group({total}, {self.group}) - {bits} * sum{index}).to(tl.float32)")
        return let(f"({y} * {self.y_channel}) * {numbers[1]}")


class LaneFused(LaneText):
    """A scan that computes 2^-(d a) for each state."""

    def begin(self) -> None:
        super().begin()
        text, form = self.text, self.form
        self.delta_scale = self.by_channel(form.delta_scale)
        a = np.zeros((self.width, self.all), np.int32)
        a[:, : self.states] = form.a
        name = text.parameter(a)
        self.a = [text.load(f"{name} + c * {self.all} + (first + {i})", "has_c") for i in range(self.count)]

    def parameters(self) -> np.ndarray:
        form = self.form
        power = form.power.astype(np.float32) + np.array([WHOLE, WHOLE, WHOLE, 0], np.float32)
        columns = (form.input_step, form.y_step, np.ldexp(np.float32(1), form.lift), power, np.zeros(len(power)))
        return self.for_rows(np.column_stack(columns).astype(np.float32))

    def powers(self, numbers: list[str], delta: str) -> list[str]:
        form, let = self.form, self.text.let
        d = let(f"tl.maximum(s.to_int16({delta} * {self.delta_scale}), 0)")
        options = f"{', '.join(numbers[3:7])}, {form.shift}, {self.unit}, {form.point - 14}"
        return [let(f"lanes.decay({d} * {a}, {options})") for a in self.a]


class LaneLadder(LaneText):
    """A scan whose decays are powers of one number a channel."""

    def begin(self) -> None:
        super().begin()
        self.rate = self.by_channel(self.form.rate)

    def parameters(self) -> np.ndarray:
        form = self.form
        columns = (form.input_step, form.y_step, np.ldexp(np.float32(1), form.lift), form.ratio)
        return self.for_rows(np.column_stack(columns).astype(np.float32))

    def powers(self, numbers: list[str], delta: str) -> list[str]:
        let, share = self.text.let, 2.0**-15
        r = let(f"k.clamp(k.whole(k.exp2({delta} * {self.rate}) * 32768.0), -32768.0, 32767.0)")
        square = self._product(r, let(f"{r} * {share}"), 1.0)
        square_part = let(f"{square} * {share}")
        fourth = let(f"{self._product(square, square_part, 1.0)} * {share}")
        eighth = let(f"{self._product(let(f'{fourth} * 32768.0'), fourth, 1.0)} * {share}")
        ratio = let(f"{numbers[3]} * {share}")
        found = [self._product(let(f"{x} * {self.unit}"), ratio) for x in (r, square)]
        found += [self._product(x, square_part) for x in found]
        if self.group == 1:
            found += [self._product(x, fourth) for x in found]
            while len(found) < self.count:
                found += [self._product(x, eighth) for x in found[-8:]]
            return found[: self.count]
        # The states of a lane begin at a multiple of four.
        found = self._where("first % 8 == 4", found, fourth)
        for group in range(1, -(-self.all // 8)):
            found = self._where(f"first >= {8 * group}", found, eighth)
        return found

    def _product(self, a: str, b: str, unit: float | None = None) -> str:
        return self.text.let(f"lanes.product({a}, {b}, {self.unit if unit is None else unit})")

    def _where(self, condition: str, x: list[str], factor: str) -> list[str]:
        let = self.text.let
        return [let(f"tl.where({condition}, {self._product(value, factor)}, {value})") for value in x]


def _by_channel(codes: SiteCodes | None) -> TypeGuard[SiteCodes]:
    """Returns whether codes have the same scales and zero points in every row."""
    return codes is not None and codes.codec.step_token is None and not codes.codec.zero_by_token


#: Writes a scan, by the type of its form.
_TEXTS: dict[type, type[LaneText]] = {FusedScan: LaneFused, LadderScan: LaneLadder}


def lane_text(body: Body, form: Form, store: Store, written: Sequence[SiteCodes], place: Place, count: int) -> LaneText:
    """Returns a scan with `count` states in a lane, whose kernel is written.

    Arguments:
        store: writes what becomes of y at rows and channels.
        written: the codes in which it does.
        place: what `inputs_text` has computed.
    """
    assert isinstance(form, FusedScan | LadderScan)
    text = _TEXTS[type(form)](body, form, store, written, place, count)
    text.write()
    return text
