"""Runs every program that the C++ engine is tested with on the CUDA engine as well."""

from __future__ import annotations

import pytest

from tests.runtime import test_attention, test_dense, test_maps, test_resampling
from tests.runtime.cpu import test_instructions, test_products, test_scans
from tests.runtime.cpu.test_instructions import (  # noqa: F401
    test_encode_and_decode,
    test_every_instruction,
    test_rotations,
)
from tests.runtime.cpu.test_products import (  # noqa: F401
    test_concatenation,
    test_convolution,
    test_float_linear,
    test_integer_linear,
    test_integer_linear_of_awkward_shapes,
    test_integer_linear_with_the_largest_sums,
    test_patches,
    test_wide_linear,
    test_wide_linear_with_the_largest_sums,
)
from tests.runtime.cpu.test_scans import (  # noqa: F401
    test_fixed_scan,
    test_fixed_scan_keeps_to_16_bits,
    test_fixed_scan_of_any_codes,
    test_fixed_scan_that_saturates,
    test_float_scan,
    test_fused_scan,
    test_fused_scan_keeps_to_16_bits,
    test_fused_scan_of_any_codes,
    test_ladder_scan,
    test_ladder_scan_keeps_to_16_bits,
    test_ladder_scan_that_saturates,
)
from tests.runtime.cuda.agreement import check
from tests.runtime.test_attention import (  # noqa: F401
    test_append,
    test_attention_in_float32,
    test_attention_in_integers,
    test_attention_starts_a_phase_and_others_follow_it,
    test_convolutions_that_look_ahead,
    test_windows_and_back,
)
from tests.runtime.test_dense import (  # noqa: F401
    test_a_map_that_fills_tiles,
    test_a_zero_point_beyond_the_codes_runs_in_float,
    test_dense_convolution,
    test_it_equals_windows_and_a_product,
    test_pixel_shuffle,
    test_the_largest_sums,
    test_weights_of_four_bits_and_in_float,
)
from tests.runtime.test_maps import (  # noqa: F401
    test_a_dense_convolution_is_windows_and_a_product,
    test_a_zero_point_beyond_the_codes_adds_nothing_outside,
    test_depthwise_convolution,
    test_depthwise_convolution_of_a_weight_in_float,
    test_depthwise_convolution_with_the_largest_sums,
    test_mean,
    test_transpose,
    test_windows_of_a_map,
    test_windows_of_the_image,
)
from tests.runtime.test_resampling import test_the_engine_has_the_oracles_bits  # noqa: F401

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _on_the_cuda_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (
        test_instructions,
        test_products,
        test_scans,
        test_maps,
        test_dense,
        test_attention,
        test_resampling,
    ):
        monkeypatch.setattr(module, "check", check)
