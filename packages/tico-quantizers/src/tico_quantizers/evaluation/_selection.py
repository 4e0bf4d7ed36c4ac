"""What is switched off in a quantized model: parts of it by path, kind, role and block."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias, final, get_args

import attrs

from tico_config import ConfigError, Problem, Rule, pattern_problems, unmatched_problems
from tico_config.validation import check_choice, check_instance, refuse

Kind: TypeAlias = Literal["weights", "activations", "cache"]


@final
@attrs.frozen(kw_only=True)
class QuantizedPart:
    """One thing in a model that is quantized: the weight of a layer, a point, or the cache of a layer.

    Attributes:
        path: of the layer or the point, as in a report.
        kind: ``"weights"``, ``"activations"`` or ``"cache"``.
        block: the path of the block that it is in, as in `compare`; empty where it is in none.
        role: what it is in its block, as in `analyze`: its path there, with ``#`` for numbers; in no block,
            its own path.
    """

    path: str
    kind: Kind
    block: str
    role: str


def _as_patterns(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)


@final
@attrs.frozen
class Selection:
    """The parts of a quantized model for which all of this holds.

    Attributes:
        paths: a path, glob or ``re:`` pattern, as in `overrides`, or several of them. It is that of a part,
            or of a module that holds it.
        kind: ``"weights"``, ``"activations"`` or ``"cache"``; None for all.
        roles: a role, glob or pattern, or several of them.
        blocks: the numbers of blocks, in the order of the model; None for all, and for what is in none.

    Raises:
        ConfigError: a pattern cannot be matched, or a field is something else.

    >>> Selection("*.mlp", kind="weights", blocks=range(2)).paths
    ('*.mlp',)
    """

    paths: tuple[str, ...] = attrs.field(default="*", converter=_as_patterns)
    kind: Kind | None = attrs.field(default=None, kw_only=True)
    roles: tuple[str, ...] = attrs.field(default="*", converter=_as_patterns, kw_only=True)
    blocks: range | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        """Refuse fields that say nothing."""
        blocks: object = self.blocks
        expected = "None or a range, such as range(0, 4)"
        refuse(
            *_pattern_problems("paths", self.paths),
            *_pattern_problems("roles", self.roles),
            None if self.kind is None else check_choice("kind", self.kind, get_args(Kind)),
            None if blocks is None else check_instance("blocks", blocks, range, expected),
        )

    def of(self, parts: Iterable[QuantizedPart], blocks: Iterable[str]) -> tuple[QuantizedPart, ...]:
        """Return those of `parts` that are meant, in a model with `blocks`, which are paths.

        Raises:
            ConfigError: a pattern matches none of `parts`, or all together match none.
        """
        every, homes = list(parts), list(blocks)
        problems = [
            *unmatched_problems(self.paths, {path for part in every for path in _around(part.path)}, "paths"),
            *unmatched_problems(self.roles, {part.role for part in every}, "roles"),
        ]
        if problems:
            raise ConfigError(*problems)
        chosen = None if self.blocks is None else {home for n, home in enumerate(homes) if n in self.blocks}
        found = tuple(part for part in every if self._means(part, chosen))
        if not found:
            expected = "a selection in which something is quantized"
            remedy = f"the model has {len(homes)} blocks; report(model) says what is quantized where"
            raise ConfigError(Problem(field="select", value=self, expected=expected, remedy=remedy))
        return found

    def _means(self, part: QuantizedPart, blocks: set[str] | None) -> bool:
        above = [*_around(part.path)]
        return (
            self.kind in (None, part.kind)
            and (blocks is None or part.block in blocks)
            and any(rule.matches(part.role) for rule in map(Rule, self.roles))
            and any(rule.matches(path) for rule in map(Rule, self.paths) for path in above)
        )


def _pattern_problems(field: str, patterns: tuple[object, ...]) -> list[Problem]:
    texts = [each for each in patterns if isinstance(each, str)]
    if not texts or len(texts) < len(patterns):
        return [Problem(field=field, value=patterns, expected="one pattern or more, as text")]
    return pattern_problems(texts, field)


def _around(path: str) -> Iterable[str]:
    """Yield `path`, and those of the modules around it."""
    yield path
    while "." in path:
        path = path.rpartition(".")[0]
        yield path
