"""Image data: folders, tars, the embedded Fashion-MNIST, and the transform that turns them into model input."""

from typing import TYPE_CHECKING

from visq._lazy import lazy

if TYPE_CHECKING:
    from visq.data.dataset import Dataset
    from visq.data.given import as_dataset
    from visq.data.labels import FASHION_MNIST_CLASSES
    from visq.data.opening import open_dataset
    from visq.data.preprocess import Preprocess

__all__ = ["FASHION_MNIST_CLASSES", "Dataset", "Preprocess", "as_dataset", "open_dataset"]

__getattr__ = lazy(
    __name__,
    {
        "Dataset": "dataset",
        "FASHION_MNIST_CLASSES": "labels",
        "Preprocess": "preprocess",
        "as_dataset": "given",
        "open_dataset": "opening",
    },
)
