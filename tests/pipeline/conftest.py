"""Shares the small network and images of the tests of `analysis`."""

from tests.analysis.conftest import image_folder, images, model

__all__ = ["image_folder", "images", "model"]
