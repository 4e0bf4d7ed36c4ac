"""The wrappers of torch's and transformers' modules keep what every wrapper promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tico_wrapq.testing import WrapperCase, WrapperPromises
from wrapped_modules import CASES


class TestBuiltInWrappers(WrapperPromises):
    """Every promise, with every module of the table."""

    cases: ClassVar[Mapping[str, WrapperCase]] = CASES
