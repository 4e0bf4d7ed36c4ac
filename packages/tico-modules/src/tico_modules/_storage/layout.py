"""Typed reading of the JSON that says how a module is laid out; a wrong value is an `ArtifactError`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import attrs
from torch import Tensor

from tico_config import ArtifactError, Found, Problem, TicoError

T = TypeVar("T")


@attrs.frozen
class Layout:
    """A JSON object in a file, read with types.

    `where` names the file and the place in it, for errors, for example ``quantized.json.modules.fc``.

    >>> Layout("file.fc", {"bits": 4}).integer("bits")
    4
    """

    where: str
    values: Mapping[str, object]

    def make_error(self, name: str, expected: str) -> ArtifactError:
        """Return the error that the value of `name` is not `expected`."""
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
        """Refuse an object whose keys are not exactly `names`.

        Raises:
            ArtifactError: naming every key that is missing or left over.
        """
        wanted = set(names)
        others = [
            Problem(module=self.where, field=name, value=Found("nothing"), expected="present")
            if name in wanted
            else Problem(module=self.where, field=name, value=self.values[name], expected="absent")
            for name in sorted(self.values.keys() ^ wanted)
        ]
        if others:
            raise ArtifactError(*others)

    def integer(self, name: str) -> int:
        """Return the non-negative integer at `name`.

        Raises:
            ArtifactError: there is none.
        """
        value = self.values.get(name)
        if type(value) is not int or value < 0:
            raise self.make_error(name, "an integer of at least 0")
        return value

    def optional_integer(self, name: str) -> int | None:
        """Return the non-negative integer at `name`, or None for null.

        Raises:
            ArtifactError: there is neither.
        """
        return None if self.values.get(name, 0) is None else self.integer(name)

    def boolean(self, name: str) -> bool:
        """Return the boolean at `name`.

        Raises:
            ArtifactError: there is none.
        """
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self.make_error(name, "true or false")
        return value

    def text(self, name: str) -> str:
        """Return the string at `name`.

        Raises:
            ArtifactError: there is none.
        """
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self.make_error(name, "a string")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """Return the list of non-negative integers at `name`.

        Raises:
            ArtifactError: there is none.
        """
        value = self.values.get(name)
        if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
            raise self.make_error(name, "a list of integers of at least 0")
        return tuple(value)

    def child(self, name: str) -> Layout:
        """Return the object at `name`.

        Raises:
            ArtifactError: there is none.
        """
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.make_error(name, "an object")
        return Layout(f"{self.where}.{name}", value)

    def optional_child(self, name: str) -> Layout | None:
        """Return the object at `name`, or None for null.

        Raises:
            ArtifactError: there is neither.
        """
        return None if self.values.get(name, 0) is None else self.child(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return the list of strings at `name`.

        Raises:
            ArtifactError: there is none.
        """
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.make_error(name, "a list of strings")
        return tuple(value)

    def objects(self, name: str) -> tuple[Layout, ...]:
        """Return the list of objects at `name`.

        Raises:
            ArtifactError: there is none.
        """
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.make_error(name, "a list of objects")
        return tuple(Layout(f"{self.where}.{name}[{index}]", item) for index, item in enumerate(value))

    def children(self) -> Iterator[tuple[str, Layout]]:
        """Yield every name with the object at it.

        Raises:
            ArtifactError: a value is no object.
        """
        return ((name, self.child(name)) for name in self.values)


def require_tensor(tensors: Mapping[str, Tensor], layout: Layout, name: str) -> Tensor:
    """Return the tensor `name` of the module that `layout` describes.

    Raises:
        ArtifactError: there is no such tensor.
    """
    if name not in tensors:
        problem = Problem(
            module=layout.where, field=name, value=Found("none"), expected="a tensor in the file"
        )
        raise ArtifactError(problem)
    return tensors[name]


def select_below(values: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Return the values whose names start with `prefix` and a dot, by the rest of their names.

    >>> select_below({"packed.codes": 1, "bias": 2}, "packed")
    {'codes': 1}
    """
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}
