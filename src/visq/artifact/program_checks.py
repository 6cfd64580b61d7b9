"""Checks an artifact's program against its sites and tensors, without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from visq.artifact.packing import unpack
from visq.artifact.schema import ArtifactConfig, QuantizerRecord
from visq.artifact.site_checks import check_sizes
from visq.errors import VisqError, need
from visq.integer.codecs import make_codec
from visq.integer.consistency import register_widths
from visq.integer.operations import (
    Attention,
    Concat,
    Constant,
    Conv1d,
    Conv2d,
    DenseConv2d,
    LayerNorm,
    Linear,
    Load,
    Operation,
    RmsNorm,
    Rotate,
    Round,
    Scan,
    Store,
    WithConstant,
    inputs,
)
from visq.integer.program import Program
from visq.integer.weights import Weight, coded_weight, made, stored_ladder
from visq.native.memory import row_bytes

#: The most bytes that one image and its tensors may take at once. No network here comes near it.
MAX_IMAGE_BYTES = 1 << 30

#: Matches the layers that read their sequence from the last row to the first, by family.
BACKWARD = {"vim": re.compile(r"_b(_log)?(\.|$)"), "vmamba": re.compile(r"\.directions\.[23](\.|$)")}

Parts = Mapping[str, Mapping[str, np.ndarray]]


class ProgramCheck:
    """Checks of one program.

    Arguments:
        quantizers, parts: the record and the tensors of every quantized site, by name.
        parameters: the tensors that belong to no site, by name.
    """

    def __init__(
        self,
        config: ArtifactConfig,
        program: Program,
        quantizers: Mapping[str, QuantizerRecord],
        parts: Parts,
        parameters: Mapping[str, np.ndarray],
    ) -> None:
        self.config, self.program = config, program
        self.quantizers, self.parts, self.parameters = quantizers, parts, parameters
        self.backward = BACKWARD.get(config.architecture.family)
        self.used: set[str] = set()

    def run(self) -> None:
        """Checks that the program fits the sites and tensors. Raises VisqError that names the operation or site."""
        program = self.program
        written = {s.tensor for operation in program.operations for s in operation.body if isinstance(s, Store)}
        for name, decl in program.tensors.items():
            need(name in written, f"program.tensors.{name} is written by no operation")
            if decl.site is not None:
                self._activation(decl.site, decl.length or decl.rows, decl.width, f"program.tensors.{name}")
                self._direction(f"program.tensors.{name}", decl.site, decl.reverse)
        for operation in program.operations:
            where = f"program: operation {operation.name}"
            self._source(operation, where)
            self._body(operation, where)
        unused = sorted(self.config.sites.keys() - self.used)
        need(not unused, f"sites.{unused[0] if unused else ''} is used by no operation of the program")
        strange = sorted(self.parameters.keys() - self.used)
        need(not strange, f"unexpected tensors: {', '.join(strange[:5])}; no operation of the program uses them")
        found = image_bytes(program)
        need(found <= MAX_IMAGE_BYTES, f"program: an image takes {found:,} bytes at once, at most {MAX_IMAGE_BYTES:,}")

    # --- sites and tensors that operations name

    def _source(self, operation: Operation, where: str) -> None:
        source = operation.source
        if isinstance(source, Linear | Conv1d | Conv2d | DenseConv2d):
            owner = source.weight.rpartition(".")[0]
            need(operation.name == owner, f"{where} has the weight {source.weight}")
            self._weight(source.weight, where)
            self._rank(source, where)
            if source.bias is not None:
                self._parameter(source.bias, where)
        if isinstance(source, Conv1d):
            self._direction(where, source.weight, source.reverse)
        if isinstance(source, Scan):
            states = self.program.tensors[source.B].width
            self._constant(source.A, ((operation.width, states),), where)
            self._ladder(source.A, where)
            self._direction(where, source.A.name, source.reverse)
            for site, kinds in ((source.abar, "quantizer"), (source.bbar, "quantizer"), (source.h, "state")):
                if site is not None:
                    self._site(site, "inner", where)
                    found = self.quantizers[site].kind
                    need(found == kinds, f"sites.{site}: quantizer.kind is {found}, the scan's is {kinds}")
                    self._direction(where, site, source.reverse)
            self._scan_sizes(operation, source)
        if isinstance(source, Attention):
            for site in filter(None, (source.scores, source.probs)):
                self._activation(site, source.length, source.heads * source.length, where)
                need(self.quantizers[site].kind == "quantizer", f"{where} rounds by the rotated {site}")
        if isinstance(source, Concat):
            for part in source.parts:
                if isinstance(part, Constant):
                    self._constant(part, ((1, 1, operation.width),), where)

    def _ladder(self, A: Constant, where: str) -> None:
        """Checks that a decay ladder is used as A = -exp(A_log), and by nothing else."""
        record = self.config.sites.get(A.name)
        plain = record is None or record.quantizer.get("kind") != "ladder" or A.functions == ("exp", "neg")
        need(plain, f"{where} takes {A.name} by {', '.join(A.functions) or 'itself'}, a ladder's A is -exp(A_log)")

    def _rank(self, source: Linear | Conv1d | Conv2d | DenseConv2d, where: str) -> None:
        """Checks the axes of a layer's weight.

        A linear takes [N, K], or [N, channels, kernel, kernel] over windows; a 1-D convolution takes three axes, a 2-D
        one [N, channels, kernel, kernel], and a dense one [N, channels, *kernel].
        """
        record = self.config.sites.get(source.weight)
        codes = None if record is None else record.codes
        shape = self.parameters[source.weight].shape if codes is None else codes.shape
        square = len(shape) == 4 and shape[2] == shape[3]
        fits = {
            Linear: square or len(shape) == 2,
            Conv1d: len(shape) == 3,
            Conv2d: square,
            DenseConv2d: len(shape) == 4,
        }[type(source)]
        need(fits, f"{source.weight} is {list(shape)}, not the shape of {where}")

    def _scan_sizes(self, operation: Operation, source: Scan) -> None:
        states = self.program.tensors[source.B].width
        if source.h is not None:
            parts = self.parts[source.h]
            fits = parts["step"].size in (1, source.length or operation.rows)
            fits = fits and (parts["channel"].size, parts["state"].size) == (operation.width, states)
            need(fits, f"sites.{source.h}: step, channel and state are not those of {operation.name}")
        for site in filter(None, (source.abar, source.bbar)):
            smooth = self.parts[site].get("smooth")
            fits = smooth is None or (smooth.size == operation.width and site == source.bbar)
            need(fits, f"sites.{site}: smooth is not that of {operation.name}")

    def _body(self, operation: Operation, where: str) -> None:
        widths = register_widths(operation, self.program.tensors)
        rotated: dict[int, str] = {}  # register -> the site in whose rotated coordinates it is
        for step in operation.body:
            for constant in _constants(step):
                self._constant(constant, _shapes(step, operation.rows, widths), where)
            if isinstance(step, Round):
                self._activation(step.site, step.length or operation.rows, widths[step.src], where)
                self._direction(where, step.site, step.reverse)
                need(self.quantizers[step.site].kind == "quantizer", f"{where} rounds by the rotated {step.site}")
            if isinstance(step, Rotate):
                stored = (decl.length for decl in self.program.tensors.values() if decl.site == step.site)
                self._activation(step.site, next(stored, None) or operation.rows, widths[step.src], where)
                rotated[step.dst] = step.site
            elif isinstance(step, Store):
                site = self.program.tensors[step.tensor].site
                expected = site if site is not None and self.quantizers[site].kind == "rotated" else None
                need(rotated.get(step.src) == expected, f"{where}: {step.tensor} is not in the coordinates of {site}")
            else:
                read = {getattr(step, key, None) for key in ("src", "a", "b")}
                need(read.isdisjoint(rotated), f"{where} computes with rotated values")
            if isinstance(step, Load):
                self._not_rotated(step.tensor, where)
        for name in inputs(operation.source):
            if not isinstance(operation.source, Linear):
                self._not_rotated(name, where)

    def _not_rotated(self, tensor: str, where: str) -> None:
        site = self.program.tensors[tensor].site
        plain = site is None or self.quantizers[site].kind == "quantizer"
        need(plain, f"{where} reads {tensor}, which is rotated and which only a linear can read")

    def _site(self, site: str, kind: str, where: str) -> None:
        record = self.config.sites.get(site)
        if record is None:
            raise VisqError(f"{where} names site {site}, which the artifact does not quantize")
        need(record.kind == kind, f"sites.{site}.kind is {record.kind}, {where} uses it as {kind}")
        self.used.add(site)

    def _activation(self, site: str, rows: int, width: int, where: str) -> None:
        self._site(site, "activation", where)
        check_sizes(site, self.quantizers[site], self.parts[site], rows, width)

    def _weight(self, name: str, where: str) -> None:
        if name in self.config.sites:
            self._site(name, "weight", where)
        else:
            self._parameter(name, where)

    def _parameter(self, name: str, where: str) -> None:
        need(name in self.parameters, f"tensor {name} is missing, which {where} needs")
        self.used.add(name)

    def _constant(self, constant: Constant, shapes: tuple[tuple[int, ...], ...], where: str) -> None:
        """Checks that a constant has one of `shapes` and that functions of it are finite."""
        self._weight(constant.name, where)
        value = self._value(constant.name)
        shape = list(value.shape)
        if constant.grid is not None:
            need(len(shapes) > 1, f"{where} takes {constant.name} as a map; only what is added to rows may be one")
            rows, width = shapes[1]
            fits = math.prod(constant.grid) == rows
            need(fits, f"{where} has {rows} rows, the positions of {constant.name} are {constant.grid}")
            side = math.isqrt(value.size // width)
            shapes = ((1, max(side, 1) ** 2, width),)
        expected = " or ".join(str(list(found)) for found in shapes)
        need(value.shape in shapes, f"tensor {constant.name} is {shape}, {where} needs {expected}")
        if constant.functions:
            with np.errstate(over="ignore"):
                finite = np.isfinite(np.exp(value.astype(np.float64)).astype(np.float32)).all()
            need(finite, f"tensor {constant.name}: its exponential leaves float32")

    def _value(self, name: str) -> np.ndarray:
        """Returns a parameter as it is stored, or the float32 values of a small weight's codes."""
        if name in self.parameters:
            return self.parameters[name]
        record, parts = self.config.sites[name], self.parts[name]
        assert record.codes is not None  # weights have codes
        codes = unpack(parts["codes"], record.codes.bits, record.codes.shape, record.codes.offset)
        if record.quantizer.get("kind") == "ladder":
            return stored_ladder(parts, codes)
        found = coded_weight(codes, made(make_codec, name, record.quantizer, dict(parts)))
        return found.decoded() if isinstance(found, Weight) else found

    def _direction(self, where: str, name: str, reverse: bool) -> None:
        """Checks that a layer of a known family runs in its own direction; `name` is its site or parameter."""
        if self.backward is not None:
            right = (self.backward.search(name) is not None) == reverse
            need(right, f"{where} runs {'backward' if reverse else 'forward'}, which is not the direction of {name}")


