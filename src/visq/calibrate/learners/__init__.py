"""Learners tune what is in place after a stage's quantizers were made."""

from visq.calibrate.learners.base import LEARNERS, Learner, make_learner
from visq.calibrate.learners.bias_correction import BiasCorrection

__all__ = ["LEARNERS", "BiasCorrection", "Learner", "make_learner"]
