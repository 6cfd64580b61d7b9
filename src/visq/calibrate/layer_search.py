"""Searches a layer's weight scale by the similarity of the layer's output, in turn with the output's own scale.

arXiv 2501.16738.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from visq import parallel
from visq.calibrate.jobs import Job, naming
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.quant.estimators import Similarity
from visq.quant.estimators.similarity import CANDIDATES
from visq.quant.quantizer import Quantizer
from visq.quant.scales import usable
from visq.quant.site import SiteQuantizer
from visq.stages.hooks import without_hooks


class LayerSearch(Job):
    """Searches the weight's scale, then the output's, `rounds` times. Both are scored by the similarity of the layer's
    quantized output to its FP32 output.

    Pass 0 collects the output's range and groups. Each round then scores the weight's candidates under the present
    output quantizer, and the output's candidates under the present weight.

    Arguments:
        layer: a module with a `weight` parameter and sites `in`, `weight`, `out`.
        weight_spec: per tensor, symmetric.
        output: the estimator of the layer's output, when that site is targeted by a similarity search too.
        rounds: 3 in the paper's code for linears and convolutions.
    """

    def __init__(
        self,
        name: str,
        layer: nn.Module,
        weight_spec: Spec,
        output: tuple[str, Similarity] | None,
        score: str = "cosine",
        rounds: int = 3,
    ) -> None:
        if weight_spec.granularity.kind != "tensor" or not weight_spec.symmetric:
            raise VisqError(
                f"{name}: a weight's similarity search takes one symmetric scale per tensor; "
                "use estimator mse for scales per channel"
            )
        self.name, self.layer, self.spec, self.score, self.rounds = name, layer, weight_spec, score, rounds
        self.output_name: str | None = output[0] if output else None
        self.output: Similarity | None = output[1] if output else None
        self.weight = layer.get_parameter("weight").detach()
        self.full_range = usable(self.weight.abs().max() / weight_spec.qmax).cpu()
        self.scale = self.full_range
        self.total = torch.zeros(CANDIDATES.numel(), dtype=torch.double)
        self.pass_index = 0
        self.steps = self._plan()
        self.passes = len(self.steps)

    def _plan(self) -> list[str]:
        if self.output is None:
            return ["weight"]
        return ["range"] + ["weight", *["output"] * (self.output.passes - 1)] * self.rounds

    @property
    def needs_gradient(self) -> bool:  # type: ignore[override]
        return self.score == "hessian" and self.steps[min(self.pass_index, self.passes - 1)] != "range"

    def watched(self) -> nn.Module:
        return self.layer

    def observe(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._observe(args[0], as_tokens(output), None)

    def observe_gradient(self, x: Tensor, output: Tensor, gradient: Tensor) -> None:
        self._observe(x, as_tokens(output), as_tokens(gradient))

    def _observe(self, x: Tensor, output: Tensor, gradient: Tensor | None) -> None:
        step = self.steps[self.pass_index]
        if step == "weight":
            present = self.output.quantizer() if self.output is not None else None
            own, score = torch.zeros_like(self.total), similarity(output, self.score, gradient)
            for i, candidate in enumerate((self.full_range * CANDIDATES).tolist()):
                simulated = self.apply(x, candidate)
                if present is not None:
                    simulated = present(simulated)
                own[i] = score(simulated)
            for total in parallel.each(own):
                self.total += total
        else:
            assert self.output is not None
            simulated = output if step == "range" else self.apply(x, float(self.scale))
            self.output.observe(simulated, gradient, reference=output)

    def apply(self, x: Tensor, scale: float) -> Tensor:
        """Returns the layer's output with its weight quantized at `scale`; its sites are still identities."""
        spec = self.spec
        weight = (self.weight / scale).round_().clamp_(spec.qmin, spec.qmax).mul_(scale)
        # This runs inside a hook of the layer, which a plain call would start again.
        with without_hooks(self.layer):
            result: Tensor = functional_call(self.layer, {"weight": weight}, (x,))
        return as_tokens(result)

    def end_pass(self) -> None:
        if self.pass_index >= self.passes:
            return
        if self.steps[self.pass_index] == "weight":
            order = (CANDIDATES - 1).abs().argsort(stable=True)
            self.scale = self.full_range * CANDIDATES[order[self.total[order].argmax()]]
            self.total.zero_()
            if self.output is not None and self.output.pass_index >= self.output.passes:
                self.output.restart()
        else:
            assert self.output is not None
            self.output.end_pass()
        self.pass_index += 1

    def result(self) -> dict[str, SiteQuantizer]:
        found: dict[str, SiteQuantizer] = {}
        with naming(self.name):
            found[self.name] = Quantizer(self.spec, self.scale.view(1).to(self.weight.device))
        if self.output is not None and self.output_name is not None:
            with naming(self.output_name):
                found[self.output_name] = self.output.result()
        return found


def as_tokens(output: Tensor) -> Tensor:
    """Returns a layer's output as its site `out` sees it: a map [B, H, W, C] becomes tokens [B, H W, C]."""
    return output.flatten(1, 2) if output.ndim == 4 else output


def similarity(reference: Tensor, score: str, gradient: Tensor | None = None) -> Callable[[Tensor], float]:
    """Returns a function that scores how similar a tensor is to `reference`, both [..., C]; larger is better."""
    norm = torch.linalg.vector_norm(reference, dim=-1)

    def of(simulated: Tensor) -> float:
        if score == "cosine":
            length = torch.linalg.vector_norm(simulated, dim=-1)
            cosine = torch.linalg.vecdot(reference, simulated) / (length * norm).clamp_min(1e-30)
            return float(cosine.sum(dtype=torch.double))
        difference = reference - simulated
        if score == "l1":
            return -float(difference.abs().sum(dtype=torch.double))
        if gradient is not None:
            difference = difference * gradient
        return -float(difference.square().sum(dtype=torch.double))

    return of