def _constants(step: object) -> Iterator[Constant]:
    """Yields the constants of a row instruction."""
    if isinstance(step, WithConstant):
        yield step.constant
    elif isinstance(step, RmsNorm):
        yield step.weight
    elif isinstance(step, LayerNorm):
        yield step.weight
        yield step.bias


def _shapes(step: object, rows: int, widths: Mapping[int, int]) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes that a row instruction's constants may have."""
    width = widths[step.src] if isinstance(step, WithConstant | RmsNorm | LayerNorm) else 0
    return ((width,), (rows, width), (1, rows, width)) if isinstance(step, WithConstant) else ((width,),)


def image_bytes(program: Program) -> int:
    """Returns the most bytes that one image and its tensors take at once while the program runs in order."""
    last: dict[str, int] = {program.output: len(program.operations)}
    for index, operation in enumerate(program.operations):
        for name in (*inputs(operation.source), *(s.tensor for s in operation.body if isinstance(s, Load | Store))):
            last[name] = max(index, last.get(name, 0))
    now = most = 4 * program.channels * program.height * program.width
    sizes: dict[str, int] = {}
    for index, operation in enumerate(program.operations):
        for step in operation.body:
            if isinstance(step, Store):
                decl = program.tensors[step.tensor]
                sizes[step.tensor] = decl.rows * row_bytes(decl.width, decl.site is not None)
                now += sizes[step.tensor]
        most = max(most, now)
        now -= sum(sizes.pop(name) for name in [name for name in sizes if last[name] == index])
    return most
