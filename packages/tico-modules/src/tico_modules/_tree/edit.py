"""Edits of a module tree that can be undone."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

import attrs
from torch import nn
from typing_extensions import Self

from tico_modules._tree.module_tree import children
from tico_modules._tree.offload import Offload

T = TypeVar("T")


class _Slots:
    """The places of modules: for each one the modules that hold it, and the names under which they do."""

    def __init__(self) -> None:
        self._known: dict[int, nn.Module] = {}
        self._slots: dict[int, list[tuple[nn.Module, str]]] = {}

    def add(self, module: nn.Module) -> None:
        """Take in `module` and everything below it."""
        waiting = [module]
        while waiting:
            parent = waiting.pop()
            if id(parent) not in self._known:
                self._known[id(parent)] = parent
                for name, child in children(parent).items():
                    self.note(child, parent, name)
                    waiting.append(child)

    def note(self, child: nn.Module, parent: nn.Module, name: str) -> None:
        """Remember that `child` stands in a slot of `parent`."""
        self._slots.setdefault(id(child), []).append((parent, name))

    def find(self, root: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
        """Return the slots of `module` in modules that can be reached from `root`."""
        return [(parent, name) for parent, name in self._find_current(module) if self._reaches(root, parent)]

    def _find_current(self, module: nn.Module) -> list[tuple[nn.Module, str]]:
        slots = self._slots.get(id(module), [])
        return [(parent, name) for parent, name in slots if parent._modules.get(name) is module]

    def _reaches(self, root: nn.Module, module: nn.Module) -> bool:
        seen: set[int] = set()
        waiting = [module]
        while waiting:
            current = waiting.pop()
            if current is root:
                return True
            if id(current) not in seen:
                seen.add(id(current))
                waiting += [parent for parent, _ in self._find_current(current)]
        return False


class Edit:
    """A context for changes of one model, which are all undone if the block raises an exception.

    Modules and values that were replaced are kept until then, and not written to. With an `offload`, the
    tensors of those that take their places are moved to it at once.

    >>> model: nn.Module = nn.Sequential(nn.ReLU())
    >>> with Edit() as edit:
    ...     model = edit.replace(model, model.get_submodule("0"), nn.Identity())
    >>> model.get_submodule("0")
    Identity()
    """

    def __init__(self, offload: Offload | None = None) -> None:
        self.offload = offload
        self._undo: list[Callable[[], object]] = []
        self._commit: list[Callable[[], object]] = []
        self._slots = _Slots()

    def __enter__(self) -> Self:
        """Begin the changes."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Run the actions of `on_commit`, or undo all changes in reverse order after an exception."""
        for action in self._commit if kind is None else reversed(self._undo):
            action()

    def on_undo(self, action: Callable[[], object]) -> None:
        """Run `action` if the block raises."""
        self._undo.append(action)

    def on_commit(self, action: Callable[[], object]) -> None:
        """Run `action`, which must not fail, when the block ends without an exception."""
        self._commit.append(action)

    def replace(self, root: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
        """Put `new` in every place below `root` where `old` is.

        Returns the root afterwards: `new` if `old` was the root itself, else `root`.
        """
        if old is root:
            return new
        self._slots.add(root)
        for parent, name in self._slots.find(root, old):
            # Straight into the dict: a module's own __setattr__ may do more than store a child.
            slots: dict[str, nn.Module | None] = parent._modules
            self.put(slots, name, new)
            self._slots.note(new, parent, name)
        self._slots.add(new)
        return root

    def settle(self, value: object) -> None:
        """Move the tensors of `value`, which is new and about to be put somewhere, to the offload, if any.

        Raises:
            OSError: the disk is full.
        """
        if self.offload is not None:
            self.offload.move(value)

    def put(self, mapping: dict[str, T], name: str, value: T) -> None:
        """Set the entry `name` of `mapping`; undone like every change."""
        self.settle(value)
        known = name in mapping
        self._undo.append(_Assignment(mapping, name, mapping[name]) if known else _Removal(mapping, name))
        mapping[name] = value

    def drop(self, mapping: dict[str, T], name: str) -> None:
        """Remove the entry `name` of `mapping`; undone like every change."""
        self._undo.append(_Assignment(mapping, name, mapping.pop(name)))

    def set_attribute(self, owner: object, name: str, value: object) -> None:
        """Set an ordinary attribute that `owner` keeps in its `__dict__`."""
        attributes: dict[str, object] = vars(owner)
        self.put(attributes, name, value)


@attrs.frozen
class _Assignment(Generic[T]):
    mapping: dict[str, T]
    name: str
    value: T

    def __call__(self) -> None:
        self.mapping[self.name] = self.value


@attrs.frozen
class _Removal(Generic[T]):
    mapping: dict[str, T]
    name: str

    def __call__(self) -> None:
        self.mapping.pop(self.name, None)
