"""Estimators of the discretized parameters Abar and Bbar, which exist only inside the scan.

Abar = exp(delta A) lies in (0, 1] with its mode at 1 and a long tail towards 0; Bbar = delta B is signed, peaked at 0,
heavy-tailed. Neither is ever held whole: their extremes follow from those of the factors, and their distribution is
a histogram of a fixed part of the values.

LtSQ (QMamba, arXiv 2501.13624; our reconstruction) is `codebook: power` with `estimator: scan_output`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from visq import parallel
from visq.errors import VisqError
from visq.integer.spec import Named, Spec
from visq.quant.codebook_search import Distribution, Fit, best, fits
from visq.quant.few_images import widened_scales
from visq.quant.histogram import float_counts, weighted_quantile, weighted_values
from visq.quant.quantizer import Quantizer
from visq.quant.scales import SMALLEST, usable

DISCRETIZED_ESTIMATORS: dict[str, type[DiscretizedMinMax]] = {}

#: Values a batch adds to the histogram, at most.
SAMPLES = 2**20

#: The loss of a candidate on the scan's output.
Score = Callable[[Quantizer], float]


def make_discretized_estimator(spec: Spec, site: str) -> DiscretizedMinMax:
    """site is `abar` or `bbar`.

    Raises:
        VisqError: an unknown estimator, parameter or codebook, a granularity other than tensor (for the full range of
            Bbar also channel).
    """
    name = spec.estimator.name
    if name not in DISCRETIZED_ESTIMATORS:
        raise VisqError(f"{site} knows estimators {', '.join(DISCRETIZED_ESTIMATORS)}, not {name}")
    if spec.granularity.kind not in ("tensor", "channel"):
        raise VisqError(f"{site} is quantized per tensor or per channel, not per {spec.granularity.kind}")
    if spec.granularity.kind == "channel" and (site, name) != ("bbar", "minmax"):
        raise VisqError(f"{site} with estimator {name} is quantized per tensor; per channel goes bbar with minmax")
    if spec.granularity.kind == "channel":
        return BbarByChannel(spec, site)
    try:
        return DISCRETIZED_ESTIMATORS[name](spec, site, **spec.estimator.params)
    except TypeError as error:
        raise VisqError(f"{site}: estimator {name}: {error}") from error


def register(name: str) -> Callable[[type[DiscretizedMinMax]], type[DiscretizedMinMax]]:
    def decorate(cls: type[DiscretizedMinMax]) -> type[DiscretizedMinMax]:
        DISCRETIZED_ESTIMATORS[name] = cls
        return cls

    return decorate


@register("minmax")
class DiscretizedMinMax:
    """The full range of Abar (in (0, 1], hence unsigned codes) or Bbar (signed), uniform."""

    #: Codebooks that follow the data need the histogram, which this estimator does not keep.
    uniform_only: ClassVar[bool] = True
    #: How many images' inputs of the scan the choice is scored on; 0 for none.
    images = 0

    def __init__(self, spec: Spec, site: str) -> None:
        if not spec.symmetric or spec.signed != (site == "bbar"):
            signed = "true" if site == "bbar" else "false"
            raise VisqError(
                f"{site} needs symmetric: true and signed: {signed} in its rule, because Abar lies in (0, 1] and Bbar "
                "around zero"
            )
        if self.uniform_only and spec.codebook.name != "uniform":
            raise VisqError(f"{site}: codebook {spec.codebook.name} needs estimator mse or scan_output")
        self.spec, self.site = spec, site
        self.maximum = torch.zeros(())

    def observe(self, delta: Tensor, A: Tensor, B: Tensor) -> None:
        """delta [B, L, C] >= 0, A [C, N] < 0, B [B, L, N]."""
        if self.site == "abar":
            largest = (delta.amin((0, 1)) * A.amax(1)).exp().max()
        else:
            largest = (delta.amax(-1) * B.abs().amax(-1)).max()
        for value in parallel.each(largest):
            self.maximum = torch.maximum(self.maximum, value)

    def result(self, score: Score | None = None) -> Quantizer:
        """`score` is there when `images` > 0; smaller is better."""
        return self.uniform(float(self.maximum))

    def uniform(self, largest: float) -> Quantizer:
        return Quantizer(self.spec, usable(self.maximum.new_full((1,), largest / self.spec.qmax)))


class BbarByChannel(DiscretizedMinMax):
    """The full range of each channel of Bbar.

    delta differs between channels by orders of magnitude, and Bbar = delta B with it. A scale per channel is a factor
    of the input u, hence free: Bbar u = ((delta / smooth) B) (smooth u). `smooth` has the unit of delta, and
    delta / smooth was at most 1 in calibration; the fixed-point scan has 15 bits for it, and for B.
    """

    #: No channel's scale is smaller than 1 / this of the largest delta times the largest B, which bounds both factors.
    headroom = 4.0

    def __init__(self, spec: Spec, site: str) -> None:
        super().__init__(spec, site)
        self.bbar, self.delta, self.B = torch.zeros(()), torch.zeros(()), torch.zeros(())  # [C], [C], []
        self.seen = 0

    def observe(self, delta: Tensor, A: Tensor, B: Tensor) -> None:
        largest = B.abs().amax(-1, keepdim=True)
        own = (delta * largest).amax((0, 1)), delta.amax((0, 1)), largest.max()
        for (bbar, d, b), images in parallel.each((own, len(B))):
            self.seen += images
            self.bbar, self.delta = torch.maximum(self.bbar, bbar), torch.maximum(self.delta, d)
            self.B = torch.maximum(self.B, b)

    def result(self, score: Score | None = None) -> Quantizer:
        unit = usable(self.B / self.headroom / self.spec.qmax) * self.spec.qmax
        smooth = torch.maximum(self.bbar / unit, self.delta)
        return Quantizer(
            self.spec, (unit / self.spec.qmax).view(1), smooth=usable(widened_scales(smooth, self.seen, self.spec.bits))
        )


class DiscretizedHistogram(DiscretizedMinMax):
    """Keeps the distribution of Bbar, or of 1 - Abar, whose small values a float tells apart."""

    def __init__(self, spec: Spec, site: str) -> None:
        super().__init__(spec, site)
        self.counts = torch.zeros((), dtype=torch.long)

    def observe(self, delta: Tensor, A: Tensor, B: Tensor) -> None:
        super().observe(delta, A, B)
        for counts in parallel.each(float_counts(self.sample(delta, A, B))):
            self.counts = self.counts + counts

    def sample(self, delta: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """Returns a fixed part of 1 - Abar, or of Bbar: every k-th (image, token, channel) with all its states, [n, N].

        k shares no factor with the number of channels, so that all channels and tokens take part."""
        channels, states = A.shape
        stride = max(1, -(-delta.numel() * states // SAMPLES))
        while any(stride % prime == 0 and channels % prime == 0 for prime in (2, 3, 5, 7, 11, 13)):
            stride += 1
        index = torch.arange(0, delta.numel(), stride, device=delta.device)
        chosen = delta.flatten()[index, None]
        if self.site == "abar":
            return -torch.expm1(chosen * A[index % channels])
        return chosen * B.reshape(-1, states)[index // channels]

    def distribution(self) -> tuple[float, Tensor, Tensor]:
        """(full range, values over it ascending, counts) of Bbar or, for a codebook anchored at 1, of 1 - Abar."""
        values, counts = weighted_values(self.counts)
        if self.site == "abar" and self.spec.codebook.name == "uniform":
            values, counts = (1 - values).flip(0), counts.flip(0)
        largest = max(float(values.abs().max()), SMALLEST)
        return largest, values / largest, counts

    def make(self, fit: Fit, largest: float) -> Quantizer:
        """The quantizer of a fit. Abar's table is anchored at 1, which it holds exactly: 1 - fit."""
        if self.spec.codebook.name == "uniform":
            return self.uniform(largest * fit.clip)
        table, device = fit.table, self.counts.device
        if self.site == "abar":
            table = 1 - (largest * table.double()).flip(0)
            return Quantizer(self.spec, torch.ones(1, device=device), table=table.to(device))
        return Quantizer(self.spec, self.maximum.new_full((1,), largest), table=table.to(device))


