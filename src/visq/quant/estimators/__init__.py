"""Estimators choose a quantizer's parameters from streamed calibration data. One file per idea; `ESTIMATORS` is the
registry."""

from visq.quant.estimators.base import ESTIMATORS, Estimator, make_estimator
from visq.quant.estimators.minmax import MinMax
from visq.quant.estimators.mse import MSE
from visq.quant.estimators.percentile import Percentile
from visq.quant.estimators.similarity import Similarity
from visq.quant.estimators.table import TableMSE

__all__ = ["ESTIMATORS", "MSE", "Estimator", "MinMax", "Percentile", "Similarity", "TableMSE", "make_estimator"]
