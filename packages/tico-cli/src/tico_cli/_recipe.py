"""A recipe: which algorithms, one after the other, on how much data, and what the result is exported to."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, final

import attrs

from tico_cli._nearest import unknown
from tico_cli._recipe_values import field_value
from tico_config import (
    AWQConfig,
    BaseConfig,
    CLEConfig,
    ConfigError,
    Found,
    GPTQConfig,
    HQQConfig,
    KVCacheConfig,
    Problem,
    PTQConfig,
    RotationConfig,
    SmoothQuantConfig,
)
from tico_config.validation import check_instance, check_integer, refuse

_BUILT_IN: Final[Mapping[str, type[BaseConfig]]] = {
    kind.name: kind
    for kind in (
        AWQConfig,
        CLEConfig,
        GPTQConfig,
        HQQConfig,
        KVCacheConfig,
        PTQConfig,
        RotationConfig,
        SmoothQuantConfig,
    )
}
_KEYS: Final = ("data", "description", "export", "stage")


@final
@attrs.frozen(kw_only=True)
class DataNeed:
    """How much of a text calibration reads.

    Attributes:
        samples: windows of a text, or records of a JSONL file, at most.
        tokens: the length of a window, and of a record at most; a model that takes fewer has shorter ones.
    """

    samples: int = 128
    tokens: int = 2048

    def __attrs_post_init__(self) -> None:
        """Refuse what is no number of samples or tokens."""
        refuse(check_integer("samples", self.samples, 1), check_integer("tokens", self.tokens, 2))


@final
@attrs.frozen(kw_only=True)
class ExportStep:
    """One format that the result is written in.

    Attributes:
        format: the name of the format, such as ``gguf``.
        options: the fields of its target.
    """

    format: str
    options: tuple[tuple[str, object], ...] = ()


@final
@attrs.frozen(kw_only=True)
class Recipe:
    """What to do with a model.

    Attributes:
        name: the name of the file, without its ending.
        description: one line for people.
        stages: the config of each algorithm, in their order.
        data: what calibration reads; None where nothing is learned from data.
        exports: the formats that the result is written in.

    >>> recipe = Recipe.parse("mine", 'stage = [{algorithm = "hqq", bits = 3}]')
    >>> recipe.stages[0].bits, recipe.data
    (3, None)
    """

    name: str
    description: str = ""
    stages: tuple[BaseConfig, ...]
    data: DataNeed | None = None
    exports: tuple[ExportStep, ...] = ()

    @classmethod
    def parse(cls, name: str, text: str) -> Recipe:
        """Return the recipe that `text` in TOML is.

        Raises:
            ConfigError: it is no TOML, or a key, an algorithm or a field of a config is wrong; with where.
        """
        try:
            table: dict[str, object] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise _no_toml(name, error) from None
        _require_keys(name, table, _KEYS)
        data = table.get("data")
        description = table.get("description", "")
        refuse(check_instance("description", description, str, "a text"))
        return cls(
            name=name,
            description=str(description),
            stages=tuple(_stages(name, table)),
            data=None if data is None else _data(name, data),
            exports=tuple(_exports(name, table)),
        )


def _no_toml(name: str, error: Exception) -> ConfigError:
    found, expected = Found(str(error)), "a recipe in TOML"
    sentence, remedy = f"it is no TOML: {error}", "see `tico recipes w4a16` for an example"
    return ConfigError(Problem(module=name, value=found, expected=expected, sentence=sentence, remedy=remedy))


def _require_keys(where: str, table: Iterable[str], names: Sequence[str]) -> None:
    for key in table:
        if key not in names:
            raise unknown(where, "key", key, names)


def _stages(file: str, table: Mapping[str, object]) -> Iterator[BaseConfig]:
    stages = _tables(file, table, "stage")
    if not stages:
        expected, remedy = "one table [[stage]] or more", 'write [[stage]], and below it algorithm = "gptq"'
        raise ConfigError(
            Problem(module=file, field="stage", value=Found("none"), expected=expected, remedy=remedy)
        )
    for number, stage in enumerate(stages, 1):
        where = f"{file}, stage {number}" if len(stages) > 1 else f"{file}, stage"
        kind = _config_class(where, stage.get("algorithm"))
        try:
            fields = {name: field_value(name, value) for name, value in stage.items() if name != "algorithm"}
            yield kind(**fields)  # type: ignore[arg-type]  # the class checks them
        except ConfigError as error:
            raise ConfigError(*(_placed(where, problem) for problem in error.problems)) from None


def _placed(where: str, problem: Problem) -> Problem:
    return attrs.evolve(problem, module=f"{where}: {problem.module}" if problem.module else where)


def _config_class(where: str, name: object) -> type[BaseConfig]:
    """Return the config class of the algorithm `name`: a built-in one, or that of an installed package."""
    if not isinstance(name, str):
        remedy = 'write for example algorithm = "gptq"'
        raise ConfigError(
            Problem(module=where, field="algorithm", value=name, expected="a name", remedy=remedy)
        )
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    from tico_api import BUILT_IN  # it imports torch, which reading a recipe otherwise does not

    classes = {each.name: each for each in BUILT_IN.with_installed().config_types}
    if name not in classes:
        raise unknown(where, "algorithm", name, classes)
    return classes[name]


def _data(name: str, table: object) -> DataNeed:
    where = f"{name}, data"
    if not isinstance(table, dict):
        raise ConfigError(Problem(module=name, field="data", value=table, expected="a table [data]"))
    _require_keys(where, table, ("samples", "tokens"))
    try:
        return DataNeed(**table)
    except ConfigError as error:
        raise ConfigError(*(_placed(where, problem) for problem in error.problems)) from None


def _exports(name: str, table: Mapping[str, object]) -> Iterator[ExportStep]:
    for step in _tables(name, table, "export"):
        chosen = step.get("format")
        if not isinstance(chosen, str):
            remedy = 'write for example format = "gguf"'
            raise ConfigError(
                Problem(
                    module=f"{name}, export", field="format", value=chosen, expected="a name", remedy=remedy
                )
            )
        options = {key: value for key, value in step.items() if key != "format"}
        yield ExportStep(format=chosen, options=tuple(options.items()))


def _tables(name: str, table: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    found = table.get(key, [])
    tables: list[Mapping[str, object]]
    tables = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    if not isinstance(found, list) or len(tables) != len(found):
        raise ConfigError(Problem(module=name, field=key, value=found, expected=f"tables [[{key}]]"))
    return tables
