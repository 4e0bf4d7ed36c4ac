"""What a page needs of a comparison of two models, and of an ablation, whoever has made them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol


class ComparedBlock(Protocol):
    """How far the output of a block is off, as shares of the squared norm of the float output."""

    @property
    def path(self) -> str:
        """The path of the block; empty for a model that is one block."""

    @property
    def own(self) -> float:
        """What the block adds by itself, on the inputs that the float one has."""

    @property
    def accumulated(self) -> float:
        """What has come together in the quantized model so far."""


class Compared(Protocol):
    """How far a quantized model is from the float one, as `compare` of tico.quantization says it.

    Named by `Report.to_html`.
    """

    @property
    def lines(self) -> Sequence[ComparedBlock]:
        """The error of each block, in the order of the model."""

    @property
    def kl(self) -> float:
        """The mean divergence of the distributions of the output, in nats."""

    @property
    def agreement(self) -> float:
        """The share of rows whose largest logit is the same one in both."""

    @property
    def rows(self) -> int:
        """The number of rows of the output that were compared."""


class AblatedGroup(Protocol):
    """What a group of quantized parts costs, as mean divergences of a row of the output, in nats."""

    @property
    def by(self) -> Literal["kind", "block", "role"]:
        """What the parts of the group have in common."""

    @property
    def name(self) -> str:
        """Which kind, block or role it is."""

    @property
    def kind(self) -> str:
        """The kind of the parts; empty where there may be several."""

    @property
    def parts(self) -> int:
        """How many parts there are."""

    @property
    def without(self) -> float:
        """The divergence with these parts in float, and all others quantized."""

    @property
    def alone(self) -> float:
        """The divergence with these parts quantized, and all others in float."""


class Ablated(Protocol):
    """What each part of a quantized model costs, as `ablation` of tico.quantization says it.

    Named by `Report.to_html`.
    """

    @property
    def lines(self) -> Sequence[AblatedGroup]:
        """The groups: kinds, blocks and roles."""

    @property
    def kl(self) -> float:
        """The divergence with everything quantized."""

    @property
    def rest(self) -> float:
        """The divergence with everything in float."""

    @property
    def rows(self) -> int:
        """The number of rows of the output that were compared."""


class SeenBin(Protocol):
    """How many values lie between two edges."""

    @property
    def low(self) -> float:
        """The lower edge."""

    @property
    def high(self) -> float:
        """The upper edge."""

    @property
    def count(self) -> int:
        """How many."""


class SeenGrid(Protocol):
    """What came to one grid of activations."""

    @property
    def path(self) -> str:
        """The path of the point."""

    @property
    def grid(self) -> str:
        """The format of the grid."""

    @property
    def low(self) -> float | None:
        """The lowest value that it can hold; None where it follows the data, or differs by channel."""

    @property
    def high(self) -> float | None:
        """The highest one, likewise."""

    @property
    def share_clipped(self) -> float | None:
        """The share of the values beyond the grid; None where it follows the data."""

    @property
    def bins(self) -> Sequence[SeenBin]:
        """The histogram of the values, in order."""


class Seen(Protocol):
    """What came to the grids of activations, as `watch_points` of tico.quantization says it.

    Named by `Report.to_html`.
    """

    @property
    def points(self) -> Sequence[SeenGrid]:
        """The grids, in the order of the model."""
