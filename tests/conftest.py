"""Shared by all tests: one fixed seed per test."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

# The same examples in every run, so that a failure is of the change at hand; the long fuzz run draws new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