@register("percentile")
class DiscretizedPercentile(DiscretizedHistogram):
    """Clips Bbar so that `percentile` of |Bbar| lie inside; Abar, whose mass is at its largest value, is not
    clipped."""

    def __init__(self, spec: Spec, site: str, percentile: float = 99.99) -> None:
        super().__init__(spec, site)
        if not 50 < percentile <= 100:
            raise VisqError(f"percentile must be above 50 and at most 100, got {percentile}")
        self.percentile = percentile

    def result(self, score: Score | None = None) -> Quantizer:
        if self.site == "abar" or self.percentile == 100:
            return super().result()
        values, counts = weighted_values(self.counts)
        order = values.abs().argsort(stable=True)
        return self.uniform(weighted_quantile(values.abs()[order], counts[order], self.percentile / 100))


@register("mse")
class DiscretizedMSE(DiscretizedHistogram):
    """Layout and clip of smallest squared error of the tensor itself; with the uniform codebook, OMSE."""

    uniform_only = False

    def result(self, score: Score | None = None) -> Quantizer:
        largest, values, counts = self.distribution()
        candidates = fits(self.spec.codebook, self.spec.bits, self.spec.signed, Distribution(values, counts))
        return self.make(self.choose(candidates, lambda fit: self.make(fit, largest), score), largest)

    def choose(self, candidates: list[list[Fit]], make: Callable[[Fit], Quantizer], score: Score | None) -> Fit:
        return best(candidates)


