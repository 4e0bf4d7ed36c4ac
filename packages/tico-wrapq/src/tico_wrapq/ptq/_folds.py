"""Batch norms that are folded into the layer before them, where nothing else sees its output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import ClassVar, final

import attrs
import torch
from torch import Tensor, nn
from typing_extensions import Self

from tico_config import PTQConfig
from tico_modules import (
    Edit,
    Layout,
    RestorableModule,
    carry_over,
    child_path,
    children,
    named_modules,
    parameter,
)
from tico_quantizers import Calibration, Recorder
from tico_quantizers.calibration import after_call
from tico_wrapq.torch_nn import (
    LayerWrapper,
    QuantConv,
    QuantConvTranspose,
    QuantLinear,
    QuantNorm,
    UsedStatistics,
)

_FOLDING = (QuantConv, QuantConvTranspose, QuantLinear)

_KINDS: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.ConvTranspose1d: nn.BatchNorm1d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
    nn.ConvTranspose3d: nn.BatchNorm3d,
}
# The axes of what a layer returns for a batch, by the kind of norm that may follow.
_BATCHED: Mapping[type[nn.Module], int] = {nn.BatchNorm1d: 3, nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}


@final
class FoldedNorm(UsedStatistics, RestorableModule):
    """What stands in the place of a batch norm that the layer before it has taken over: nothing is done."""

    kind: ClassVar[str] = "ptq.folded_norm"
    is_folded: ClassVar[bool] = True
    num_features: int
    affine: bool
    like: (
        Tensor  # of the dtype and on the device of the norm, for what it answers; no buffer: files need none
    )

    def __init__(self, like: Tensor | None = None) -> None:
        super().__init__()
        device = None if like is None or like.is_meta else like.device
        self.like = torch.empty(0, dtype=None if like is None else like.dtype, device=device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.like = fn(self.like)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self

    @property
    def weight(self) -> Tensor | None:
        """The weight of a norm that does nothing: ones."""
        return self.constant(1.0) if self.affine else None

    @property
    def bias(self) -> Tensor | None:
        """The bias of a norm that does nothing: zeros."""
        return self.constant(0.0) if self.affine else None

    def constant(self, value: float) -> Tensor:
        """Return a vector of `value`s, one for each channel."""
        return self.like.new_full((self.num_features,), value)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name, which callers may use
        """Return `input`."""
        return input

    def layout(self) -> Mapping[str, object]:
        """Return nothing: there is nothing to know."""
        return {}

    @classmethod
    def restore(cls, original: nn.Module, layout: Layout, tensors: Mapping[str, Tensor]) -> Self:
        """Return one."""
        return cls(_stored(original, "running_mean"))


@attrs.frozen(eq=False)
class Fold:
    """A layer and the batch norm behind it in `chain`, which calls one after the other and nothing else."""

    chain: nn.Module
    layer: LayerWrapper
    norm: QuantNorm

    @property
    def batched_axes(self) -> int:
        """The number of axes that the layer's output has for a batch."""
        kind = type(self.layer.layer)
        return 2 if kind is nn.Linear else _BATCHED[_KINDS[kind]]

    def notes(self) -> dict[str, str]:
        """Return what the report says of the two modules, by path."""
        return {
            self.layer.path: f"with the norm of {self.norm.path}",
            self.norm.path: f"folded into {self.layer.path}",
        }

    def finish(self) -> dict[str, nn.Module]:
        """Return the integer layer that does both and what takes the place of the norm, by path.

        With s = norm weight / sqrt(variance + eps), the weight becomes ``weight * s`` and the bias
        ``(bias - mean) * s + norm bias``.

        Raises:
            CalibrationError: a point saw no data.
        """
        layer, norm = self.layer.layer, self.norm.module
        weight = self.layer.rows_of(_stored(layer, "weight").detach())
        scale, shift = _scale_and_shift(norm)
        by_row = scale.view(-1, *(1 for _ in weight.shape[1:]))
        folded = (weight.double() * by_row).to(weight.dtype)
        bias = parameter(layer, "bias")
        moved = shift if bias is None else bias.detach().double() * scale + shift
        new = self.layer.integer_of(
            folded, moved.to(weight.dtype), self.norm.point("act_out").determine_grid()
        )
        gone = FoldedNorm(_stored(norm, "running_mean"))
        carry_over(self.norm, gone)
        return {self.layer.path: new, self.norm.path: gone}


