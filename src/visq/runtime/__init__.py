"""The integer engine: runs the program of an artifact without torch. docs/integer-semantics.md is its definition."""

from typing import TYPE_CHECKING

from visq._lazy import lazy

if TYPE_CHECKING:
    from visq.runtime.engine import Engine, load_engine
    from visq.runtime.predicting import Prediction

__all__ = ["Engine", "Prediction", "load_engine"]

__getattr__ = lazy(__name__, {"Engine": "engine", "load_engine": "engine", "Prediction": "predicting"})