@register("scan_output")
class DiscretizedScanOutput(DiscretizedMSE):
    """Re-ranks by the squared error of the scan's output y: first the layouts, each at the clip of smallest tensor
    error; then the clips of the best layout.

    Arguments:
        images: how many images' scans are scored.
        clips: how many clips of the best layout are scored, spread evenly over the range from a third of the
            tensor's choice up to the full range.
    """

    def __init__(self, spec: Spec, site: str, images: int = 16, clips: int = 12) -> None:
        super().__init__(spec, site)
        if images < 1 or clips < 1:
            raise VisqError(f"{site}: estimator scan_output needs images >= 1 and clips >= 1, got {images} and {clips}")
        self.images, self.clips = images, clips

    def choose(self, candidates: list[list[Fit]], make: Callable[[Fit], Quantizer], score: Score | None) -> Fit:
        assert score is not None
        shortlist = [min(group, key=lambda fit: fit.error) for group in candidates]
        losses = [score(make(fit)) for fit in shortlist]
        found = min(range(len(losses)), key=losses.__getitem__)
        group, chosen, loss = candidates[found], shortlist[found], losses[found]
        tried = [fit for fit in group if fit.clip >= chosen.clip / 3 and fit is not chosen]
        for fit in tried[:: max(1, len(tried) // self.clips)]:
            if (other := score(make(fit))) < loss:
                chosen, loss = fit, other
        return chosen


@register("skewed")
class DiscretizedSkewed(DiscretizedScanOutput):
    """Takes the recipe's codebook only where the tensor is skewed, otherwise uniform codes; both are then tuned on y.

    Skewed is a tensor whose median magnitude is small beside its largest one. Of Abar, that is the distance from 1.

    Arguments:
        threshold: the largest share of the range that the median of a skewed tensor may have.
        images, clips: as in `scan_output`.
    """

    def __init__(self, spec: Spec, site: str, threshold: float = 0.25, images: int = 16, clips: int = 12) -> None:
        super().__init__(spec, site, images, clips)
        if spec.codebook.name == "uniform" or not 0 < threshold < 1:
            raise VisqError(f"{site}: estimator skewed needs a codebook and 0 < threshold < 1, got {threshold}")
        self.threshold = threshold

    def median(self) -> float:
        """Returns the median magnitude as a share of the largest."""
        _, values, counts = self.distribution()
        order = values.abs().argsort(stable=True)
        return weighted_quantile(values.abs()[order], counts[order], 0.5)

    def result(self, score: Score | None = None) -> Quantizer:
        if self.median() > self.threshold:
            self.spec = self.spec.model_copy(update={"codebook": Named(name="uniform")})
        return super().result(score)
