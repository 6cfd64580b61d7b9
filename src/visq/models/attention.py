"""Defines multi-head self-attention with sites: the products of two activations, and the softmax between them."""

from __future__ import annotations

from torch import Tensor, nn

from visq.models.layers import Linear
from visq.quant.site import Site


class Attend(nn.Module):
    """Computes softmax(q k^T / sqrt(d)) v for each head of d channels. q, k, v [B, L, C] -> [B, L, C].

    The sites see tokens: `q`, `k`, `v` [B, L, C]; `scores` and `probs` [B, L, heads L], where the token is the query
    and the channels are the keys of one head after the other.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.site_q, self.site_k, self.site_v = Site(), Site(), Site()
        self.site_scores, self.site_probs = Site(), Site()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (self.by_head(site(x)) for site, x in ((self.site_q, q), (self.site_k, k), (self.site_v, v)))
        scores = self.site_scores(self.by_query(q @ k.mT * self.scale))
        probs = self.site_probs(scores.unflatten(-1, (self.heads, -1)).softmax(-1).flatten(2))
        return self.by_query(self.by_head(probs) @ v)

    def by_head(self, x: Tensor) -> Tensor:
        """Reorders tokens [B, L, heads W] to heads [B, heads, L, W]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def by_query(self, x: Tensor) -> Tensor:
        """Reorders heads [B, heads, L, W] to tokens [B, L, heads W]."""
        return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Mixes tokens: proj(attend(qkv(x))). [B, L, dim] -> same. Parameters carry the names of `timm`'s attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.attn, self.proj = Linear(dim, 3 * dim), Attend(dim, heads), Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(self.attn(q, k, v))
