"""How much each token counts for a layer: as much as an error in its output moves the output of the block.

The Hessian of GPTQ is that of Σ_t |ΔW x_t|², in which all tokens are alike. They are not: a model of
language may give most of its attention to the first token of a text (attention sinks, Xiao et al. 2023,
arXiv 2309.17453), whose value vector then reaches every other token. An error e in the output z_t of a
layer moves the output y of its block by J_t e, J_t = ∂y/∂z_t. For an error of no preferred direction the
expected |J_t e|² is |e|² |J_t|² / channels, and this mean square derivative is the weight of t. It is
estimated with one product: for random signs s, E |J_tᵀ s|² = |J_t|².

Where J goes through other linear layers of the block, their stand-ins take their place (`StandIn`): with
J = A W B, for what lies behind and before a layer W, the weight is that of A S B, S an element of each
column of W. So no layer is multiplied backward, and what there is between layers (attention, norms,
gates, sums) is derived as it is. Behind the last layer of a block nothing multiplies any more: where it is
known which layer that is, its output is its stand-in's, too.

Others weigh tokens by the attention that they receive (Sung et al. 2025, RSQ, arXiv 2503.01820) or by the
gradient of the loss (Kim et al. 2025, GuidedQuant, arXiv 2505.07004); this needs neither an attention that
is known by name nor a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import attrs
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tico_modules import named_modules
from tico_quantizers.calibration._calls import Autocast, tensor_leaves
from tico_quantizers.calibration._hooks import Arguments, after_call, before_call, changed_call
from tico_quantizers.calibration._input_grams import InputGrams, LayerInput
from tico_quantizers.calibration._signs import among_real, signs_of
from tico_quantizers.calibration._stand_ins import Cut, StandIn
from tico_quantizers.layers import as_layer, reads_rows

WITHOUT_DERIVATIVES = "its block has no derivatives for token_weights='auto', so all tokens count alike"
_LARGEST_EXPONENT = 20


def watch_sensitivity(
    block: nn.Module, grams: InputGrams, *, is_short: bool = False
) -> list[RemovableHandle]:
    """Set the hooks by which `block`, when it runs, weighs what its ``"auto"`` layers have read.

    They switch gradients on while it runs. Layers that do not multiply rows, such as convolutions, are left
    out: every row of theirs counts once. If it `is_short`, each layer of the block is called once in a call,
    nobody needs what it gives, and the last one is not computed.
    """
    weighed = {
        id(layer): path
        for path, layer in grams.layers.items()
        if grams.token_weights.get(path) == "auto" and reads_rows(layer)
    }
    if not weighed:
        return []
    found = (as_layer(module) for _, module in named_modules(block) if module is not block)
    layers = [layer for layer in found if layer is not None]
    cutting = {number: StandIn(layer, number) for number, layer in enumerate(layers) if reads_rows(layer)}
    run = _Run(grams, cutting, frozenset(range(len(layers))) if is_short else frozenset())
    handles = [before_call(block, run.begin), after_call(block, run.end)]
    for number, layer in enumerate(layers):
        handles.append(changed_call(layer, partial(run.reach, number)))
        if number in cutting:
            handles.append(after_call(layer, partial(run.read, number, weighed.get(id(layer)))))
    return handles


@attrs.define(eq=False)
class _Run:
    """Calls of a block, one after the other: what the derivatives are so far for what its layers have read.

    `due` are the numbers of its layers, of which the last to be reached is not computed; none if all are.
    """

    grams: InputGrams
    stand_ins: Mapping[int, StandIn]
    due: frozenset[int]
    waiting: set[int] = attrs.field(factory=set)
    unread: Tensor | None = None
    anchor: Tensor = attrs.field(factory=lambda: torch.zeros(0))
    squares: dict[int, tuple[LayerInput, Tensor]] = attrs.field(factory=dict)
    drawn: Tensor | None = None

    def begin(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        self._forget()
        self.waiting = set(self.due)
        torch.set_grad_enabled(True)
        self.anchor = torch.zeros(0).requires_grad_()

    def _forget(self) -> None:
        self.squares, self.unread = {}, None

    def reach(self, number: int, args: tuple[object, ...], kwargs: dict[str, object]) -> Arguments | None:
        """Let a layer be computed without derivatives; the last one of one row, to know its output's size."""
        is_last = self.waiting == {number}
        self.waiting.discard(number)
        x = _first(args, kwargs)
        if number not in self.stand_ins or x is None:
            return None
        torch.set_grad_enabled(False)
        if not (is_last and x.ndim > 1 and x.numel()):
            return None
        self.unread = x
        return (x.detach().flatten(0, -2)[:1],), {}

    def read(
        self,
        number: int,
        path: str | None,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        output: object,
    ) -> object:
        """Return the output of a layer such that the derivative by it is noted."""
        torch.set_grad_enabled(True)
        stand_in, x = self.stand_ins[number], _first(args, kwargs) if self.unread is None else self.unread
        if x is None or not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        if self.unread is not None:
            self.unread = None
            output = stand_in.given(x.detach(), output.shape[-1]).to(output.dtype)
        if x.shape[:-1] != output.shape[:-1]:
            return None
        note = None if path is None else partial(self._note, self.grams.latest[path])
        return Cut(stand_in, note).of(self.anchor, x, output.detach())

    def _note(self, reading: LayerInput, slope: Tensor) -> None:
        squares = torch.linalg.vector_norm(slope, dim=-1, dtype=torch.float32).square() / slope.shape[-1]
        known = self.squares.get(id(reading))
        self.squares[id(reading)] = reading, squares if known is None else known[1] + squares

    def end(self, args: object, kwargs: object, output: object) -> None:
        torch.set_grad_enabled(False)
        result = next((leaf for leaf in tensor_leaves(output) if leaf.requires_grad), None)
        if result is not None:
            direction = self._signs(result)
            with Autocast((False, False), Autocast.now().dtypes).again():
                slopes = direction.to(result.dtype).expand_as(result)
                torch.autograd.grad(result, self.anchor, slopes, allow_unused=True)
        for reading, squares in self.squares.values():
            reading.weights = power_of_four(squares)
        self._forget()

    def _signs(self, result: Tensor) -> Tensor:
        shape = result.shape[1:] or result.shape
        if self.drawn is None or self.drawn.shape != shape:
            self.drawn = signs_of(shape, result.device)
        return among_real(self.drawn, result, self.grams.tokens.rows(result))


def _first(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Tensor | None:
    """Return the first argument of a call if it is a tensor."""
    x = args[0] if args else next(iter(kwargs.values()), None)
    return x if isinstance(x, Tensor) else None


def power_of_four(squares: Tensor) -> Tensor | None:
    """Return the power of four that is nearest to each of `squares` by its logarithm; None if all are 0.

    So rows multiplied by the roots are not rounded, and weights that are all but equal change no code.

    >>> weights = power_of_four(torch.tensor([0.0, 0.5, 1.9, 2.0, 70.0]))
    >>> weights.tolist()
    [0.0, 1.0, 1.0, 4.0, 64.0]
    """
    squares = squares.nan_to_num(0.0)
    if not bool(squares.any()):
        return None
    exponents = torch.frexp(squares).exponent.div(2, rounding_mode="floor")
    exponents = exponents.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    # Made from its bits: not every machine's `exp2` and `ldexp` are exact.
    powers = (2 * exponents + 127 << 23).to(torch.int32).view(torch.float32)
    return torch.where(squares > 0, powers, 0.0)
