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

from collections.abc import Iterable

import attrs
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tico_quantizers._calls import Autocast, tensor_leaves
from tico_quantizers._input_grams import InputGrams, Reading
from tico_quantizers._weight_view import reads_rows

WITH_GRADIENTS = (
    "The block ran with gradients, for token_weights='auto'; 'uniform' and numbers do without them."
)
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
    handles: list[RemovableHandle] = [
        block.register_forward_pre_hook(run.begin, with_kwargs=True),
        block.register_forward_hook(run.end),
    ]
    return handles + [layer.register_forward_hook(_Tap(run, path)) for path, layer in layers.items()]


@attrs.define(eq=False)
class _Run:
    """One call of a block: what its layers gave, and what they had read."""

    grams: InputGrams
    given: list[Tensor] = attrs.field(factory=list)
    read: list[Reading] = attrs.field(factory=list)
    masks: list[Tensor] = attrs.field(factory=list)

    def begin(self, block: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        self.given, self.read = [], []
        self.masks = [leaf for leaf in (*tensor_leaves(args), *tensor_leaves(kwargs)) if leaf.ndim == 4]
        torch.set_grad_enabled(True)

    def tap(self, path: str, output: Tensor) -> Tensor:
        """Return `output` such that it leads from the output of the block back to what is kept of it."""
        kept = output if output.requires_grad else output.detach().requires_grad_()
        self.given.append(kept)
        self.read.append(self.grams.latest[path])
        # A copy: what the block writes to it later must not be taken for what the layer gave.
        return kept.clone()

    def end(self, block: nn.Module, args: object, output: object) -> None:
        torch.set_grad_enabled(False)
        result = next((leaf for leaf in tensor_leaves(output) if leaf.requires_grad), None)
        if result is not None and self.given:
            with Autocast((False, False), Autocast.now().dtypes).again():
                self._weigh(result)
        self.given, self.masks = [], []

    def _weigh(self, result: Tensor) -> None:
        direction = (signs(result) * _counted(self.masks, result)).to(result.dtype).expand_as(result)
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            result, self.given, direction, allow_unused=True
        )
        derivatives = list(zip(self.read, found, strict=True))
        for reading in {id(reading): reading for reading in self.read}.values():
            squares = [
                slope.float().square().mean(-1)
                for reader, slope in derivatives
                if reader is reading and slope is not None
            ]
            reading.weights = power_of_four(torch.stack(squares).sum(0)) if squares else None


@attrs.frozen(eq=False)
class _Tap:
    run: _Run
    path: str

    def __call__(self, layer: nn.Module, args: object, output: object) -> object:
        if isinstance(output, Tensor) and output.is_floating_point() and torch.is_grad_enabled():
            return self.run.tap(self.path, output)
        return None


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


def signs(like: Tensor) -> Tensor:
    """Return one of 1 and -1 for each element of `like` (samples, ...), the same for every sample.

    They come from the place of an element in its sample alone: not from how many samples there are or in
    which order, not from a generator.
    """
    shape = like.shape[1:] or like.shape
    bits = torch.zeros((), dtype=torch.int64, device=like.device)
    for size in shape:
        place = torch.arange(size, dtype=torch.int64, device=like.device)
        bits = _mixed(bits.unsqueeze(-1) + place)
    return 1 - 2 * (bits & 1).to(torch.float32)


def _mixed(bits: Tensor) -> Tensor:
    """Return other 31-bit integers, each bit of which depends on every bit of those given."""
    for factor in (0x45D9F3B, 0x119DE1F3):
        bits = ((bits ^ (bits >> 16)) * factor) & 0x7FFFFFFF
    return bits ^ (bits >> 16)


def _counted(masks: Iterable[Tensor], result: Tensor) -> Tensor:
    """Return 0 for each token of `result` (samples, tokens, channels) that is padding by a mask, else 1.

    A mask (samples, heads, queries, keys) makes a token padding if it lets no query see it.
    """
    counted = result.new_ones(result.shape[:2] if result.ndim == 3 else (), dtype=torch.float32)
    for mask in masks:
        seen = _seen(mask)
        if seen is not None and result.ndim == 3 and seen.shape in (counted.shape, (1, counted.shape[1])):
            counted = counted * seen
    return counted.unsqueeze(-1)


def _seen(mask: Tensor) -> Tensor | None:
    """Return which keys (samples, keys) some query may see; None if `mask` is none."""
    if mask.dtype == torch.bool:
        return mask.any(2).any(1)
    if mask.is_floating_point():
        return (mask > torch.finfo(mask.dtype).min / 2).any(2).any(1)
    return None
