"""Learners tune what is in place after a stage's quantizers were made."""

from visq.calibrate.learners.base import LEARNERS, Learner, make_learner
from visq.calibrate.learners.bias_correction import BiasCorrection
from visq.calibrate.learners.jlss import JLSS

__all__ = ["JLSS", "LEARNERS", "BiasCorrection", "Learner", "make_learner"]
