"""One thing that is wrong with an input, and how it is worded."""

from __future__ import annotations

import reprlib

import attrs

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_LONGEST = 10_000


def describe(value: object) -> str:
    """Return a short text for `value`; strings that describe a finding are kept as they are."""
    try:
        return str(value) if isinstance(value, Found) else _SHORT.repr(value)
    except Exception:  # noqa: BLE001  # an integer of too many digits, a list that holds itself, a foreign __repr__
        return f"a value of type {type(value).__name__} that cannot be shown"


@attrs.frozen(kw_only=True)
class Problem:
    """One thing that is wrong: where, what was expected, what was got, and what to do.

    Attributes:
        expected: what was expected, so that "must be `expected`" reads well; with a `sentence` it need not.
        value: what was got; a `Found` describes it in words.
        module: full path of the module or file, named first in the text.
        field: name of the field or argument.
        remedy: what to do, named last in the text.
        sentence: the text between `module` and `remedy`, for problems that "`field` must be `expected`, got
            `value`" does not fit. The other attributes stay what they are.

    >>> str(Problem(module="layers.0", field="bits", value=0, expected="2 to 16", remedy="take 4"))
    'layers.0: bits must be 2 to 16, got 0; take 4'
    >>> sentence = "the model is not prepared"
    >>> str(Problem(field="model", expected="a prepared model", sentence=sentence, remedy="prepare it first"))
    'the model is not prepared; prepare it first'
    """

    expected: str
    value: object = attrs.field(default=None, repr=describe)
    module: str | None = None
    field: str | None = None
    remedy: str | None = None
    sentence: str | None = None

    def __str__(self) -> str:
        """Return the problem as one sentence without its full stop."""
        where = f"{self.module}: " if self.module else ""
        way_out = f"; {self.remedy}" if self.remedy else ""
        return f"{where}{_cut(self.sentence or self._templated())}{way_out}"

    def _templated(self) -> str:
        what = f"{self.field} must be" if self.field else "expected"
        return f"{what} {self.expected}, got {describe(self.value)}"


def move(problem: Problem, field: str) -> Problem:
    """Return `problem` with `field` before its own: a field of a value that is itself in a field."""
    sentence = None if problem.sentence is None else f"{field}: {problem.sentence}"
    return attrs.evolve(problem, field=f"{field}.{problem.field}", sentence=sentence)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text)} characters)"


class Found(str):
    """A description of what was found, shown without quotes in an error.

    >>> str(Problem(expected="a prepared model", value=Found("one that was not prepared")))
    'expected a prepared model, got one that was not prepared'
    """

    __slots__ = ()
