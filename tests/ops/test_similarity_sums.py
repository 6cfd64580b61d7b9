"""Tests similarity sums against their oracle."""

from __future__ import annotations

import pytest
import torch

from tests.ops.helpers import ISAS, assert_same_bits, needs_cpp, torch_threads
from visq.errors import VisqError
from visq.ops import _native, similarity_sums
from visq.ops.similarity_sums import naive

CASES = [("cosine", False), ("l1", False), ("l2", False), ("l2", True)]
SHAPES = [(1, 1, 1, 1), (5, 7, 3, 16), (33, 17, 4, 100), (18, 40, 2, 23)]  # R, C, G, K


@needs_cpp
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=["x".join(map(str, s)) for s in SHAPES])
@pytest.mark.parametrize(("metric", "weighted"), CASES)
@pytest.mark.parametrize("axis", ["channel", "token"])
def test_matches_naive(axis: str, metric: str, weighted: bool, shape: tuple[int, int, int, int], isa: str) -> None:
    R, C, G, K = shape
    # x is a multiple of 1/64 and scales are powers of two, so both sides compute the same codes.
    x = torch.randint(-256, 257, (R, C)).float() / 64
    reference, weight = torch.randn(R, C), torch.rand(R, C) if weighted else None
    candidates = 2.0 ** torch.randint(-6, 2, (G, K)).float()
    labels = torch.randint(0, G, (R if axis == "token" else C,), dtype=torch.int32)
    with _native.use_isa(isa):
        actual = similarity_sums(x, reference, labels, candidates, -8, 7, axis, metric=metric, weight=weight)  # type: ignore[arg-type]
    expected = naive.forward(x, reference, labels, candidates, -8, 7, axis, metric, weight)
    for a, e in zip(actual.values(), expected, strict=False):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@needs_cpp
@pytest.mark.parametrize("metric", ["cosine", "l1", "l2"])
def test_any_scale(metric: str) -> None:
    x, candidates = torch.randn(40, 30), torch.rand(3, 50) * 0.2 + 0.01
    labels = torch.arange(30) % 3
    actual = similarity_sums(x, x, labels, candidates, -128, 127, "channel", metric=metric)  # type: ignore[arg-type]
    expected = naive.forward(x, x, labels, candidates, -128, 127, "channel", metric, None)
    for a, e in zip(actual.values(), expected, strict=False):
        # Both sides compute x * (1 / s) as one product, so the codes agree. Only the order of sums differs.
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@needs_cpp
def test_same_bits_for_any_thread_count() -> None:
    x, candidates, labels = torch.randn(100, 30), torch.rand(2, 20) + 0.01, torch.arange(30) % 2
    results = []
    for count in (1, 2, 3):
        with torch_threads(count):
            results.append(similarity_sums(x, x, labels, candidates, -8, 7, "channel"))
    for other in results[1:]:
        for name, value in results[0].items():
            assert_same_bits(value, other[name])


def test_a_group_without_columns_sums_to_zero() -> None:
    sums = similarity_sums(
        torch.randn(3, 4), torch.randn(3, 4), torch.zeros(4, dtype=torch.int32), torch.ones(2, 5), -8, 7, "channel"
    )
    assert (sums["dot"][:, 1] == 0).all() and (sums["sq"][:, 1] == 0).all()


@needs_cpp
@pytest.mark.parametrize("isa", ISAS)
def test_nan_stays_in_its_row_and_group(isa: str) -> None:
    x = torch.randn(4, 6)
    x[2, 1] = float("nan")
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    with _native.use_isa(isa):
        dot = similarity_sums(x, torch.randn(4, 6), labels, torch.ones(2, 3), -8, 7, "channel")["dot"]
    expected = torch.zeros_like(dot, dtype=torch.bool)
    expected[2, 1] = True
    assert torch.equal(dot.isnan(), expected)


def test_errors_name_the_argument() -> None:
    x, c, labels = torch.randn(3, 4), torch.ones(2, 5), torch.zeros(4, dtype=torch.int32)
    with pytest.raises(VisqError, match=r"reference must be \[R, C\] = \[3, 4\], got \[3, 5\]"):
        similarity_sums(x, torch.randn(3, 5), labels, c, -8, 7, "channel")
    with pytest.raises(VisqError, match=r"labels must be int32 \[R\] = \[3\]"):
        similarity_sums(x, x, labels, c, -8, 7, "token")
    with pytest.raises(VisqError, match=r"labels must lie in 0..1 \(candidates has 2 rows\), got 0..2"):
        similarity_sums(x, x, torch.tensor([0, 1, 2, 0]), c, -8, 7, "channel")
    with pytest.raises(VisqError, match="candidates must be positive"):
        similarity_sums(x, x, labels, c * 0, -8, 7, "channel")
    with pytest.raises(VisqError, match='weight goes with metric "l2" only'):
        similarity_sums(x, x, labels, c, -8, 7, "channel", weight=x)
    with pytest.raises(VisqError, match="axis must be"):
        similarity_sums(x, x, labels, c, -8, 7, "row")  # type: ignore[arg-type]


def test_opcheck() -> None:
    x = torch.randn(3, 4)
    arguments = (x, x, torch.zeros(4, dtype=torch.int32), torch.ones(2, 5), -8, 7, "channel", "cosine", None)
    torch.library.opcheck(torch.ops.visq.similarity_sums.default, arguments)
