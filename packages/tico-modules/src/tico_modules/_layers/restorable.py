"""Modules that a saved model can be made of again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import Self

from tico_modules._storage.layout import Layout


class RestorableModule(nn.Module, ABC):
    """A module that `convert` leaves behind: `kind` names its class in files, `layout` its settings.

    Its children are parts of it, unless `holds_modules`: then they are modules of the model.
    """

    kind: ClassVar[str]
    holds_modules: ClassVar[bool] = False

    @property
    def is_calibrating(self) -> bool:
        """Whether an algorithm that puts such modules into a model in `prepare` learns from it now."""
        return False

    @abstractmethod
    def layout(self) -> Mapping[str, object]:
        """Return what is needed besides the tensors to make this module again, as JSON values."""

    @classmethod
    @abstractmethod
    def restore(cls, original: nn.Module, layout: Layout, tensors: Mapping[str, Tensor]) -> Self:
        """Return the module that `layout` and `tensors` describe, in the place of the float `original`.

        Raises:
            ArtifactError: layout, tensors and `original` do not fit each other.
        """
