"""The small network and images that the tests of `analysis` use as well."""

from tests.analysis.conftest import image_folder, images, model

__all__ = ["image_folder", "images", "model"]
