"""The ranges of the keys and values of each layer, without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import torch
from torch import Tensor

from tico_config import CalibrationError, Found, Problem, TicoError
from tico_modules import Edit
from tico_observers import require_finite
from tico_quantizers.calibration import Recorder, is_mask_name, located, real_tokens

PARTS: Final = ("key", "value")
_NAME: Final = "attention_mask"


@attrs.frozen(eq=False)
class Ranges:
    """The smallest and the largest value of each channel of each head, (heads, channels) each."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, states: Tensor, real: Tensor | None) -> Ranges | None:
        """Return those of `states` (samples, heads, tokens, channels) at tokens that are `real`, or None.

        `real` is (samples, tokens); None stands for all of them.
        """
        rows = states.detach().transpose(1, 2)
        seen = rows.flatten(0, 1) if real is None else rows[real.to(rows.device)]
        if not seen.numel():
            return None
        require_finite(seen, "calibration")
        low, high = torch.aminmax(seen.to(torch.float32), dim=0)
        return cls(low, high)

    def merge(self, other: Ranges) -> Ranges:
        """Return those of all that either has seen."""
        return Ranges(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))


Seen = Mapping[tuple[int, str], Ranges]


class RangeRecorder(Recorder):
    """Ranges by number of the layer and ``"key"`` or ``"value"``; `paths` are those of attention modules."""

    def __init__(self, paths: Mapping[int, str]) -> None:
        self.paths = paths
        self.seen: dict[tuple[int, str], Ranges] = {}
        self._unfinished: dict[tuple[int, str], Ranges] = {}
        self._mask: Tensor | None = None

    def begin(self, given: Mapping[str, object]) -> None:
        """Take note of the arguments of a pass that begins, by name.

        Raises:
            CalibrationError: there is a mask that does not say which tokens are real.
        """
        mask = given.get(_NAME)
        if mask is None:
            self._mask = None
        elif is_mask_name(_NAME) and isinstance(mask, Tensor) and mask.ndim == 2:
            self._mask = real_tokens(_NAME, mask)
        else:
            shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            expected, remedy = (
                "of shape (samples, tokens)",
                "give the mask of tokens that the tokenizer makes",
            )
            found = Found(f"one of shape {shape}" if isinstance(mask, Tensor) else f"a {shape}")
            raise CalibrationError(Problem(field=_NAME, value=found, expected=expected, remedy=remedy))

    def note(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Observe the keys and values (samples, heads, tokens, channels) that a layer adds to the cache.

        Raises:
            NumericsError: they hold NaN or infinity; naming the layer.
        """
        tokens = key.shape[-2]
        real = None if self._mask is None else self._mask[:, -tokens:]
        for part, states in zip(PARTS, (key, value), strict=True):
            try:
                found = Ranges.of(states, real)
            except TicoError as error:
                raise located(error, self.paths[layer]) from None
            known = self._unfinished.get((layer, part))
            if found is not None:
                self._unfinished[layer, part] = found if known is None else known.merge(found)

    def drop_unfinished(self) -> None:
        """Forget what a pass that did not end has shown."""
        self._unfinished = {}

    def accept(self) -> None:
        """Count what the pass that has ended has shown."""
        self.seen = merged([self.seen, self._unfinished])
        self._unfinished = {}

    def tell(self) -> Seen:
        """Return what was seen."""
        return self.seen

    def hear(self, told: Sequence[object], edit: Edit) -> None:
        """Have seen what all ranks have."""
        edit.set_attribute(self, "seen", merged([each for each in told if isinstance(each, dict)]))


def merged(all_seen: Sequence[Seen]) -> dict[tuple[int, str], Ranges]:
    """Return the ranges of all together."""
    total: dict[tuple[int, str], Ranges] = {}
    for seen in all_seen:
        for name, each in seen.items():
            total[name] = total[name].merge(each) if name in total else each
    return total
