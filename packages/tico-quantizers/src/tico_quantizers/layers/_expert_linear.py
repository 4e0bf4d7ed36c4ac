"""One expert's share of a parameter, as a linear layer."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from tico_modules import parameter


@final
class ExpertLinear(nn.Linear):
    """A linear layer without a bias whose weight is a part of a parameter of `home`, and no copy of it.

    The parameter `name` holds a weight for each expert; this is the one of the expert `number`, which stands
    there as (inputs, outputs) if `transposed`.

    >>> import torch
    >>> home = nn.Module()
    >>> home.register_parameter("weights", nn.Parameter(torch.ones(2, 3, 4)))
    >>> layer = ExpertLinear(home, "weights", 1, transposed=True)
    >>> layer, layer(torch.ones(3)).tolist()
    (ExpertLinear(in_features=3, out_features=4, bias=False), [3.0, 3.0, 3.0, 3.0])
    """

    def __init__(self, home: nn.Module, name: str, number: int, *, transposed: bool) -> None:
        nn.Module.__init__(self)
        self._place = (home, name, number, transposed)  # in a tuple: a module would become a child
        self.out_features, self.in_features = self.weight.shape
        self.register_parameter("bias", None)

    @property
    def home(self) -> tuple[nn.Module, str]:
        """The module that owns the parameter, and its name."""
        return self._place[:2]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # torch has it as an attribute
        """The weight (outputs, inputs), a view of the parameter without derivatives."""
        home, name = self.home
        stack = parameter(home, name)
        if stack is None:
            raise AttributeError(name)
        return self.of(stack.detach())

    def of(self, stack: Tensor) -> Tensor:
        """Return the view (outputs, inputs) of the expert's share of a tensor like the parameter."""
        _, _, number, transposed = self._place
        return stack[number].T if transposed else stack[number]
