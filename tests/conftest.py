"""The same random numbers in every run, and how many examples the laws are tried on.

`HYPOTHESIS_PROFILE` is `dev`, the default, `ci` or `mutation`.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
settings.register_profile("mutation", max_examples=25, deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test from the same random state, for the layers that it makes without a seed."""
    torch.manual_seed(0)
