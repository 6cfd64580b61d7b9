"""Shared by all tests: one fixed seed per test."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

# The same examples in every run, so that a failure is of the change at hand; no time limits, because the
# machine may be busy with something else.
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
