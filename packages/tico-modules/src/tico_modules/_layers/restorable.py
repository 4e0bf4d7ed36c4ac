"""Modules that files can restore."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import Self

from tico_modules._storage.layout import Layout
from tico_modules._storage.packed_weight import PackedWeight
from tico_modules._tree.answers import StandIn
from tico_modules._tree.edit import Edit


class RestorableModule(StandIn, ABC):
    """A module of a converted model that can be saved and restored.

    `kind` names the class in files; no other class has it. A package offers its classes in the entry-point
    group ``tico.modules``, as a tuple. The children of such a module are its own parts, which `restore` makes
    too, unless `holds_modules` is true: then they are modules of the model, saved and restored by themselves.
    """

    kind: ClassVar[str]
    holds_modules: ClassVar[bool] = False

    @property
    def is_calibrating(self) -> bool:
        """Whether an algorithm that puts such modules into a model in `prepare` learns from it now."""
        return False

    @abstractmethod
    def layout(self) -> Mapping[str, object]:
        """Return the values that `restore` needs besides the tensors, for JSON."""

    @classmethod
    @abstractmethod
    def restore(cls, original: nn.Module, layout: Layout, tensors: Mapping[str, Tensor]) -> Self:
        """Return the module that `layout` describes, with `tensors` by name, to replace the float `original`.

        One that stands beside others is given the module that it is a child of, and joins it in `join`.

        Raises:
            ArtifactError: layout, tensors and `original` do not fit each other.
        """

    def join(self, served: nn.Module, edit: Edit) -> None:
        """Become a child of `served`, if the module is one that stands beside others."""

    def rounded_from(self, original: nn.Module) -> Mapping[PackedWeight, Tensor]:
        """Return the float tensor that each packed weight of this module stands for, of its shape.

        `original` is the float module in whose place this one stands, or beside which. A weight that it does
        not have is left out.
        """
        return {}
