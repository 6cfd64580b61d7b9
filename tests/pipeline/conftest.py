"""The small network and images that the tests of `analysis` use as well."""

<<<<<<< HEAD
from tests.analysis.conftest import image_folder, images, model

__all__ = ["image_folder", "images", "model"]
=======
from tests.analysis.conftest import images, model

__all__ = ["images", "model"]
>>>>>>> e681ee1 (Tests of the pipeline share the small network of analysis)
