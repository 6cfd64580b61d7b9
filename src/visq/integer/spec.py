"""Defines how a site is quantized, in small frozen objects that are validated when a recipe is read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

GranularityKind = Literal[
    "tensor", "channel", "token", "channel_groups", "token_groups", "step", "step_groups", "ladder"
]


class Granularity(BaseModel):
    """The granularity of a quantizer: which elements share a scale.

    Attributes:
        kind: `tensor`; `channel` (last axis of an activation, first of a weight); `token` (position in the sequence);
            `channel_groups` / `token_groups` (k-means on the mean magnitude, arXiv 2501.16738 III-C); `step` /
            `step_groups` (time steps of the hidden state); `ladder` (of A_log alone: one scale a channel and no codes,
            A[c, n] = -scale[c] (n + 1)).
        k: number of groups, for the `_groups` kinds.
        power_of_two: group scales are the largest one shifted right (eq. 8), so that codes of different groups differ
            by a shift only.
        limit: for `ladder`, the largest standard deviation of A_log from it; a scan beyond keeps codes by channel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: GranularityKind = "tensor"
    k: int = Field(default=4, ge=1)
    power_of_two: bool = False
    limit: float = Field(default=0.25, gt=0)

    @property
    def grouped(self) -> bool:
        return self.kind.endswith("_groups")


class Named(BaseModel):
    """The name of a registered class (such as a codebook) and its parameters, `{name: ..., **params}`.

    The class validates the parameters.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Spec(BaseModel):
    """The full description of one quantizer before calibration.

    Attributes:
        bits: 2 to 8.
        symmetric: whether there is no zero point; otherwise codes are unsigned, with an integer zero point.
        signed: whether symmetric codes start at -2^(b-1). Unsigned codes run from 0 to 2^b - 1, for tensors that are
            never negative.
        narrow: whether symmetric codes start at -(2^(b-1) - 1), so that the range is the same on both sides.
        granularity, codebook, estimator: see the classes of these names; a bare string is a name,
            with the defaults of everything else.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: int = Field(ge=2, le=8)
    symmetric: bool = True
    signed: bool = True
    narrow: bool = False
    granularity: Granularity = Granularity()
    codebook: Named = Named(name="uniform")
    estimator: Named = Named(name="minmax")

    @field_validator("granularity", mode="before")
    @classmethod
    def _granularity(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("codebook", "estimator", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Spec:
        if self.narrow and not (self.symmetric and self.signed):
            raise ValueError("narrow is for symmetric signed quantizers only")
        return self

    @property
    def unsigned(self) -> bool:
        return not (self.symmetric and self.signed)

    @property
    def code_bits(self) -> int:
        """The bits that a code takes; a ladder has no codes."""
        return 0 if self.granularity.kind == "ladder" else self.bits

    @property
    def qmin(self) -> int:
        if self.unsigned:
            return 0
        return -(2 ** (self.bits - 1)) + int(self.narrow)

    @property
    def qmax(self) -> int:
        return 2**self.bits - 1 if self.unsigned else 2 ** (self.bits - 1) - 1


def describe_granularity(spec: Spec) -> str:
    """Returns a granularity in words, and the codebook if it is not uniform.

    Examples: `tensor`, `channel_groups k=4 pow2`, `tensor power`.
    """
    words: list[str] = [spec.granularity.kind]
    if spec.granularity.grouped:
        words += [f"k={spec.granularity.k}"] + ["pow2"] * spec.granularity.power_of_two
    return " ".join(words + [spec.codebook.name] * (spec.codebook.name != "uniform"))
