"""Runs the program of an artifact on integers, without torch. docs/integer-semantics.md defines the results."""

from typing import TYPE_CHECKING

from visq._lazy import lazy

if TYPE_CHECKING:
    from visq.runtime.engine import Engine, engine_backends, load_engine
    from visq.runtime.predicting import Prediction

__all__ = ["Engine", "Prediction", "engine_backends", "load_engine"]

__getattr__ = lazy(
    __name__, {"Engine": "engine", "engine_backends": "engine", "load_engine": "engine", "Prediction": "predicting"}
)
