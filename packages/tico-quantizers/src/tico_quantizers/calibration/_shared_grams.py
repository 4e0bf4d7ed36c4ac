"""Gram matrices that several ranks compute together, with the bits that one process would find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

from tico_config import TokenWeights
from tico_observers import GramShare
from tico_quantizers.calibration._grouped_gram import GroupedGram
from tico_quantizers.calibration._input_grams import InputGrams, LayerInput, ToldInput
from tico_quantizers.calibration._ranks import Ranks
from tico_quantizers.calibration._real_tokens import RealTokens
from tico_quantizers.calibration._row_numbers import RowWatch
from tico_quantizers.layers import Layer, groups


@final
class SharedGrams(InputGrams):
    """Gram matrices of what the layers read on all ranks, as `InputGrams` has them of one.

    Sums of floats depend on their order. So every rank is told what layers have read on the others, in the
    order in which one process would have, and multiplies its share of the panels of each matrix.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        token_weights: Mapping[str, TokenWeights],
        *,
        ranks: Ranks,
        tokens: RealTokens,
        asymmetric: bool,
        numbering: RowWatch | None,
    ) -> None:
        super().__init__(
            layers,
            token_weights,
            tokens=tokens,
            disposable=True,
            asymmetric=asymmetric,
            numbering=numbering,
        )
        self._ranks = ranks
        self._waiting: list[ToldInput] = []

    def digest(self) -> None:
        """Compute nothing yet."""

    def accept(self) -> None:
        """Keep what a call has shown until the ranks `exchange` it."""
        self._waiting += [ToldInput.of(item) for item in self._inputs]
        self._inputs = []
        self.latest = {}

    def exchange(self, make: Callable[[], None]) -> None:
        """Count what the calls show that `make` makes, each rank its own.

        Raises:
            LifecycleError: another rank has failed.
            OtherRankFailed: its model has.
        """

        def told() -> list[ToldInput]:
            self._waiting = []
            make()
            return self._waiting

        for items in self._ranks.together("what layers read", told):
            for item in items:
                self._observe(item.input(self.layers), self._grams, in_place=True)

    def _unread(self, item: LayerInput) -> GroupedGram:
        """Return what has seen nothing yet, and will compute this rank's share."""
        part = super()._unread(item).parts[0]
        share = GramShare(columns=part.columns, number=self._ranks.number, of=self._ranks.count)
        return GroupedGram((share,) * groups(item.layer))

    def join(self) -> None:
        """Have the whole matrices on every rank."""
        order = sorted(self._grams, key=sorted)
        shares = [part for readers in order for part in self._grams[readers].parts]
        told = self._ranks.gather("Gram matrices", ([part.upper for part in shares], self.unpaired))
        self.unpaired = set().union(*(unpaired for _, unpaired in told))
        uppers = zip(*(own for own, _ in told), strict=True)
        whole = iter(
            [
                part.joined(each)
                for part, each in zip(shares, uppers, strict=True)
                if isinstance(part, GramShare)
            ]
        )
        for readers in order:
            known = self._grams[readers]
            parts = tuple(next(whole) for _ in known.parts)
            self._grams[readers] = GroupedGram(parts, known.total, known.squares, known.features)
