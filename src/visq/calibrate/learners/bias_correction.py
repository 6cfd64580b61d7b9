"""Bias correction: subtracts the mean output error of a quantized layer from its bias (arXiv 1906.04721, 4.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from visq import parallel
from visq.calibrate.learners.base import Learner, register
from visq.quant.site import Site, SiteQuantizer
from visq.stages.hooks import detached, without_hooks
from visq.stages.stage_run import StageRun


@register("bias_correction")
class BiasCorrection(Learner):
    """Adds the mean of FP32 output - quantized output, over images and tokens of FP32 inputs, to every layer's bias.

    The FP32 stream does not change: the stage's FP32 outputs were written before.
    """

    def tune(self, run: StageRun) -> None:
        sites = run.sites()
        layers: dict[str, tuple[nn.Module, list[Site]]] = {}
        for name in sites:
            path = name.rpartition(".")[0]
            layer = run.model.get_submodule(path)
            if isinstance(getattr(layer, "bias", None), Tensor):
                own = [
                    module for module in layer.children() if isinstance(module, Site) and module.quantizer is not None
                ]
                layers[path] = (layer, own)
        sums: dict[str, Tensor] = {path: torch.zeros(()) for path in layers}
        counts = dict.fromkeys(layers, 0)

        def observe(path: str, own: list[Site], quantizers: list[SiteQuantizer | None]) -> Callable[..., None]:
            def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                for site, quantizer in zip(own, quantizers, strict=True):
                    site.quantizer = quantizer
                with without_hooks(layer):
                    error = (output - layer(*args)).flatten(0, -2)
                for site in own:
                    site.quantizer = None
                for total, count in parallel.each((error.sum(0, dtype=torch.double), error.shape[0])):
                    sums[path] = sums[path] + total
                    counts[path] += count

            return hook

        quantizers = {path: [site.quantizer for site in own] for path, (_, own) in layers.items()}
        handles = [
            layer.register_forward_hook(observe(path, own, quantizers[path])) for path, (layer, own) in layers.items()
        ]
        try:
            with detached(sites.values()):
                for _ in run.forward(run.search_images):
                    pass
        finally:
            for handle in handles:
                handle.remove()
        for path, (layer, _) in layers.items():
            layer.get_parameter("bias").data += (sums[path] / max(counts[path], 1)).float()
