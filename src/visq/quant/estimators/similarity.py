"""Searches scales by similarity (eq. 5 of arXiv 2501.16738), also for groups (k-scaled, eqs. 7-8)."""

from __future__ import annotations

import torch
from torch import Tensor

from visq import ops, parallel
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.ops.similarity_sums import Axis, Metric
from visq.quant.estimators.base import Estimator, register
from visq.quant.groups import power_of_two_shifts
from visq.quant.quantizer import Quantizer
from visq.quant.scales import usable

SCORES = ("cosine", "l1", "l2", "hessian")

#: Share of the minmax scale tried: the paper's 100 steps plus the full range, which its public code leaves out.
CANDIDATES = torch.cat([torch.linspace(0.01, 1.19, 100), torch.ones(1)]).sort().values

#: Rows scored together: their sums, by group and candidate, stay in the cache.
_ROWS = 512


class ScaleSearch:
    """Scores candidate scales, batch after batch.

    A token's cosine runs over all its channels. So a group of channels is scored with the other groups at their present
    scale; groups of tokens do not see each other. Cosines are averaged over images and tokens.

    Arguments:
        scale: [G] the present scales; candidates are `CANDIDATES * scale`.
        axis: "channel" or "token": what the labels given to `observe` index.
        score: one of `SCORES`.
        joint: all groups move together (one multiplier for all), as when the power-of-two steps between them are
            frozen.
        extra: [G] one more candidate for each group.
        present: the extra candidates are the present scales of all groups, and equal scores keep them.
    """

    def __init__(
        self,
        scale: Tensor,
        axis: Axis,
        score: str,
        qmin: int,
        qmax: int,
        joint: bool = False,
        extra: Tensor | None = None,
        present: bool = False,
    ) -> None:
        self.scale, self.axis, self.score = scale, axis, score
        self.qmin, self.qmax, self.joint = qmin, qmax, joint
        self.candidates = scale[:, None] * CANDIDATES.to(scale.device)
        #: Columns in the order in which equal scores are taken.
        self.order = (CANDIDATES - 1).abs().argsort(stable=True).tolist()
        self.present = self.order[0]
        if extra is not None:
            self.candidates = torch.cat([self.candidates, extra[:, None]], 1)
            column = len(CANDIDATES)
            self.order = [column, *self.order] if present else [*self.order, column]
            self.present = column if present else self.present
        self.total = torch.zeros(self.candidates.shape, dtype=torch.double, device=scale.device)

    def observe(self, x: Tensor, labels: Tensor, reference: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Scores one batch.

        Arguments:
            x: [rows, C].
            labels: the group of each channel [C] or row [rows].
            reference: [rows, C], by default x.
            weight: [rows, C], the squared gradient of `hessian`.
        """
        reference = x if reference is None else reference
        labels = labels.int()
        own = torch.zeros_like(self.total)
        for start in range(0, len(x), _ROWS):
            rows = slice(start, start + _ROWS)
            score = self._scores(
                x[rows],
                reference[rows],
                labels if self.axis == "channel" else labels[rows],
                None if weight is None else weight[rows],
            )
            if self.axis == "channel":
                own += score.sum(0)
            else:
                own.index_add_(0, labels[rows].long(), score.double())
        for total in parallel.each(own):
            self.total += total

    def _scores(self, x: Tensor, reference: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        """Returns the scores of K candidates: [rows, K], for groups of channels [rows, G, K]."""
        # One channel (C of a scan with one state): every scale that rounds nothing to zero has cosine 1.
        squared = self.score == "hessian" or (self.score == "cosine" and x.shape[-1] == 1)
        metric: Metric = "l2" if squared else self.score  # type: ignore[assignment]
        sums = ops.similarity_sums(
            x, reference, labels, self.candidates, self.qmin, self.qmax, axis=self.axis, metric=metric, weight=weight
        )
        return self._cosine(reference, sums["dot"], sums["sq"]) if metric == "cosine" else -sums[metric]

    def _cosine(self, reference: Tensor, dot: Tensor, square: Tensor) -> Tensor:
        if self.axis == "channel":
            if self.joint:
                dot, square = (v.sum(1, keepdim=True).expand_as(v) for v in (dot, square))
            elif self.scale.numel() > 1:
                dot, square = (
                    v + (v[..., self.present].sum(1, keepdim=True) - v[..., self.present])[..., None]
                    for v in (dot, square)
                )
            norm = reference.norm(dim=-1)[:, None, None]
        else:
            norm = reference.norm(dim=-1)[:, None]
        return dot / (square.sqrt() * norm).clamp_min(1e-30)

    def best(self) -> Tensor:
        """Returns the best scale of each group, [G]; of equal scores the one nearest the present scale."""
        total = self.total.sum(0, keepdim=True).expand_as(self.total) if self.joint else self.total
        order = torch.tensor(self.order).to(total.device)
        choice = order[total[:, order].argmax(1)]
        return self.candidates.gather(1, choice[:, None])[:, 0]


@register("similarity")
class Similarity(Estimator):
    """Chooses the scale of highest similarity between a tensor and its quantized self.

    Pass 0 collects ranges and k-means groups. Pass 1 scores the candidates of each group with the others at full range.
    In turn, pass 1 searches one scale for all groups; each group then has a pass of its own with the others where they
    are. The last pass (power-of-two steps only) searches the largest scale again with the shifts frozen. In turn it
    also tries the one scale: groups never end below it.

    Arguments:
        order: of channel groups, `at_once` or `in_turn`.
        score: `cosine` (the paper's default; squared error where there is one channel only), `l1`, `l2`, or `hessian`
            (squared error weighted by the squared gradient of the task loss).
    Raises:
        VisqError: unknown score; asymmetric spec; a scale of its own for every channel (use estimator `mse`).
    """

    def __init__(
        self, spec: Spec, kind: str, smooth: Tensor | None = None, score: str = "cosine", order: str = "at_once"
    ) -> None:
        super().__init__(spec, kind, smooth)
        if order not in ("at_once", "in_turn"):
            raise VisqError(f"a similarity search goes at_once or in_turn, not {order}")
        if score not in SCORES:
            raise VisqError(f"unknown similarity score '{score}'; known: {', '.join(SCORES)}")
        if not spec.symmetric:
            raise VisqError(
                "the similarity search is defined for symmetric quantizers; set symmetric: true or use estimator mse"
            )
        if spec.granularity.kind == "channel" and kind != "weight":
            raise VisqError(
                "a similarity is measured over channels, so it cannot choose a scale for each one; use estimator mse"
            )
        self.score = score
        self.plan: list[str | int] = ["all"]
        if order == "in_turn" and spec.granularity.kind == "channel_groups" and not self.row_axis:
            self.plan = ["one", *range(spec.granularity.k)]
        if spec.granularity.power_of_two and spec.granularity.grouped:
            self.plan.append("shifts")
        self.passes = 1 + len(self.plan)
        self.needs_gradient = score == "hessian"

    def observe(self, x: Tensor, gradient: Tensor | None = None, reference: Tensor | None = None) -> None:
        """Observes a batch as `Estimator` does; the quantized x is compared with `reference`, by default x itself."""
        if self.pass_index == 0:
            super().observe(x)
        elif self.search is not None:
            self.score_batch(self.canonical(x), gradient, x if reference is None else reference)

    def finish_pass(self) -> None:
        if self.pass_index == 0:
            self.labels = self.groups()
            low, high = self.group_range(self.labels)
            self.full_range = usable(torch.maximum(low.abs(), high.abs()) / self.spec.qmax)
            self.scale, self.one = self.full_range, self.full_range
            self.search: ScaleSearch | None = self.begin(self.plan[0])
        elif self.search is not None:
            self.take(self.plan[self.pass_index - 1], self.search.best())
            left = self.plan[self.pass_index :]
            self.search = self.begin(left[0]) if left else None

    def begin(self, step: str | int) -> ScaleSearch | None:
        """Returns the search of one pass; None where there is nothing to search."""
        axis: Axis = "token" if self.row_axis else "channel"
        spec, scale = self.spec, self.scale
        options = axis, self.score, spec.qmin, spec.qmax
        if step == "one":
            return ScaleSearch(self.full_range.max().expand_as(scale).contiguous(), *options, joint=True)
        if step == "shifts":
            if self.labels is None:
                return None
            self.scale = scale.max() * 2.0 ** -power_of_two_shifts(scale)
            return ScaleSearch(self.scale, *options, joint=True, extra=self.one if "one" in self.plan else None)
        if isinstance(step, int):
            return ScaleSearch(self.full_range, *options, extra=scale, present=True)
        return ScaleSearch(scale, *options)

    def take(self, step: str | int, best: Tensor) -> None:
        """Takes what one pass found: of a group in turn its scale alone."""
        if step == "one":
            self.one = best
        if isinstance(step, int):
            best = torch.where(torch.arange(len(best), device=best.device) == step, best, self.scale)
        self.scale = best

    def row_or_channel_labels(self, batch: int, channels: int) -> Tensor:
        """Returns the scale's index for every row [batch * R] or channel [C] of a batch."""
        if self.axis is None:
            return torch.zeros(channels, dtype=torch.long, device=self.scale.device)
        labels = torch.arange(self.scale.numel(), device=self.scale.device) if self.labels is None else self.labels
        return labels.repeat(batch) if self.row_axis else labels

    def score_batch(self, x: Tensor, gradient: Tensor | None, reference: Tensor) -> None:
        weight = None
        if self.needs_gradient:
            if gradient is None:
                raise VisqError(
                    "the Hessian-guided score needs the gradient of the loss, which is not to be had at this site"
                )
            # In the smoothed domain the gradient is multiplied by what the value was divided by.
            weight = (
                self.canonical(gradient * (1 if self.smooth is None else self.smooth**2))
                .square()
                .reshape(-1, x.shape[-1])
            )
        assert self.search is not None
        labels = self.row_or_channel_labels(x.shape[0], x.shape[-1])
        flat_reference = self.canonical(reference).reshape(-1, x.shape[-1])
        self.search.observe(x.reshape(-1, x.shape[-1]), labels, flat_reference, weight)

    def restart(self) -> None:
        """Searches again around the present scales: the next round of a layer's search in turn."""
        self.pass_index = 1
        self.search = self.begin(self.plan[0])

    def quantizer(self) -> Quantizer:
        """Returns the quantizer with the present scales, between passes."""
        return self.result()

    def result(self) -> Quantizer:
        return Quantizer(self.spec, self.scale, axis=self.axis, group=self.labels, smooth=self.smooth)
