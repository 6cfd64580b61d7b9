"""Estimators against brute force written out in the test."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.quant.estimators import make_estimator
from visq.quant.estimators.similarity import CANDIDATES
from visq.quant.quantizer import Quantizer


def estimate(spec: Spec, batches: list[Tensor], kind: str = "activation", smooth: Tensor | None = None) -> Quantizer:
    estimator = make_estimator(spec, kind, smooth)
    for _ in range(estimator.passes):
        for batch in batches:
            estimator.observe(batch)
        estimator.end_pass()
    return estimator.result()


@pytest.fixture
def batches() -> list[Tensor]:
    """Three batches [4, 6, 8] with channel- and token-dependent magnitudes and a few outliers."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(-1, 1, 8) * torch.logspace(-0.5, 0.5, 6)[:, None]
    x = torch.randn(12, 6, 8, generator=generator) * spread
    x[3, 2, 1] *= 30
    return list(x.split(4))


@pytest.mark.parametrize(("granularity", "axes"), [("tensor", (0, 1, 2)), ("channel", (0, 1)), ("token", (0, 2))])
def test_minmax_uses_the_whole_range(batches: list[Tensor], granularity: str, axes: tuple[int, ...]) -> None:
    x = torch.cat(batches)
    symmetric = estimate(Spec(bits=8, granularity=granularity), batches)
    torch.testing.assert_close(symmetric.scale, x.abs().amax(axes).view(-1) / 127)
    asymmetric = estimate(Spec(bits=8, symmetric=False, granularity=granularity), batches)
    torch.testing.assert_close(asymmetric.scale, (x.amax(axes).clamp_min(0) - x.amin(axes).clamp_max(0)).view(-1) / 255)
    assert (asymmetric(x) - x).abs().max() <= asymmetric.scale.max() * 1.01


def test_minmax_of_a_weight_is_per_output_channel() -> None:
    weight = torch.randn(5, 3, 2, 2)
    quantizer = estimate(Spec(bits=4, granularity="channel"), [weight], kind="weight")
    torch.testing.assert_close(quantizer.scale, weight.flatten(1).abs().amax(1) / 7)
    assert quantizer(weight).shape == weight.shape


@pytest.mark.parametrize("granularity", ["channel_groups", "token_groups"])
def test_grouped_scales_are_power_of_two_steps_apart(batches: list[Tensor], granularity: str) -> None:
    spec = Spec(bits=8, granularity={"kind": granularity, "k": 4, "power_of_two": True}, estimator="similarity")
    quantizer = estimate(spec, batches)
    shifts = torch.log2(quantizer.scale.max() / quantizer.scale)
    torch.testing.assert_close(shifts, shifts.round())
    assert quantizer.group is not None
    assert quantizer.group.numel() == (8 if granularity == "channel_groups" else 6)


def test_similarity_of_one_channel_is_its_error() -> None:
    """C of a scan with one state: every scale has cosine 1, so that the cosine chose scales that clip nearly all."""
    x = torch.randn(4, 50, 1, generator=torch.Generator().manual_seed(0))
    quantized = estimate(Spec(bits=8, estimator="similarity"), [x])(x)
    assert float((quantized - x).norm() / x.norm()) < 0.01


def mean_cosine(x: Tensor, y: Tensor) -> float:
    return float(torch.cosine_similarity(x, y, dim=-1).mean())


def test_similarity_per_tensor_finds_the_best_candidate(batches: list[Tensor]) -> None:
    x = torch.cat(batches)
    quantizer = estimate(Spec(bits=4, estimator="similarity"), batches)
    full = x.abs().max() / 7
    scores = [mean_cosine(x, (x / (full * c)).round().clamp(-8, 7)) for c in CANDIDATES]
    assert scores[int((quantizer.scale / full - CANDIDATES).abs().argmin())] >= max(scores) - 1e-6
    assert 1.0 in CANDIDATES.tolist()
    assert CANDIDATES.numel() == 101


@pytest.mark.parametrize("score", ["l1", "l2"])
def test_error_scores_find_the_best_candidate(batches: list[Tensor], score: str) -> None:
    x = torch.cat(batches)
    quantizer = estimate(Spec(bits=4, estimator={"name": "similarity", "score": score}), batches)
    full = x.abs().max() / 7
    power = {"l1": 1, "l2": 2}[score]
    errors = [float(((x / (full * c)).round().clamp(-8, 7) * full * c - x).abs().pow(power).sum()) for c in CANDIDATES]
    chosen = errors[int((quantizer.scale / full - CANDIDATES).abs().argmin())]
    assert chosen <= min(errors) * (1 + 1e-5)


def test_grouped_similarity_is_at_least_as_good_as_one_scale(batches: list[Tensor]) -> None:
    x = torch.cat(batches)
    one = estimate(Spec(bits=4, estimator="similarity"), batches)
    groups = estimate(Spec(bits=4, granularity={"kind": "channel_groups", "k": 4}, estimator="similarity"), batches)
    tokens = estimate(Spec(bits=4, granularity={"kind": "token_groups", "k": 4}, estimator="similarity"), batches)
    assert mean_cosine(x, tokens(x)) >= mean_cosine(x, one(x)) - 1e-4
    assert float((x - groups(x)).square().sum()) < float((x - one(x)).square().sum())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("power_of_two", [False, True])
