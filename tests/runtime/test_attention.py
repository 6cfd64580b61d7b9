"""Checks self-attention, windows, convolutions that look ahead, and `append`: oracle and C++ engine."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.runtime.agreement import check
from tests.runtime.programs import Maker, quantizer, weight
from tests.runtime.test_maps import decoded
from visq.errors import VisqError
from visq.integer import operations as ir
from visq.integer.arithmetic import gelu_tanh, relu
from visq.integer.attention import FloatAttention, IntegerAttention
from visq.integer.codecs import Codec
from visq.native.extension import _C, available
from visq.native.flat_file import FlatFile
from visq.runtime.operation_forms import form_of, reason
from visq.runtime.oracle import Oracle

pytestmark = pytest.mark.skipif(not available(), reason="the C++ extension is not installed")

#: (rows of a sequence, heads, channels of a head, sequences), none a multiple of a vector.
SHAPES = [(1, 1, 1, 1), (5, 3, 7, 1), (17, 2, 16, 2), (35, 1, 40, 1), (64, 2, 33, 1), (3, 4, 5, 4)]
#: Kinds of the codes of q, k, v, scores and probabilities.
INTEGERS = [
    ("tensor", "tensor", "tensor", None, "unsigned"),
    ("token asymmetric", "token", "channel asymmetric", None, "token"),
    ("tensor asymmetric", "token one zero", "tensor asymmetric", "token asymmetric", "unsigned"),
    ("tensor 4 bits", "tensor 4 bits", "channel", "tensor", "tensor 4 bits"),
    ("tensor", "tensor", "tensor", "table", "unsigned"),
]
FLOATS = [
    (None, None, None, None, None),
    ("tensor", "tensor", "tensor", None, None),
    ("channel", "tensor", "token", "channel", "table"),
    ("table", "tensor", "tensor", None, "unsigned"),
]


def attention(
    kinds: tuple[str | None, ...], length: int, heads: int, depth: int, sequences: int
) -> tuple[Maker, str, list[str]]:
    """Returns a program of one attention over random q, k, v, its output, and the names of the three."""
    maker = Maker(length + depth)
    rows, width, keys = length * sequences, heads * depth, heads * length
    inner = [kind if kind is None or sequences == 1 else kind.replace("token", "tensor") for kind in kinds]
    names = [maker.random(rows, width, kind) for kind in inner[:3]]
    scores = None if inner[3] is None else maker.quantizer(inner[3], length, keys)
    probs = None if inner[4] is None else maker.quantizer(inner[4], length, keys, top=2.2)
    q, k, v = names
    maker.operation(ir.Attention(q=q, k=k, v=v, heads=heads, length=length, scores=scores, probs=probs), rows, width)
    return maker, maker.store(), names


def reference(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, sequences: int, probs: Codec | None = None
) -> np.ndarray:
    """Returns attention in float64, with probabilities rounded by a codec if there is one."""
    parts = (torch.from_numpy(x).double().reshape(sequences, -1, heads, x.shape[1] // heads) for x in (q, k, v))
    queries, keys, values = (part.transpose(1, 2) for part in parts)
    p = (queries @ keys.mT * queries.shape[-1] ** -0.5).softmax(-1)
    if probs is not None:
        tokens = np.arange(p.shape[-1])
        rows = p.transpose(1, 2).flatten(2).float().numpy()
        p = torch.from_numpy(probs.decode(probs.encode(rows, tokens), tokens)).double()
        p = p.unflatten(-1, (heads, -1)).transpose(1, 2)
    return (p @ values).transpose(1, 2).reshape(q.shape).numpy()


@pytest.mark.parametrize("kinds", INTEGERS, ids=range(len(INTEGERS)))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_in_integers(kinds: tuple[str | None, ...], shape: tuple[int, int, int, int]) -> None:
    maker, output, names = attention(kinds, *shape)
    program = maker.program(output)
    form = form_of(program, program.operations[-1], maker.bundle)
    assert isinstance(form, IntegerAttention), reason(form)
    oracle = check(maker, output)
    if kinds[3] is None and "4 bits" not in str(kinds):
        q, k, v = (decoded(maker, oracle, name) for name in names)
        exact = reference(q, k, v, shape[1], shape[3], form.probs)
        one_code = float(np.abs(v).max() * form.p_scale.max() * form.probs.step_channel.max())
        np.testing.assert_allclose(oracle.tensors[output], exact, atol=2 * one_code)  # a tie may round otherwise
        assert np.abs(oracle.tensors[output] - exact).mean() < 0.02 * one_code


@pytest.mark.parametrize("kinds", FLOATS, ids=range(len(FLOATS)))
@pytest.mark.parametrize("shape", SHAPES[1:5], ids=str)
def test_attention_in_float32(kinds: tuple[str | None, ...], shape: tuple[int, int, int, int]) -> None:
    maker, output, names = attention(kinds, *shape)
    program = maker.program(output)
    form = form_of(program, program.operations[-1], maker.bundle)
    assert isinstance(form, FloatAttention) and reason(form) == form.reason
    oracle = check(maker, output)
    if kinds[3:] == (None, None):
        exact = reference(*(decoded(maker, oracle, name) for name in names), shape[1], shape[3])
        np.testing.assert_allclose(oracle.tensors[output], exact, rtol=1e-5, atol=1e-5)


def test_attention_starts_a_phase_and_others_follow_it() -> None:
    """A body of its own, a linear behind it, and two attentions in a row that share nothing."""
    maker = Maker(3)
    x = maker.random(9, 6, "tensor")
    site = maker.quantizer("unsigned", 9, 18, top=0.6)
    for _ in range(2):
        maker.operation(ir.Attention(q=x, k=x, v=x, heads=2, length=9, probs=site), 9, 6)
        activated = maker.step(ir.Unary(op="gelu_tanh", dst=1, src=0), 6)
        codes = maker.store(activated, "tensor")
        maker.bundle.sites["w"] = weight(6, (6,), maker.rng)
        maker.operation(ir.Linear(input=codes, weight="w"), 9, 6)
        x = maker.store(maker.step(ir.Unary(op="relu", dst=1, src=0), 6), "tensor")
    check(maker, x)


@pytest.mark.parametrize("kind", [None, "tensor asymmetric", "channel asymmetric"])
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (13, 13), (12, 4), (6, 1), (10, 2)])
def test_convolutions_that_look_ahead(kind: str | None, taps: int, rows: int, length: int) -> None:
    width = 19
    maker = Maker(taps + rows)
    x = maker.random(rows, width, kind)
    maker.bundle.sites["w"] = weight(width, (1, taps), maker.rng)
    outputs = []
    for ahead in (None, *range(1, taps)):
        for reverse in (False, True):
            source = ir.Conv1d(input=x, weight="w", ahead=ahead, length=length, reverse=reverse)
            maker.operation(source, rows, width)
            outputs.append(((ahead or 0, reverse), maker.store()))
    oracle = check(maker, outputs[-1][1], threads=(1,))
    sequences = torch.from_numpy(decoded(maker, oracle, x)).double().reshape(-1, length, width).mT
    kernel = torch.from_numpy(maker.bundle.sites["w"].decoded()).double()
    for (ahead, reverse), name in outputs:
        inputs = sequences.flip(2) if reverse else sequences
        expected = F.conv1d(F.pad(inputs, (taps - 1 - ahead, ahead)), kernel, groups=width)
        expected = (expected.flip(2) if reverse else expected).mT.reshape(rows, width)
        np.testing.assert_allclose(oracle.tensors[name], expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [None, "token asymmetric", "table"])
@pytest.mark.parametrize(("side", "window", "width"), [(1, 1, 1), (6, 3, 17), (5, 2, 16), (3, 4, 3)])
def test_windows_and_back(kind: str | None, side: int, window: int, width: int) -> None:
    maker = Maker(side)
    x = maker.random(side * side, width, kind)
    across = -(-side // window)
    maker.operation(ir.EnterWindows(input=x, side=side, window=window), across**2 * window**2, width)
    inside = maker.store()
    maker.operation(ir.LeaveWindows(input=inside, side=side, window=window), side * side, width)
    output = maker.store()
    oracle = check(maker, output)
    assert np.array_equal(oracle.tensors[output], decoded(maker, oracle, x))
    tokens = oracle.tensors[inside].reshape(across, across, window, window, width)
    missing = across * window - side
    padded = np.pad(oracle.tensors[output].reshape(side, side, width), ((0, missing), (0, missing), (0, 0)))
    for row, column in np.ndindex(across, across):
        at = (slice(row * window, (row + 1) * window), slice(column * window, (column + 1) * window))
        assert np.array_equal(tokens[row, column], padded[at])


@pytest.mark.parametrize("widths", [(1, 1), (16, 3), (5, 31), (40, 24)])
def test_append(widths: tuple[int, int]) -> None:
    maker = Maker(sum(widths))
    a, b = (maker.random(11, width, kind) for width, kind in zip(widths, (None, "tensor"), strict=True))
    maker.operation(ir.Concat(parts=((a, 0, 11),)), 11, widths[0])
    loaded = maker.step(ir.Load(dst=1, tensor=b), widths[1])
    rectified = maker.step(ir.Unary(op="relu", dst=2, src=loaded), widths[1])
    both = maker.step(ir.Append(dst=3, a=0, b=rectified), sum(widths))
    part = maker.step(ir.Slice(dst=4, src=both, offset=widths[0], width=widths[1]), widths[1])
    output = maker.store(both, "channel asymmetric")
    maker.store(maker.step(ir.Append(dst=5, a=part, b=both), widths[1] + sum(widths)))
    oracle = check(maker, output)
    last = oracle.tensors[list(maker.tensors)[-1]]
    assert np.array_equal(last[:, widths[1] : widths[1] + widths[0]], decoded(maker, oracle, a))
    assert np.array_equal(last[:, : widths[1]], np.maximum(decoded(maker, oracle, b), 0))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"heads": 4}, "heads do not share"),
        ({"length": 4}, "no sequences of 4"),
        ({"k": "t1"}, "t1 has another shape"),
    ],
)
def test_programs_that_do_not_fit(source: dict[str, object], message: str) -> None:
    maker = Maker()
    x, _ = maker.random(6, 6), maker.random(5, 6)
    fields: dict[str, object] = {"q": x, "k": x, "v": x, "heads": 2, "length": 6} | source
    fields |= {"k": list(maker.tensors)[-1]} if "k" in source else {}
    maker.operation(ir.Attention.model_validate(fields), 6, 6)
    with pytest.raises(ValueError, match=message.replace("t1", ".*")):
        maker.program(maker.store())


def test_token_scales_of_another_length() -> None:
    maker, output, _ = attention(("token", "tensor", "tensor", None, "unsigned"), 5, 2, 3, 1)
    name = maker.tensors[maker.operations[-1]["source"].q].site
    assert name is not None
    maker.bundle.sites[name] = quantizer("token", 4, 6, maker.rng)
    with pytest.raises(VisqError, match="scales are for another number of tokens"):
        Oracle(maker.program(output), maker.bundle)


FAULTS = [
    ("int_attention", (2, 5), {"probs": -1}, "its probabilities have no codes"),
    ("int_attention", (3, 5), {}, "its 4 channels are not 3 heads"),
    ("int_attention", (2, 4), {}, "its 5 rows are not sequences of 4"),
    ("int_attention", (2, 5), {"q": 1}, "tensor 1 .its q. has no codes"),
    ("int_attention", (2, 5), {"y": 0}, "does not take its result"),
    ("int_attention", (2, 5), {"probs": 0}, "codec 0 is for"),
    ("int_attention", (2, 5), {"probs": 7}, "codec 7 is none"),
    ("int_attention", (2, 5), {"scale": np.ones(3, np.float32)}, "q_scale has 3 elements, not 5"),
    ("enter_windows", (0, 3, 2), {}, "tensor 0 has 5 rows, not 9"),
    ("leave_windows", (0, 0, 2), {}, "side is 0"),
    ("reach", (1, 5), {}, "no operation was started"),
]


@pytest.mark.parametrize(("call", "arguments", "changes", "message"), FAULTS, ids=range(len(FAULTS)))
def test_records_that_do_not_fit(
    call: str, arguments: tuple[int, ...], changes: dict[str, object], message: str
) -> None:
    """What the engine refuses in a file that names these operations; codec 1 fits the probabilities."""
    file, ones, none = FlatFile(1, 4), np.ones(16, np.float32), np.zeros(0, np.float32)
    for width in (4, 10):
        vectors = (ones[:width], ones[:width], ones[:5], ones[:5], none, 0 * ones[:5])
        file.add_codec(width, 5, *vectors, 0.0, 255.0, none, none)
    for index, codec in enumerate((0, -1)):
        file.add_tensor(5, 4, 128 * index, codec)
    if call == "int_attention":
        given = {"q": 0, "y": 1, "probs": 1, "scale": ones[:5]} | changes
        scales = (given["scale"], ones[:5], ones[:4], ones[:5])
        file.add(call, given["q"], 0, 0, given["y"], *arguments, *scales, -1, given["probs"])
    else:
        file.add(call, *arguments)
    file.add("finish", 1024, 1)
    with pytest.raises(ValueError, match=message):
        _C.Engine("scalar", file.bytes())


def test_relu_and_gelu_by_tanh_are_those_of_pytorch() -> None:
    x = np.concatenate([np.linspace(-12, 12, 4001), [-0.0, 1e12]]).astype(np.float32)
    expected = F.gelu(torch.from_numpy(x).double(), approximate="tanh").numpy()
    np.testing.assert_allclose(gelu_tanh(x), expected, rtol=1e-6, atol=1e-6)
    assert np.array_equal(relu(x), np.maximum(x, 0))
    assert np.isnan(relu(np.array([np.nan], np.float32))).all()
    values = gelu_tanh(np.linspace(0, 5, 100, dtype=np.float32))
    assert all(a < b for a, b in pairwise(values))
