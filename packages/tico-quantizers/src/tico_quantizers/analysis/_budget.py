"""What mixed bits may cost."""

from __future__ import annotations

from typing import final

import attrs

from tico_config import Found, Problem
from tico_config.validation import as_float, check_integer, check_number, refuse


@final
@attrs.frozen(kw_only=True)
class Budget:
    """The most that a choice of bits may take; one of three.

    Attributes:
        bits: the mean over all weights of the layers that the config quantizes, with codes, scales and zero
            points as files hold them: 4 bits in groups of 64 are 5.
        bytes: of all parameters and buffers of the model afterwards, as `plan` and `report` count them.
        error: what is measured on held-out batches: by how much perplexity may grow, as a share of that of
            the float model (0.01 is 1 %). For a model that does not give logits for the tokens that follow
            those it is called with, it is the divergence: see `Analysis`.

    Raises:
        ConfigError: none or several of them are given, or one is no positive number.

    >>> Budget(bits=4.5)
    Budget(bits=4.5, bytes=None, error=None)
    """

    bits: float | None = attrs.field(default=None, converter=as_float)
    bytes: int | None = None
    error: float | None = attrs.field(default=None, converter=as_float)

    def __attrs_post_init__(self) -> None:
        """Refuse anything but one positive number."""
        given = [name for name in ("bits", "bytes", "error") if getattr(self, name) is not None]
        if len(given) != 1:
            found = Found(" and ".join(given) or "nothing")
            remedy = "write for example Budget(bits=4.5)"
            expected = "one of bits, bytes and error"
            refuse(Problem(field="budget", value=found, expected=expected, remedy=remedy))
        refuse(
            None if self.bits is None else check_number("bits", self.bits, 0.0, 32.0, open_low=True),
            None if self.bytes is None else check_integer("bytes", self.bytes, 1),
            None if self.error is None else check_number("error", self.error, 0.0, None, open_low=True),
        )
