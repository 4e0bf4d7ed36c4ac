"""What the output of a model is worth with some of its layers replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias

import attrs
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tico_config import CalibrationError, Found, Problem
from tico_modules import Progress, children, named_modules
from tico_observers import products
from tico_quantizers.calibration import quiet_runs, unchanged_process
from tico_quantizers.evaluation import divergence, logits_of, rows_of

Sample: TypeAlias = tuple[tuple[object, ...], dict[str, object]]
Stand: TypeAlias = Mapping[str, nn.Module]
"""What stands in the place of layers, by path."""

_ROWS: Final = 64
"""How many rows of logits are compared at a time."""


@attrs.frozen(kw_only=True)
class Measured:
    """How far a model is from the float one; see `Analysis` and `Budget`."""

    divergence: float
    error: float


def measure(
    model: nn.Module, variants: Sequence[Stand], samples: Sequence[Sample], *, show_progress: bool
) -> list[Measured]:
    """Return how far `model` with each of `variants` in it is from what it is now, on `samples`.

    For every sample the model is called once as it is, and once for each variant.

    Raises:
        CalibrationError: the model gives no tensor of floats.
    """
    places = _Places(model)
    sums = [_Sums() for _ in variants]
    total = len(samples) * (len(variants) + 1)
    with (
        Progress("ANALYZE", total=total, show=show_progress, unit="pass") as bar,
        unchanged_process(),
        quiet_runs(model, with_hooks=True),
    ):
        for sample in samples:
            expected = _output(model, sample)
            bar.step()
            for variant, own in zip(variants, sums, strict=True):
                with places.holding(variant) as root:
                    own.add(expected, _output(root, sample))
                bar.step()
    return [own.measured() for own in sums]


class _Places:
    """Where the modules of a model stand."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._slots: dict[int, list[tuple[nn.Module, str]]] = {}
        for _, parent in named_modules(model):
            for name, child in children(parent).items():
                self._slots.setdefault(id(child), []).append((parent, name))

    @contextmanager
    def holding(self, variant: Stand) -> Iterator[nn.Module]:
        """Put the modules of `variant` in their places meanwhile, and yield the root."""
        pairs = [(self._model.get_submodule(path), new) for path, new in variant.items() if path]
        try:
            for old, new in pairs:
                self._put(old, new)
            yield variant.get("", self._model)  # a path that is empty is that of the whole
        finally:
            for old, _ in pairs:
                self._put(old, old)

    def _put(self, old: nn.Module, new: nn.Module) -> None:
        for parent, name in self._slots[id(old)]:
            # Straight into the dict: a module's own __setattr__ may do more than store a child.
            slots: dict[str, nn.Module | None] = parent._modules
            slots[name] = new


@attrs.frozen(eq=False)
class _Output:
    """What a model gave for a sample.

    Attributes:
        rows: real rows (rows, features).
        is_logits: whether they are distributions over classes.
        loss: the sum of the losses of the tokens that follow others; None where they are not known.
        tokens: how many these are.
    """

    rows: Tensor
    is_logits: bool
    loss: float | None = None
    tokens: int = 0


def _output(model: nn.Module, sample: Sample) -> _Output:
    args, kwargs = sample
    torch.manual_seed(0)  # all draw the same numbers
    output: object = model(*args, **kwargs)
    found = logits_of(output, "model")
    rows = rows_of(kwargs)(found)
    logits: object = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        return _Output(rows, is_logits=False)
    following = _following(args, kwargs, found)
    if following is None:
        return _Output(rows, is_logits=True)
    return _Output(rows, True, *following)


def _following(
    args: tuple[object, ...], kwargs: Mapping[str, object], logits: Tensor
) -> tuple[float, int] | None:
    """Return the sum of the losses of the tokens that follow others, and how many these are."""
    tokens = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.shape != logits.shape[:2]:
        return None
    if tokens.shape[1] < 2:
        return None
    rows, wanted = logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    losses = nn.functional.cross_entropy(rows.float(), wanted, reduction="none")
    return float(products.total(losses)), wanted.numel()


@attrs.define
class _Sums:
    """What the outputs of a variant add up to, and those of the float model beside them."""

    divergence: float = 0.0
    signal: float = 0.0
    growth: float = 0.0
    tokens: int = 0
    has_losses: bool = True
    is_logits: bool = True

    def add(self, expected: _Output, found: _Output) -> None:
        """Count a sample.

        Raises:
            CalibrationError: the variant gives outputs of another shape.
        """
        if expected.rows.shape != found.rows.shape:
            shapes = Found(f"{tuple(expected.rows.shape)}, then {tuple(found.rows.shape)}")
            raise CalibrationError(
                Problem(field="output", value=shapes, expected="of one shape, float and quantized")
            )
        self.is_logits = self.is_logits and expected.is_logits
        for one, other in zip(*(torch.split(each.rows, _ROWS) for each in (expected, found)), strict=True):
            self._add_rows(one.double(), other.double())
        if expected.loss is None or found.loss is None:
            self.has_losses = False
        else:
            self.growth += found.loss - expected.loss
            self.tokens += expected.tokens

    def _add_rows(self, expected: Tensor, found: Tensor) -> None:
        if self.is_logits:
            self.divergence += float(products.total(divergence(expected, found)))
            self.signal += len(expected)
        else:
            self.divergence += float(products.total((found - expected).square()))
            self.signal += float(products.total(expected.square()))

    def measured(self) -> Measured:
        """Return the divergence a row or a unit of energy, and the error."""
        found = max(0.0, self.divergence) / self.signal if self.signal else self.divergence
        if not (self.is_logits and self.has_losses and self.tokens):
            return Measured(divergence=found, error=found)
        growth = torch.tensor(self.growth / self.tokens, dtype=torch.float64)
        return Measured(divergence=found, error=float(growth.expm1()))


def on_device_of(model: nn.Module, sample: Sample) -> Sample:
    """Return `sample` with its tensors where the first tensor of `model` is."""
    tensors = (each.device for each in (*model.parameters(), *model.buffers()) if not each.is_meta)
    device = next(tensors, torch.device("cpu"))
    moved: Sample = tree_map_only(Tensor, lambda x: x.to(device), sample)
    return moved
