"""Marks of codes, by which it is told whether something has computed with them as if they were values."""

from __future__ import annotations

import zlib

import attrs
from torch import Tensor

from tico_config import Found, LifecycleError, Problem
from tico_modules._storage.exact_module import has_values

_PART = 256  # bytes at each end: what averages codes changes them everywhere, and files are not read whole


def mark_of(codes: Tensor) -> str | None:
    """Return a checksum of the first and the last codes; None where they cannot be read here and now.

    >>> import torch
    >>> mark_of(torch.tensor([[1, 2]], dtype=torch.uint8))
    '6d693c7a'
    """
    if not has_values(codes):
        return None
    flat = codes.detach().reshape(-1)
    ends = bytes(code & 255 for end in (flat[:_PART], flat[-_PART:]) for code in end.tolist())
    return f"{zlib.crc32(ends):08x}"


@attrs.define(eq=False)
class CopiedCodes:
    """What the codes of a copy were when it was made, and how often they had been written to.

    Averages of models, such as `torch.optim.swa_utils.AveragedModel`, are made in copies, in place.
    """

    _mark: str
    _writes: int

    @classmethod
    def of(cls, codes: Tensor | None) -> CopiedCodes | None:
        """Return those of `codes`; None where they have no values, or do not count their writes."""
        mark = None if codes is None or codes.is_inference() else mark_of(codes)
        return None if codes is None or mark is None else cls(mark, codes._version)

    def require_same(self, codes: Tensor) -> None:
        """Refuse codes that something has written others over since.

        Raises:
            LifecycleError: with what to do instead.
        """
        if codes.is_inference() or codes._version == self._writes:
            return
        mark = mark_of(codes)
        if mark not in (None, self._mark):
            raise _overwritten()
        self._writes = codes._version


def _overwritten() -> LifecycleError:
    found, expected = Found("others, written over them"), "the codes of the model that was copied"
    remedy = "average parameters only, as use_buffers=False does; other codes come in by load_state_dict"
    sentence = (
        "the codes of an integer layer were written over in a copy of the model, as averages over buffers "
        "do, and codes are no values to average"
    )
    return LifecycleError(
        Problem(field="codes", value=found, expected=expected, remedy=remedy, sentence=sentence)
    )
