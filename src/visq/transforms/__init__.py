"""Transforms rewrite weights, or factor the quantizers' scales, without changing the network's function."""

from visq.transforms.base import TRANSFORMS, Transform, make_transform
from visq.transforms.reparameterize import Reparameterize

__all__ = ["TRANSFORMS", "Reparameterize", "Transform", "make_transform"]
