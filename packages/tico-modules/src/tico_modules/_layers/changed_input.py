"""A layer with something in front of it that is linear in its input."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from tico_modules._layers.kept_weight import KeepsWeight, refuse_weight
from tico_modules._layers.restorable import RestorableModule
from tico_modules._storage.read_only_weight import read_only
from tico_modules._tree.answers import answer_for


class ChangedInput(KeepsWeight, RestorableModule):
    """``layer(change(x))``, with a linear `change`; it answers what `layer` answers."""

    holds_modules = True
    layer: nn.Module

    def _put_before(self, layer: nn.Module) -> None:
        """Stand in front of `layer`, once all buffers of the module are there."""
        self.layer = layer
        answer_for(layer, self)

    @property
    def weight(self) -> Tensor:
        """The weight that does to an input what this module does: the layer's, with the change in it.

        It is computed where it is used, and read-only, as that of an integer layer is.
        """
        weight = self._stored("weight")
        if weight is None:
            raise AttributeError("weight")
        return read_only(self._read_weight, weight.shape, weight.dtype, weight.device)

    @weight.setter
    def weight(self, value: Tensor) -> None:
        refuse_weight()

    @weight.deleter
    def weight(self) -> None:
        refuse_weight()

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer."""
        return self._stored("bias")

    def _stored(self, name: str) -> Tensor | None:
        found: Tensor | None = getattr(self.layer, name, None)
        return found

    @abstractmethod
    def _read_weight(self) -> Tensor:
        """Return the layer's weight with the change in it, in its dtype, without derivatives."""
