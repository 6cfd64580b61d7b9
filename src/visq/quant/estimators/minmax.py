"""MinMax: the full range of the calibration data (eq. 3 of arXiv 2501.16738)."""

from visq.quant.estimators.base import Estimator, register
from visq.quant.quantizer import Quantizer


@register("minmax")
class MinMax(Estimator):
    """Clips nothing; one outlier decides the step of its whole group."""

    def result(self) -> Quantizer:
        labels = self.groups()
        return self.make(*self.group_range(labels), labels)
