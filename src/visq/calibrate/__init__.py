"""Block-by-block calibration: `calibrate` turns an FP32 model and a recipe into a simulation of the quantized model."""

from visq.calibrate.driver import Calibration, calibrate

__all__ = ["Calibration", "calibrate"]
