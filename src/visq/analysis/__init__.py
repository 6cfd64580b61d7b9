"""Measures what a model is worth: accuracy, coverage, comparison."""

from visq.analysis.compare import Subject, compare
from visq.analysis.coverage import coverage, totals
from visq.analysis.diagnostics import diagnose
from visq.analysis.engine import EngineModel
from visq.analysis.evaluate import Evaluation, evaluate
from visq.analysis.results import evaluation_row, fp32_bytes
from visq.analysis.significance import Paired, mcnemar

__all__ = [
    "evaluate",
    "EngineModel",
    "Evaluation",
    "compare",
    "Subject",
    "coverage",
    "diagnose",
    "totals",
    "evaluation_row",
    "fp32_bytes",
    "mcnemar",
    "Paired",
]
