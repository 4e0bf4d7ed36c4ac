"""The config of PT2E, quantization of exported graphs."""

from __future__ import annotations

from typing import ClassVar

import attrs

from tico_config._spec_config import SpecConfig


@attrs.frozen(kw_only=True)
class PT2EConfig(SpecConfig):
    """Activations and weights of an exported graph rounded to nearest.

    Attributes:
        activation: spec of every activation.
        weight: spec of every weight; `no_quant()` leaves weights to a later algorithm.
        overrides: paths, globs or ``re:`` patterns, each with a `QuantSpec` or some of its fields.

    Raises:
        ConfigError: one or more fields are wrong; all are reported.

    >>> str(PT2EConfig().weight)
    'uint8 asymmetric'
    """

    name: ClassVar[str] = "pt2e"