def _stored(module: nn.Module, name: str) -> Tensor:
    tensor: Tensor = getattr(module, name)
    return tensor


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return s and ``norm bias - mean * s``, float64."""
    mean, variance = (_stored(norm, name).double() for name in ("running_mean", "running_var"))
    eps: float = getattr(norm, "eps", 0.0)
    weight, bias = parameter(norm, "weight"), parameter(norm, "bias")
    scale = torch.rsqrt(variance + eps)
    scale = scale if weight is None else scale * weight.detach().double()
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias.detach().double()


def foldable(root: nn.Module, config: PTQConfig) -> Iterator[Fold]:
    """Yield the layers of `root`, in wrappers, that a `Sequential` has right before a batch norm.

    Neither may stand elsewhere too, or have hooks, and no override may ask for a point between them.
    """
    every = list(named_modules(root))
    places = Counter(id(child) for _, module in every for child in children(module).values())
    for _, module in every:
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            parts = list(children(module).values())
            for layer, norm in pairwise(parts):
                if isinstance(layer, _FOLDING) and isinstance(norm, QuantNorm):
                    fold = Fold(module, layer, norm)
                    alone = places[id(layer)] == places[id(norm)] == 1 and not _hooked(layer, norm)
                    if alone and _fits(fold) and not _wanted_between(fold, config):
                        yield fold


def _hooked(*modules: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def _fits(fold: Fold) -> bool:
    layer, norm = fold.layer.layer, fold.norm.module
    tracked = all(getattr(norm, name, None) is not None for name in ("running_mean", "running_var"))
    own = "forward" in vars(norm) or type(norm).forward is not nn.BatchNorm1d.forward
    kind = _KINDS.get(type(layer))
    if not tracked or own or kind is None or not isinstance(norm, kind) or not _is_quantized(fold.layer):
        return False
    return len(_stored(norm, "running_mean")) == len(fold.layer.rows_of(_stored(layer, "weight")))


def _is_quantized(layer: LayerWrapper) -> bool:
    return layer.weight_specs["weight"].is_quantized


def _wanted_between(fold: Fold, config: PTQConfig) -> bool:
    between = [
        child_path(fold.layer.path, "act_out"),
        child_path(fold.norm.path, "act_in"),
        child_path(fold.norm.path, "weight"),
    ]
    return any(path in config.overrides for path in between)


@final
class Folds(Recorder):
    """How often chains, their layers and their norms were called: one that is called as often calls both."""

    def __init__(self, folds: list[Fold], calibration: Calibration) -> None:
        self._folds = folds
        self._calibration = calibration
        self._latest: Counter[tuple[int, str]] = Counter()
        self._done: Counter[tuple[int, str]] = Counter()

    def watch(self) -> None:
        """Count calls from now on; the hooks are among the calibration's handles."""
        for index, fold in enumerate(self._folds):
            for role, module in (("chain", fold.chain), ("layer", fold.layer), ("norm", fold.norm)):
                note = partial(self._note, index, role)
                self._calibration.handles.append(after_call(module, note, self._calibration))

    def _note(self, index: int, role: str, args: object, kwargs: object, output: object) -> None:
        """Note a call until the forward pass ends; outside of a pass of the model it counts at once."""
        self._calibration.require_own_pass()
        self._latest[index, role] += 1
        batched = self._folds[index].batched_axes
        if role == "layer" and not (isinstance(output, Tensor) and output.ndim == batched):
            self._latest[index, "unbatched"] += 1
        self._calibration.accept_unless_in_forward()

    def drop_unfinished(self) -> None:
        """Forget what a forward pass that did not end has left."""
        self._latest.clear()

    def accept(self) -> None:
        """Count what the pass has shown."""
        self._done.update(self._latest)
        self._latest.clear()

    def tell(self) -> Counter[tuple[int, str]]:
        """Return what was counted."""
        return self._done

    def hear(self, told: Sequence[object], edit: Edit) -> None:
        """Count the calls of all ranks."""
        total: Counter[tuple[int, str]] = Counter()
        for done in told:
            total.update(done if isinstance(done, Counter) else {})
        edit.set_attribute(self, "_done", total)

    def shown(self) -> list[Fold]:
        """Return the folds of which every call so far was one by its chain, on batches."""
        return [fold for index, fold in enumerate(self._folds) if self._is_shown(index)]

    def notes(self) -> dict[str, str]:
        """Return what the report says of the modules of these folds, by path."""
        return {path: note for fold in self.shown() for path, note in fold.notes().items()}

    def _is_shown(self, index: int) -> bool:
        calls = {self._done[index, role] for role in ("chain", "layer", "norm")}
        return len(calls) == 1 and calls != {0} and not self._done[index, "unbatched"]
