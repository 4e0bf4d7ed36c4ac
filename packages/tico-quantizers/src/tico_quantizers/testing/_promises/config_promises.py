"""What a config promises: it is a value, it can be written down, and nothing wrong gets into it."""

from __future__ import annotations

import copy
import pickle

import attrs
import pytest

from tico_config import BaseConfig, ConfigError, from_json, to_json
from tico_quantizers.testing._promises.suite import PromiseSuite


class ConfigPromises(PromiseSuite):
    """The promises of the config."""

    def test_config_is_frozen(self) -> None:
        """No field can be set, and no attribute added."""
        for name in (*(field.name for field in attrs.fields(type(self.config))), "anything"):
            with pytest.raises((attrs.exceptions.FrozenInstanceError, AttributeError)):
                setattr(self.config, name, None)

    def test_config_is_hashable(self) -> None:
        """Equal configs have equal hashes."""
        assert hash(attrs.evolve(self.config)) == hash(self.config)

    def test_config_survives_pickle_and_deepcopy(self) -> None:
        """Both give an equal config with an equal hash."""
        for again in (pickle.loads(pickle.dumps(self.config)), copy.deepcopy(self.config)):  # noqa: S301
            assert again == self.config
            assert hash(again) == hash(self.config)

    def test_config_round_trips_through_json(self) -> None:
        """`from_json` gives back what `to_json` was given, overrides included."""
        for config in (self.config, self.overridden("layers.*")):
            assert from_json(to_json(config)) == config

    def test_wrong_field_type_is_refused_at_construction(self) -> None:
        """A value of a type that a field can't have is a ConfigError about that field."""
        accepted = [field.name for field in attrs.fields(type(self.config)) if not self._refuses(field.name)]
        assert accepted == []

    def _refuses(self, name: str) -> bool:
        config: BaseConfig = self.config
        try:
            attrs.evolve(config, **{name: object()})  # type: ignore[arg-type]  # that is the point
        except ConfigError as error:
            return error.field is not None and error.field.startswith(name)
        return False
