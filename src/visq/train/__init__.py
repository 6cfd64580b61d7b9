"""The trainer behind `visq train`."""

from visq.train.config import TrainConfig, load_config
from visq.train.loop import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "load_config", "train"]
