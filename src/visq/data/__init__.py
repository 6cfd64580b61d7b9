"""Image data: folders, tars, the embedded Fashion-MNIST, and the transform that turns them into model input."""

from visq.data.dataset import Dataset
from visq.data.opening import FASHION_MNIST_CLASSES, open_dataset
from visq.data.preprocess import Preprocess

__all__ = ["FASHION_MNIST_CLASSES", "Dataset", "Preprocess", "open_dataset"]