def test_groups_searched_in_turn_are_never_worse_than_one_scale(seed: int, power_of_two: bool) -> None:
    """Heavy tails, where groups searched at once may end below one scale for all."""
    torch.manual_seed(seed)
    spread = torch.exp(0.5 * torch.randn(16)) if seed % 2 else torch.ones(16)
    x = torch.distributions.StudentT(3.0).sample((6, 8, 16)) * spread
    groups = {"kind": "channel_groups", "k": 4, "power_of_two": power_of_two}
    one = estimate(Spec(bits=4, estimator="similarity"), [x])
    in_turn = estimate(Spec(bits=4, granularity=groups, estimator={"name": "similarity", "order": "in_turn"}), [x])
    assert mean_cosine(in_turn(x), x) >= mean_cosine(one(x), x) - 1e-6
    if power_of_two:
        shifts = torch.log2(in_turn.scale.max() / in_turn.scale)
        torch.testing.assert_close(shifts, shifts.round())


def test_each_group_in_turn_takes_its_best_candidate_beside_the_others(batches: list[Tensor]) -> None:
    """The last group's scale is the best of all candidates when the other groups are where they ended."""
    x = torch.cat(batches)
    groups = {"kind": "channel_groups", "k": 2}
    found = estimate(Spec(bits=4, granularity=groups, estimator={"name": "similarity", "order": "in_turn"}), batches)
    assert found.group is not None
    best = mean_cosine(found(x), x)
    full = x.abs().amax((0, 1))[found.group == 1].max() / 7
    for candidate in (full * CANDIDATES).tolist():
        scale = torch.tensor([float(found.scale[0]), candidate])
        other = Quantizer(found.spec, scale, axis=-1, group=found.group)
        assert mean_cosine(other(x), x) <= best + 1e-6


def test_the_order_of_a_search_is_known() -> None:
    with pytest.raises(VisqError, match="goes at_once or in_turn, not backwards"):
        make_estimator(Spec(bits=4, estimator={"name": "similarity", "order": "backwards"}), "activation")


def test_hessian_score_follows_the_gradient(batches: list[Tensor]) -> None:
    """With a gradient on one channel only, the scale serves that channel."""
    x = torch.cat(batches)
    gradient = torch.zeros_like(x)
    gradient[..., 0] = 1
    estimator = make_estimator(Spec(bits=4, estimator={"name": "similarity", "score": "hessian"}), "activation")
    for _ in range(estimator.passes):
        estimator.observe(x, gradient)
        estimator.end_pass()
    guided, plain = estimator.result(), estimate(Spec(bits=4, estimator={"name": "similarity", "score": "l2"}), batches)
    assert (guided(x) - x)[..., 0].norm() < (plain(x) - x)[..., 0].norm()


def test_smoothing_divides_before_the_range_is_taken(batches: list[Tensor]) -> None:
    x = torch.cat(batches)
    smooth = x.abs().amax((0, 1))
    quantizer = estimate(Spec(bits=8), batches, smooth=smooth)
    torch.testing.assert_close(quantizer.scale, torch.tensor([1 / 127]))
    assert ((quantizer(x) - x) / smooth).abs().max() <= 0.5 / 127 + 1e-6


@pytest.mark.parametrize("p", [1.0, 2.0, 2.4])
def test_mse_never_loses_to_minmax(batches: list[Tensor], p: float) -> None:
    x = torch.cat(batches)
    for symmetric in (True, False):
        for granularity in ("tensor", "token", "channel"):
            spec = Spec(bits=4, symmetric=symmetric, granularity=granularity)
            searched = estimate(
                spec.model_copy(update={"estimator": Spec(bits=4, estimator={"name": "mse", "p": p}).estimator}),
                batches,
            )
            assert (searched(x) - x).abs().pow(p).sum() <= (estimate(spec, batches)(x) - x).abs().pow(p).sum() * (
                1 + 1e-5
            )


def test_a_tensor_of_zeros_gets_a_harmless_quantizer() -> None:
    zeros = torch.zeros(2, 3, 4)
    for estimator in ("minmax", "mse", "similarity", "percentile"):
        assert torch.equal(estimate(Spec(bits=4, estimator=estimator), [zeros])(zeros), zeros)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        ("nonsense", "unknown estimator"),
        ({"name": "similarity", "score": "nonsense"}, "unknown similarity score"),
        ({"name": "similarity", "scrore": "cosine"}, "no parameter scrore"),
        ({"name": "percentile", "percentile": 10}, "percentile must be"),
        ({"name": "mse", "p": -1}, "mse needs"),
    ],
)
def test_bad_estimators_are_refused(estimator: object, message: str) -> None:
    with pytest.raises(VisqError, match=message):
        make_estimator(Spec(bits=8, estimator=estimator), "activation")


def test_nan_is_named_where_it_arises() -> None:
    estimator = make_estimator(Spec(bits=8), "activation")
    with pytest.raises(VisqError, match="NaN or Inf"):
        estimator.observe(torch.tensor([[[1.0, float("nan")]]]))


def test_static_token_scales_need_one_image_size() -> None:
    estimator = make_estimator(Spec(bits=8, granularity="token"), "activation")
    estimator.observe(torch.randn(2, 5, 3))
    with pytest.raises(VisqError, match="images of one size"):
        estimator.observe(torch.randn(2, 6, 3))
