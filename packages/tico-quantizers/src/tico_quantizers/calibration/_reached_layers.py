"""Which layers calibration data have reached, and that these data are finite."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tico_config import Found, NumericsError, Problem
from tico_modules import Edit
from tico_quantizers.calibration._forward_watch import Calibration, Recorder
from tico_quantizers.calibration._hooks import after_call, before_call
from tico_quantizers.layers import (
    IntegerLayer,
    Layer,
    computes_itself,
    feature_axis,
    input_tensor,
    require_as_its_class,
)


class ReachedLayers(Recorder):
    """How many rows, vectors of all input features, each layer was called with in passes that ended well."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self._layers = layers
        self._unfinished: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()

    @property
    def paths(self) -> set[str]:
        """The layers that were called."""
        return set(self.rows)

    def watch(self, calibration: Calibration, *, free: Container[str] = ()) -> list[RemovableHandle]:
        """Set a hook on every layer that notes its calls while `calibration` watches.

        A layer with a forward of its own has to give what its class gives, unless it is `free`.
        """
        handles: list[RemovableHandle] = []
        for path, layer in self._layers.items():
            handles.append(before_call(layer, partial(self._read, calibration, path), calibration))
            if path not in free and not isinstance(layer, IntegerLayer) and computes_itself(layer):
                handles.append(after_call(layer, partial(require_as_its_class, path, layer), calibration))
        return handles

    def _read(
        self, calibration: Calibration, path: str, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        calibration.require_own_pass()
        x = input_tensor(path, args, kwargs)
        self.note(path, calibration.tokens.strip(x, feature_axis(self._layers[path])))
        calibration.accept_unless_in_forward()

    def note(self, path: str, x: Tensor) -> None:
        """Note that the layer at `path` is called with `x`, of which padding is no part.

        Raises:
            NumericsError: `x` holds NaN or infinity; the pass, which does not end, is not counted.
        """
        data = x.numel() and x.is_floating_point()
        if data and not all(math.isfinite(end.item()) for end in torch.aminmax(x.detach())):
            found = Found(f"{int((~x.isfinite()).sum())} values that are NaN or infinite")
            remedy = "leave that batch out: nothing of it was counted"
            expected = "finite in every element"
            sentence = f"its input has {found}"
            problem = Problem(
                module=path, field="input", value=found, expected=expected, remedy=remedy, sentence=sentence
            )
            raise NumericsError(problem)
        features = x.shape[feature_axis(self._layers[path])] if x.ndim else 0
        self._unfinished[path] += x.numel() // max(features, 1)

    def drop_unfinished(self) -> None:
        """Forget the layers of a pass that did not end."""
        self._unfinished = Counter()

    def accept(self) -> None:
        """Count the layers of the pass that has ended."""
        self.rows.update(self._unfinished)
        self._unfinished = Counter()

    def tell(self) -> Counter[str]:
        """Return how many rows each layer has read."""
        return self.rows

    def hear(self, told: Sequence[object], edit: Edit) -> None:
        """Count the rows of all ranks."""
        total: Counter[str] = Counter()
        for rows in told:
            total.update(rows if isinstance(rows, Counter) else {})
        edit.set_attribute(self, "rows", total)
