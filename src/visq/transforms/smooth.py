"""Smoothing: divides a layer's input by a factor for each channel and multiplies its weight by it.

SmoothQuant, arXiv 2211.10438; PTQ4VM, arXiv 2412.20386:

    y = (x / sigma) (W sigma)^T,    sigma_c = max|x_c|^alpha / max_o|W_oc|^(1 - alpha)
"""

from __future__ import annotations

from torch import Tensor

from visq.errors import VisqError
from visq.integer.spec import Named, Spec
from visq.models.layers import Linear
from visq.quant.estimators import make_estimator
from visq.quant.quantizer import Quantizer
from visq.quant.scales import even_positive
from visq.quant.site import ACTIVATION, WEIGHT
from visq.stages.layer_inputs import observe_inputs
from visq.stages.stage_run import StageRun
from visq.transforms.base import Transform, register
from visq.transforms.fold import divide_input, norm_before

#: Exponents tried by `alpha: search`; None is no smoothing.
ALPHAS = (None, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)

#: Maxima below this share of the layer's largest are raised to it: a dead channel must not become a factor of 1e-15.
FLOOR = 1e-5


@register("smooth")
class Smooth(Transform):
    """Gives every targeted linear its sigma, unless a rotation has taken the linear.

    Both quantizers divide by `run.smooth`: x by sigma, and W by 1/sigma. That is exact for any layer.

    Arguments:
        alpha: the exponent, or `search`: for each layer the exponent of smallest output error.
        fold: if the input is a norm's output, rewrite the weights of norm and layer instead.
        images: how many calibration images the search sees, the first ones; drawn where the scope has `search_images`.
    """

    def __init__(self, alpha: float | str = 0.5, fold: bool = False, images: int = 8) -> None:
        if alpha != "search" and not (isinstance(alpha, (int, float)) and 0 <= alpha <= 1):
            raise VisqError(f"smooth: alpha must lie in 0..1 or be 'search', not {alpha!r}")
        self.alpha, self.fold, self.images = alpha, fold, images

    def apply(self, run: StageRun) -> None:
        layers = {
            path: layer
            for path, layer in run.modules(Linear).items()
            if ends(path) <= run.specs.keys() and f"{path}.in" not in run.rotations
        }
        images = self.images if self.alpha == "search" else 0
        inputs = observe_inputs(layers, run.stage.forward, run.inputs.batches(), images=images)
        for path, layer in layers.items():
            seen = inputs[path]
            if isinstance(self.alpha, str):
                sigma = search(seen.kept(), layer, seen.maximum, run.specs[f"{path}.in"], run.specs[f"{path}.weight"])
            else:
                sigma = smoothing(seen.maximum, layer.weight, float(self.alpha))
            if sigma is None:
                continue
            norm = norm_before(run, path) if self.fold else None
            if norm is not None:
                divide_input(norm, layer, sigma)
            else:
                run.smooth[f"{path}.in"], run.smooth[f"{path}.weight"] = sigma, 1 / sigma


def ends(path: str) -> set[str]:
    """Returns the two sites of a linear, which share its sigma."""
    return {f"{path}.in", f"{path}.weight"}


def smoothing(maximum: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """Returns sigma [C] of max|x_c| [C] and W [O, C].

    Its geometric mean is 1; a constant factor would only move into the quantizers' scales.
    """
    largest = weight.detach().abs().amax(0)
    maximum, largest = (even_positive(value, FLOOR) for value in (maximum, largest))
    log_sigma = alpha * maximum.log() - (1 - alpha) * largest.log()
    return (log_sigma - log_sigma.mean()).exp()


def search(x: Tensor, layer: Linear, maximum: Tensor, activation: Spec, weight: Spec) -> Tensor | None:
    """Returns the sigma of smallest squared output error, with both operands quantized as their specs say.

    Arguments:
        x: [B, L, C] inputs.
    """
    target = x @ layer.weight.T
    activation, weight = coarse(activation), coarse(weight)
    best: tuple[float, Tensor | None] = (float("inf"), None)
    for alpha in ALPHAS:
        sigma = None if alpha is None else smoothing(maximum, layer.weight, alpha)
        x_hat = estimate(activation, ACTIVATION, x, sigma)(x)
        w_hat = estimate(weight, WEIGHT, layer.weight, None if sigma is None else 1 / sigma)(layer.weight)
        error = float((x_hat @ w_hat.T - target).square().mean())
        if error < best[0]:
            best = (error, sigma)
    return best[1]


def coarse(spec: Spec) -> Spec:
    """Returns the spec with few candidates for its range: enough to compare one sigma with another."""
    if spec.estimator.name != "mse":
        return spec
    return spec.model_copy(update={"estimator": Named(name="mse", **spec.estimator.params | {"candidates": 20})})


def estimate(spec: Spec, kind: str, x: Tensor, smooth: Tensor | None) -> Quantizer:
    """Returns the quantizer that a spec's estimator makes of one tensor."""
    estimator = make_estimator(spec, kind, smooth)
    for _ in range(estimator.passes):
        estimator.observe(x)
        estimator.end_pass()
    return estimator.result()
