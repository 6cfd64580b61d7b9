"""The quantizer: real numbers to integer codes and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visq import ops
from visq.errors import VisqError
from visq.integer.spec import Spec
from visq.ops.fake_quantize import Axis
from visq.quant.scales import check_scale
from visq.quant.site import SiteQuantizer
from visq.quant.straight_through import StraightThrough


class Quantizer(SiteQuantizer):
    """x -> q = clamp(round(x / (smooth * scale)) + zero_point) -> x^ = (q - zero_point) * scale * smooth.

    Rounding is half to even. Division is a product with the reciprocal, as the integer engine computes it. To the bit:
    scale * smooth is one factor where the scale belongs to channels or the tensor; where it belongs to tokens, x is
    divided by smooth, then by scale (docs/integer-semantics.md). With a table, q is the index of the nearest entry
    (ties to the lower one) of x / (smooth * scale), and x^ = table[q] * scale * smooth.

    Integer form: the codes q with one (scale, zero_point) per group. A scale per tensor, per weight row or per token
    factors out of a matrix product; per-channel activation scales do so only as power-of-two shifts of the codes.
    `smooth` never meets the codes: it is folded into the neighbouring weights or norm.

    Arguments:
        spec: bits, symmetry and what the parameters were estimated with.
        scale: [G] > 0 float32.
        zero_point: [G] integers stored as float32, or None for 0.
        axis: the axis of x that `group` indexes (0 for a weight's output channel, -1 channels, -2 tokens); None when
            G = 1.
        group: [x.shape[axis]] int64 in 0..G-1, or None when every element along the axis has its own scale.
        smooth: [x.shape[-1]] > 0 divides x channel by channel (SmoothQuant's sigma; the scale per channel of Bbar,
            which is [B, L, N, d_inner] here).
        table: [K <= 2^bits] ascending values of a non-uniform codebook.
    Raises:
        VisqError: a parameter that is not finite; a scale, or scale times smooth, that is not positive or has no
            inverse in float32.
    """

    scale: Tensor
    zero_point: Tensor | None
    group: Tensor | None
    smooth: Tensor | None
    table: Tensor | None

    def __init__(
        self,
        spec: Spec,
        scale: Tensor,
        zero_point: Tensor | None = None,
        *,
        axis: int | None = None,
        group: Tensor | None = None,
        smooth: Tensor | None = None,
        table: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.axis = spec, axis
        # Clones: two quantizers may be given one factor, and each is stored on its own.
        self.register_buffer("scale", scale.float().clone())
        self.register_buffer("zero_point", None if zero_point is None else zero_point.float().clone())
        self.register_buffer("group", None if group is None else group.long().clone())
        self.register_buffer("smooth", None if smooth is None else smooth.float().clone())
        self.register_buffer("table", None if table is None else table.float().clone())
        self.check()

    def check(self) -> None:
        """Raises VisqError as the constructor does; for those who write into the buffers."""
        check_scale("a quantizer's scale", self.scale)
        if self.smooth is not None:
            check_scale("a quantizer's smooth", self.smooth)
            check_scale("a quantizer's scale times smooth", self.scale, self.smooth)
        if self.table is not None and not torch.isfinite(self.table).all():
            raise VisqError("a quantizer's table is not finite; the calibration data or the weights hold NaN or Inf")

    def encode(self, x: Tensor) -> Tensor:
        """Returns the codes of x, int16, same shape."""
        x, zero_point = self._in_steps(x)
        if self.table is not None:
            return torch.bucketize(x, (self.table[1:] + self.table[:-1]) / 2).to(torch.int16)
        return (x.round() + zero_point).clamp(self.spec.qmin, self.spec.qmax).to(torch.int16)

    def integers(self, x: Tensor) -> Tensor:
        """Returns the codes of x less their zero point, int16. Integer products are made of these."""
        _, zero_point = self._along_axis(x)
        return (self.encode(x) - zero_point).to(torch.int16)

    def integers_again(self, x: Tensor) -> Tensor:
        """Returns the `integers` of an x that was decoded from codes, as whole numbers in float32.

        Such an x lies on the grid, so that nothing has to be clamped.
        """
        return self._in_steps(x)[0].round()

    def code_range(self) -> tuple[int, int]:
        """Returns the smallest and the largest code."""
        return (self.spec.qmin, self.spec.qmax) if self.table is None else (0, self.table.numel() - 1)

    def largest_integer(self) -> int:
        """Returns the largest magnitude that `integers` can have."""
        zero = torch.zeros(1) if self.zero_point is None else self.zero_point
        return int(torch.maximum((zero - self.spec.qmin).abs(), (self.spec.qmax - zero).abs()).max())

    def decode(self, codes: Tensor) -> Tensor:
        """Returns the values of codes, float32, same shape."""
        _, zero_point = self._along_axis(codes)
        return self._out_of_steps(codes.float() - zero_point if self.table is None else self.table[codes.long()])

    def forward(self, x: Tensor) -> Tensor:
        """Returns exactly decode(encode(x)), differentiable in x, scale, smooth and zero_point by the straight-through
        estimator."""
        rounded = self._rounded(x)
        if not torch.is_grad_enabled():
            return rounded
        steps, zero_point = self._steps(x)
        if self.table is None:
            ends = self.spec.qmin - 0.5, self.spec.qmax + 0.5
        else:
            zero_point, ends = 0.0, (self.table[0].item(), self.table[-1].item())
        result: Tensor = StraightThrough.apply(x, rounded, zero_point, *ends, *steps)
        return result

    @torch.no_grad()
    def _rounded(self, x: Tensor) -> Tensor:
        """Returns decode(encode(x)), by a kernel where there is one: for a sequence and uniform codes."""
        if x.ndim == 3 and self.table is None and self.axis in (None, -1, -2):
            axis: Axis = "tensor" if self.axis is None else "channel" if self.axis == -1 else "token"
            scale, zero_point = self._along_axis(x)
            zeros = zero_point.flatten() if isinstance(zero_point, Tensor) else None
            return ops.fake_quantize(x, scale.flatten(), zeros, self.smooth, self.spec.qmin, self.spec.qmax, axis)
        v, zero_point = self._in_steps(x)
        if self.table is not None:
            return self._out_of_steps(self.table[torch.bucketize(v, (self.table[1:] + self.table[:-1]) / 2)])
        return self._out_of_steps(v.round_().add_(zero_point).clamp_(self.spec.qmin, self.spec.qmax).sub_(zero_point))

    def scan_argument(self) -> Any:
        """Returns the rounding of Abar or Bbar as the scan kernel takes it."""
        if self.axis is not None or (self.zero_point is not None and self.zero_point.any()):
            raise VisqError("Abar and Bbar are quantized with one scale per tensor and no zero point")
        if self.smooth is not None and not self.spec.signed:
            raise VisqError("only Bbar, which is signed, has divisors per channel")
        if self.table is not None:
            return ops.Table(self.table * self.scale, self.smooth)
        return ops.Uniform(float(self.scale), self.spec.qmin, self.spec.qmax, self.smooth)

    def _in_steps(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """Returns x / (smooth * scale), and zero_point."""
        steps, zero_point = self._steps(x)
        for step in steps:
            x = x * (1 / step)
        return x, zero_point

    def _out_of_steps(self, v: Tensor) -> Tensor:
        """Returns v * smooth * scale."""
        for step in self._steps(v)[0]:
            v = v * step
        return v

    def _steps(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """Returns the factors of a step in the order they are multiplied, and zero_point; all broadcast against x."""
        scale, zero_point = self._along_axis(x)
        if self.smooth is None:
            return (scale,), zero_point
        if self.axis in (None, -1):
            return (scale * self.smooth,), zero_point
        return ((self.smooth, scale) if self.axis == -2 else (scale, self.smooth)), zero_point

    def _along_axis(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """Returns scale and zero_point, shaped to broadcast against x."""
        zero = 0.0 if self.zero_point is None else self.zero_point
        if self.axis is None:
            return self.scale, zero
        size = self.scale.numel() if self.group is None else self.group.numel()
        if x.shape[self.axis] != size:
            what = "tokens; another resolution needs its own calibration" if self.axis == -2 else "channels"
            raise VisqError(f"static scales were made for {size} {what}, got {x.shape[self.axis]}")
        shape = [1] * x.ndim
        shape[self.axis] = size

        def expand(v: Tensor) -> Tensor:
            return (v if self.group is None else v[self.group]).view(shape)

        return expand(self.scale), expand(zero) if isinstance(zero, Tensor) else zero

    def extra_repr(self) -> str:
        return f"bits={self.spec.bits}, granularity={self.spec.granularity.kind}, codebook={self.spec.codebook.name}"


class StateQuantizer(SiteQuantizer):
    """Quantizes the hidden state: the scale of h[c, n] after step t is step[t] * channel[c] * state[n].

    The reparameterization of arXiv 2501.16738 (eqs. 16-21) is this product: quantizing h* = h / (r_C r_L r_D) with S[t]
    is quantizing h with S[t] r_L[t] r_C[c] r_D[n], because the factors commute with the recurrence. `step` holds S r_L,
    `channel` holds r_C; `state` is one where r_D is folded into x_proj (eq. 24).

    Integer form: codes q_t = round((Abar_t step[t-1]/step[t]) q_{t-1} + Bbar_t u_t / (step[t] channel state)): the
    factors are part of the requantization and cost nothing.

    Arguments:
        spec: bits and granularity (`tensor`, `step`, `step_groups`).
        step: [L] in scan order, or [1] for one scale at every step of a sequence of any length; channel: [C]; state:
            [N]; all > 0.
        read_quantized: y_t reads the quantized h_t, the only one that hardware would have stored. The public code of
            the paper reads the unquantized one.
    """

    step: Tensor
    channel: Tensor
    state: Tensor

    def __init__(self, spec: Spec, step: Tensor, channel: Tensor, state: Tensor, read_quantized: bool = True) -> None:
        super().__init__()
        self.spec, self.read_quantized = spec, read_quantized
        for name, value in {"step": step, "channel": channel, "state": state}.items():
            self.register_buffer(name, value.float().clone())
        self.check()

    def check(self) -> None:
        """Raises VisqError where a factor or their product is not positive or has no inverse in float32."""
        for name in ("step", "channel", "state"):
            check_scale(f"the hidden state's {name} scale", self.get_buffer(name))
        check_scale("the hidden state's scale", self.step, self.channel, self.state)

    def scale(self) -> Tensor:
        """Returns step * channel * state, [L, C, N] or [1, C, N]."""
        return self.step[:, None, None] * self.channel[:, None] * self.state

    def encode(self, h: Tensor) -> Tensor:
        """Returns the int16 codes of h [B, L, C, N]."""
        return (h * (1 / self.scale())).round().clamp(self.spec.qmin, self.spec.qmax).to(torch.int16)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.float() * self.scale()

    def forward(self, h: Tensor) -> Tensor:
        return self.decode(self.encode(h))

    def scan_argument(self) -> Any:
        return ops.StateRounding(
            self.step, self.channel, self.state, self.spec.qmin, self.spec.qmax, self.read_quantized
        )

    def extra_repr(self) -> str:
        return f"bits={self.spec.bits}, granularity={self.spec.granularity.kind}"


def one_scale(quantizer: SiteQuantizer | None) -> bool:
    """Returns whether a site rounds every value alike, and 0 to 0: then a map may be rounded after its windows are
    taken, zeros outside included."""
    if type(quantizer) is not Quantizer:
        return quantizer is None
    if quantizer.axis is not None or quantizer.smooth is not None or quantizer.table is not None:
        return False
    zero = 0.0 if quantizer.zero_point is None else float(quantizer.zero_point)
    return quantizer.spec.qmin <= zero <= quantizer.spec.qmax
