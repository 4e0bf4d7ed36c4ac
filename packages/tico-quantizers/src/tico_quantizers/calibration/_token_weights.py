"""How much each token counts for a layer: as much as an error in its output moves the output of the block.

The Hessian of GPTQ is that of Σ_t |ΔW x_t|², in which all tokens are alike. They are not: a model of
language may give most of its attention to the first token of a text (attention sinks, Xiao et al. 2023,
arXiv 2309.17453), whose value vector then reaches every other token. An error e in the output z_t of a
layer moves the output y of its block by J_t e, J_t = ∂y/∂z_t. For an error of no preferred direction the
expected |J_t e|² is |e|² |J_t|² / channels, and this mean square derivative is the weight of t. It is
estimated with one product: for random signs s, E |J_tᵀ s|² = |J_t|². Others weigh tokens by the attention
that they receive (Sung et al. 2025, RSQ, arXiv 2503.01820) or by the gradient of the loss (Kim et al. 2025,
GuidedQuant, arXiv 2505.07004); this needs neither an attention that is known by name nor a loss.
"""

from __future__ import annotations

from functools import partial

import attrs
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from tico_quantizers.calibration._calls import Autocast, tensor_leaves
from tico_quantizers.calibration._hooks import after_call, before_call
from tico_quantizers.calibration._input_grams import InputGrams, LayerInput
from tico_quantizers.layers import reads_rows

WITHOUT_DERIVATIVES = "its block has no derivatives for token_weights='auto', so all tokens count alike"
_LARGEST_EXPONENT = 20


def watch_sensitivity(block: nn.Module, grams: InputGrams) -> list[RemovableHandle]:
    """Set the hooks by which `block`, when it runs, weighs what its ``"auto"`` layers have read.

    They switch gradients on while it runs. Layers that do not multiply rows, such as convolutions, are left
    out: every row of theirs counts once.
    """
    layers = {
        path: layer
        for path, layer in grams.layers.items()
        if grams.token_weights.get(path) == "auto" and reads_rows(layer)
    }
    if not layers:
        return []
    run = _Run(grams)
    taps = [after_call(layer, partial(run.read, path)) for path, layer in layers.items()]
    return [before_call(block, run.begin), after_call(block, run.end), *taps]


@attrs.define(eq=False)
class _Run:
    """One call of a block: where its derivatives end, and what they are so far for what layers have read."""

    grams: InputGrams
    ends: list[Tensor] = attrs.field(factory=list)
    tapped: list[Node] = attrs.field(factory=list)
    squares: dict[int, tuple[LayerInput, Tensor]] = attrs.field(factory=dict)

    def begin(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        self._forget()
        torch.set_grad_enabled(True)

    def _forget(self) -> None:
        self.ends, self.tapped, self.squares = [], [], {}

    def read(self, path: str, args: object, kwargs: object, output: object) -> object:
        if isinstance(output, Tensor) and output.is_floating_point() and torch.is_grad_enabled():
            return self.tap(self.grams.latest[path], output)
        return None

    def tap(self, reading: LayerInput, output: Tensor) -> Tensor:
        """Return `output` such that the derivative by it is noted."""
        if not _leads_to(output.grad_fn, self.tapped):
            self.ends.append(output.detach().requires_grad_())
            output = self.ends[-1].clone()  # the block may write to it
        note = partial(self._note, reading)
        output.register_hook(note)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if output.grad_fn is not None:
            self.tapped.append(output.grad_fn)
        return output

    def _note(self, reading: LayerInput, slope: Tensor) -> None:
        squares = torch.linalg.vector_norm(slope, dim=-1, dtype=torch.float32).square() / slope.shape[-1]
        known = self.squares.get(id(reading))
        self.squares[id(reading)] = reading, squares if known is None else known[1] + squares

    def end(self, args: object, kwargs: object, output: object) -> None:
        torch.set_grad_enabled(False)
        result = next((leaf for leaf in tensor_leaves(output) if leaf.requires_grad), None)
        if result is not None and self.ends:
            direction = signs(result, self.grams.tokens.rows(result))
            with Autocast((False, False), Autocast.now().dtypes).again():
                slopes = direction.to(result.dtype).expand_as(result)
                torch.autograd.grad(result, self.ends, slopes, allow_unused=True)
        for reading, squares in self.squares.values():
            reading.weights = power_of_four(squares)
        self._forget()


def _leads_to(node: Node | None, known: list[Node]) -> bool:
    """Return whether one of `known` is among what `node` was computed from; it may be parameters alone."""
    waiting = [node]
    seen: set[Node | None] = {None}
    while waiting:
        node = waiting.pop()
        if node in known:
            return True
        if node not in seen and node is not None:
            waiting += [earlier for earlier, _ in node.next_functions]
        seen.add(node)
    return False


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


def signs(like: Tensor, real: Tensor | None = None) -> Tensor:
    """Return one of 1 and -1 for each element of `like` (samples, ...), the same for every sample.

    They come from the place of an element in its sample alone: not from how many samples there are or in
    which order, not from a generator. Where `real` (samples, tokens) tells that a token of `like` is padding
    they are 0, and the places of the others are counted without it.
    """
    shape = like.shape[1:] or like.shape
    bits = torch.zeros((), dtype=torch.int64, device=like.device)
    for size in shape:
        place = torch.arange(size, dtype=torch.int64, device=like.device)
        bits = _mixed(bits.unsqueeze(-1) + place)
    found = 1 - 2 * (bits & 1).to(torch.float32)
    if real is None or like.ndim != 3:
        return found
    place = (real.to(torch.int64).cumsum(-1) - 1).clamp(min=0)
    return found[place] * real.unsqueeze(-1)


def _mixed(bits: Tensor) -> Tensor:
    """Return other 31-bit integers, each bit of which depends on every bit of those given."""
    for factor in (0x45D9F3B, 0x119DE1F3):
        bits = ((bits ^ (bits >> 16)) * factor) & 0x7FFFFFFF
    return bits ^ (bits >> 16)
