"""Typed reading of the JSON that says how a module is laid out; a wrong value is an `ArtifactError`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import attrs
from torch import Tensor

from tico_config import ArtifactError, Problem, TicoError


@attrs.frozen
class Layout:
    """A JSON object and the place in the file it comes from, for errors."""

    where: str
    values: Mapping[str, object]

    def make_error(self, name: str, expected: str) -> ArtifactError:
        """Return the error for the value `name`."""
        value = self.values.get(name)
        return ArtifactError(Problem(module=self.where, field=name, value=value, expected=expected))

    @contextmanager
    def locate_errors(self) -> Iterator[None]:
        """Turn errors of this library into errors of the file: values of a file are checked as any others.

        Raises:
            ArtifactError: with the problems of the error, all at `where`.
        """
        try:
            yield
        except TicoError as error:
            first, *others = (attrs.evolve(problem, module=self.where) for problem in error.problems)
            raise ArtifactError(first, *others) from None

    def require_keys(self, names: Iterable[str]) -> None:
        """Refuse an object that has other keys.

        Raises:
            ArtifactError: naming the first that is missing or left over.
        """
        wanted = set(names)
        for name in sorted(self.values.keys() ^ wanted):
            raise self.make_error(name, f"exactly the keys {', '.join(sorted(wanted))}")

    def integer(self, name: str) -> int:
        """Return a non-negative integer."""
        value = self.values.get(name)
        if type(value) is not int or value < 0:
            raise self.make_error(name, "an integer of at least 0")
        return value

    def optional_integer(self, name: str) -> int | None:
        """Return a non-negative integer or None."""
        return None if self.values.get(name, 0) is None else self.integer(name)

    def boolean(self, name: str) -> bool:
        """Return True or False."""
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self.make_error(name, "true or false")
        return value

    def text(self, name: str) -> str:
        """Return a string."""
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self.make_error(name, "a string")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a list of non-negative integers."""
        value = self.values.get(name)
        if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
            raise self.make_error(name, "a list of integers of at least 0")
        return tuple(value)

    def child(self, name: str) -> Layout:
        """Return the object at `name`."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.make_error(name, "an object")
        return Layout(f"{self.where}.{name}", value)

    def optional_child(self, name: str) -> Layout | None:
        """Return the object at `name`, or None."""
        return None if self.values.get(name, 0) is None else self.child(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings."""
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.make_error(name, "a list of strings")
        return tuple(value)

    def objects(self, name: str) -> tuple[Layout, ...]:
        """Return a list of objects."""
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.make_error(name, "a list of objects")
        return tuple(Layout(f"{self.where}.{name}[{index}]", item) for index, item in enumerate(value))

    def children(self) -> Iterator[tuple[str, Layout]]:
        """Yield every name with its object."""
        return ((name, self.child(name)) for name in self.values)


def require_tensor(tensors: Mapping[str, Tensor], where: Layout, name: str) -> Tensor:
    """Return the tensor `name`.

    Raises:
        ArtifactError: it is missing.
    """
    if name not in tensors:
        expected = "one of the tensors in the file"
        raise ArtifactError(Problem(module=where.where, field=name, value=None, expected=expected))
    return tensors[name]


def select_below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix` and a dot, without both.

    >>> select_below({"packed.codes": 1, "bias": 2}, "packed")
    {'codes': 1}
    """
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
