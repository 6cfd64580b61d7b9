"""Transforms rewrite weights, or factor the quantizers' scales, without changing the network's function."""

from visq.transforms.base import TRANSFORMS, Transform, make_transform
from visq.transforms.even_state import EvenState
from visq.transforms.reparameterize import Reparameterize
from visq.transforms.rotate import Rotate
from visq.transforms.smooth import Smooth

__all__ = ["TRANSFORMS", "EvenState", "Reparameterize", "Rotate", "Smooth", "Transform", "make_transform"]
