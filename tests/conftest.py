"""The same random numbers in every run, and how many examples the laws are tried on.

`HYPOTHESIS_PROFILE` is `dev`, the default, `ci` or `mutation`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from exact_products import exact_where_wrong

settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
settings.register_profile("mutation", max_examples=25, deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test from the same random state, for the layers that it makes without a seed."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def exact_products() -> Iterator[None]:
    """Let exact integer products stand in for those of processors that get them wrong."""
    with exact_where_wrong():
        yield
