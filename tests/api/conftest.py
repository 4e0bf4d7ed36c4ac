"""Every test of the facade leaves the process as it found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tico_quantizers.testing import process_settings


@pytest.fixture(autouse=True)
def settings_are_left_alone() -> Iterator[None]:
    """Assert that no setting of the process is changed, whatever a test does."""
    before = process_settings()
    yield
    assert process_settings() == before
