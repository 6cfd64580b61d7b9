"""visq: post-training quantization for Vision Mamba."""

__version__ = "0.1.0"
