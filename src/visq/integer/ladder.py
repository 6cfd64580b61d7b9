"""The values of a decay ladder, A_log[c, n] = log(scale[c] (n + 1)), which simulation and engine share."""

from __future__ import annotations

import numpy as np

from visq.integer.arithmetic import Floats


def ladder_log(scale: Floats, states: int) -> Floats:
    """Returns A_log [C, states] float32 of a ladder's scale [C] > 0; computed in float64."""
    steps = np.arange(1, states + 1, dtype=np.float64)
    return np.log(scale.astype(np.float64)[:, None] * steps).astype(np.float32)
