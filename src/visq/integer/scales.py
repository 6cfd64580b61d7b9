"""Checks a scale, for the simulation and the engine alike."""

from __future__ import annotations

import numpy as np

from visq.integer.arithmetic import Floats


def fault_of_scale(*factors: Floats) -> str | None:
    """Returns what is wrong with a scale that is a product of float32 factors, each of any shape; None if nothing is.

    Encoding multiplies by 1 / scale and decoding by scale. So every factor, the smallest and the largest product of
    factors, and the reciprocals of all these must be positive and finite.
    """
    least, most = np.float32(1), np.float32(1)
    with np.errstate(all="ignore"):
        for factor in factors:
            if not np.isfinite(factor).all():
                return "is not finite; the calibration data or the weights hold NaN or Inf"
            if not (factor > 0).all():
                return "must be positive"
            least, most = least * factor.min(), most * factor.max()
            if not np.isfinite(1 / factor).all():
                return f"is too small: 1 / {factor.min():.3g} is infinite in float32"
        if not (least > 0 and np.isfinite(most) and np.isfinite(1 / least) and 1 / most > 0):
            return f"leaves the range of float32: its factors' products reach from {least:.3g} to {most:.3g}"
    return None
