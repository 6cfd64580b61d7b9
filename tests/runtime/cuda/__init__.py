"""Tests of the CUDA engine: on a GPU where there is one, in Triton's interpreter elsewhere."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
