"""What the configs whose fields can be set module by module have in common."""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs
from typing_extensions import Self

from tico_config._base_config import BaseConfig, resolve_fields
from tico_config._overrides import Resolution

OnUncalibrated: TypeAlias = Literal["error", "skip"]
"""What becomes of layers that no calibration data reach."""


@attrs.frozen(kw_only=True)
class ModuleConfig(BaseConfig):
    """A config that holds for a whole module; an override changes some of its fields.

    Subclasses list in `fixed_fields` what an override may not change.

    >>> from tico_config import GPTQConfig
    >>> GPTQConfig(overrides={"*.down_proj": {"bits": 8}}).resolve("mlp.down_proj").origin
    "overrides['*.down_proj']"
    """

    def resolve(self, path: str) -> Resolution[Self]:
        """Return the config that holds for the module at `path`, with the rule that decided.

        Raises:
            ConfigError: two equally specific overrides contradict each other.
        """
        return resolve_fields(self, path)
