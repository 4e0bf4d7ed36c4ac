"""What became of an export."""

from __future__ import annotations

import math
from pathlib import Path

import attrs


@attrs.frozen(kw_only=True)
class ExportResult:
    """An export and what its consumer made of it.

    Attributes:
        path: the file or folder.
        target: the name of the format.
        verified: whether a consumer has loaded it, run it and given what the model gives.
        consumer: what that was, with its version; otherwise ``not verified: `` and the reason.
        sqnr: signal-to-noise ratio of the outputs in dB, the model's by the reference being the signal;
            infinite where all are equal, NaN where none were compared.
        bound: the least `sqnr` in dB that the format allows here; outputs that are on a grid may also be a
            step of it off. NaN where none were compared.
        max_difference: the largest absolute difference; NaN where none were compared.
        equal_share: the share of equal elements, 0 to 1; NaN where none were compared.
        kl: of language models that were given tokens: the mean Kullback-Leibler divergence of the
            consumer's distribution of the next token from the model's, in nats; else None.
        perplexities: of such models, the perplexity of the given tokens by the model and by the consumer.
        bytes: the size of the export.
        content_bytes: the size of the tensors that the model holds.
        notes: what else has to be known, such as parts left in float, one sentence each.
    """

    path: Path
    target: str
    verified: bool
    consumer: str
    sqnr: float = math.nan
    bound: float = math.nan
    max_difference: float = math.nan
    equal_share: float = math.nan
    kl: float | None = None
    perplexities: tuple[float, float] | None = None
    bytes: int
    content_bytes: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return a line for people."""
        size = f"{self.bytes / 1e6:.2f} MB for {self.content_bytes / 1e6:.2f} MB of tensors"
        if not self.verified:
            return f"{self.path} ({self.target}): {self.consumer}; {size}"
        figures = f"{self.sqnr:.1f} dB, at most {self.max_difference:.2g} apart"
        return f"{self.path} ({self.target}), verified by {self.consumer}: {figures}; {size}"
