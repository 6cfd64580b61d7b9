"""Learners tune a stage after its quantizers were attached, or the whole network after its last stage."""

from visq.calibrate.learners.adaround import AdaRound
from visq.calibrate.learners.base import LEARNERS, Learner, NetworkLearner, NetworkRun, make_learner
from visq.calibrate.learners.bias_correction import BiasCorrection
from visq.calibrate.learners.distill import Distill
from visq.calibrate.learners.gptq import GPTQ
from visq.calibrate.learners.jlss import JLSS

__all__ = [
    "GPTQ",
    "JLSS",
    "LEARNERS",
    "AdaRound",
    "BiasCorrection",
    "Distill",
    "Learner",
    "NetworkLearner",
    "NetworkRun",
    "make_learner",
]
