"""The forward passes of a calibration, each counted with all of its points once it has ended well."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias, final

import attrs
import torch
from torch import Tensor

from tico_config import CalibrationError, Found, NumericsError, Problem
from tico_observers import ChannelRangeReader, Extremes, JoinedRanges
from tico_quantizers import Calibration, Recorder
from tico_wrapq.base._picked_rows import PickedRows
from tico_wrapq.base._point_statistics import Place, PointStatistics, RangeTable

# One for all passages, so that copying and pickling them stays simple.
_TURN: Final = threading.RLock()

See: TypeAlias = Callable[[Tensor], object]
_Group: TypeAlias = tuple[list[PointStatistics], JoinedRanges]


@attrs.frozen(eq=False)
class _Digest:
    """What counts once the pass is accepted: new ranges of tables, and points that move to a new table."""

    ranges: list[tuple[RangeTable, JoinedRanges]] = attrs.field(factory=list)
    moved: list[tuple[PointStatistics, Place]] = attrs.field(factory=list)


@final
class Passage(Recorder):
    """The points that the forward pass under way has reached, in order.

    As long as one pass after the other shows the same points, their ranges are in one table and merged all
    at once.

    Args:
        unfollowed: the paths of modules that choose rows for those below them, where these are not followed.
    """

    def __init__(self, unfollowed: tuple[str, ...] = ()) -> None:
        self.calibration: Calibration | None = None
        self._unfollowed = unfollowed
        self.picked = PickedRows()
        self._reached: list[PointStatistics] = []
        self._shown: list[PointStatistics] = []
        self._reader = ChannelRangeReader()
        self._digest = _Digest()

    def see(self, point: PointStatistics, x: Tensor) -> None:
        """Show what is no padding in `x` to `point`; outside of a pass of the model it counts at once.

        Raises:
            LifecycleError: another thread is in a forward pass of the model.
            CalibrationError: it can't be told which rows are padding.
        """
        calibration = self.calibration
        # To watch is no part of the model, of which function modes of torch may keep account.
        with _TURN, torch._C.DisableTorchFunction():
            if calibration is not None:
                calibration.require_own_pass()
                if self._unfollowed and self.has_padding:
                    self._require_followed(point)
                real = self.picked.real(x)
                strip = calibration.tokens.strip
                x = strip(x, point.padding_axis, point.owner) if real is None else x[real]
            if point.is_untouched:
                self._reached.append(point)
            point.see(x, self._reader)
            if calibration is None or not calibration.in_forward:
                self.finish()

    @property
    def has_padding(self) -> bool:
        """Whether some tokens of the calls that go on are padding."""
        return self.calibration is not None and self.calibration.tokens.has_padding

    def _require_followed(self, point: PointStatistics) -> None:
        for path in self._unfollowed:
            if point.owner.startswith(f"{path}."):
                sentence = f"{path} chooses the rows that it reads, which steps='declared' does not follow"
                sentence += " which of them are padding"
                remedy = "calibrate without padding, or with steps='auto'"
                found = Found("tokens of padding among them")
                raise CalibrationError(
                    Problem(
                        module=point.path,
                        value=found,
                        expected="rows of which it is known whether they are padding",
                        sentence=sentence,
                        remedy=remedy,
                    )
                )

    def real_rows(self, x: Tensor) -> Tensor | None:
        """Return which rows of `x` (…, features) are no padding, (…), as its shape tells; None if all."""
        return None if self.calibration is None else self.calibration.tokens.rows(x)

    def later(self, see: See) -> See:
        """Return what shows a tensor as `see` does, with the padding that the calls of now tell of.

        A tensor that is held back may be shown in a call with other masks.
        """
        if self.calibration is None:
            return see
        tokens = self.calibration.tokens
        said = tokens.now()

        def show(x: Tensor) -> None:
            if not said and not tokens.has_padding:
                see(x)
                return
            with tokens.again(said):
                see(x)

        return show

    def finish(self) -> None:
        """Count what the pass has shown, or forget it where it is refused.

        Raises:
            NumericsError: a point saw NaN or infinity.
        """
        try:
            self.digest()
        except BaseException:
            self.drop_unfinished()
            raise
        self.accept()

    def drop_unfinished(self) -> None:
        """Forget what a forward pass that did not end has shown."""
        for point in self._reached:
            point.drop_unfinished()
        self._forget()

    def _forget(self) -> None:
        self.picked.forget()
        self._reached.clear()
        self._shown.clear()
        self._reader.forget()
        self._digest = _Digest()

    def digest(self) -> None:
        """Merge what the pass has shown.

        Raises:
            NumericsError: a point saw NaN or infinity; the first one that did is named.
        """
        with torch.inference_mode(mode=False), torch.no_grad():
            touched = {id(point): point for point in self._reached if not point.is_untouched}
            self._shown = list(touched.values())
            latest = [(point, point.latest) for point in self._shown if point.latest is not None]
            groups = _groups(latest)
            if not all(joined.is_finite for _, joined in groups):
                self._refuse()
            self._digest = _merge(groups)

    def accept(self) -> None:
        """Count what the pass has shown."""
        for table, ranges in self._digest.ranges:
            table.ranges = ranges
        for point, place in self._digest.moved:
            point.place = place
        for point in self._shown:
            point.accept()
        self._forget()

    def tell(self) -> None:
        """Return nothing: what counts is with the points."""

    def _refuse(self) -> None:
        for point in self._reached:
            if point.latest is not None and (found := _nonfinite_channels(point.latest)):
                remedy = f"this was batch {point.batches}, counted from 0"
                expected = "finite in every element"
                raise NumericsError(
                    Problem(
                        module=point.path,
                        field="x",
                        value=Found(found),
                        expected=expected,
                        sentence=f"it saw {found}",
                        remedy=remedy,
                    )
                )


def _groups(ranges: Sequence[tuple[PointStatistics, Extremes]]) -> list[_Group]:
    """Return the points with their ranges joined, those of one dtype and device together."""
    alike: dict[tuple[torch.dtype, torch.device], list[tuple[PointStatistics, Extremes]]] = {}
    for one in ranges:
        low = one[1].minimum
        alike.setdefault((low.dtype, low.device), []).append(one)
    return [
        ([point for point, _ in group], JoinedRanges.of([each for _, each in group]))
        for group in alike.values()
    ]


def _merge(groups: list[_Group]) -> _Digest:
    """Merge each group with the table of its points; points that had none together get a new one."""
    digest = _Digest()
    for points, joined in groups:
        table = _common_table(points, joined.sizes)
        if table is not None:
            digest.ranges.append((table, table.ranges.merge(joined)))
            continue
        merged = [(point, point.merge_latest(joined[index])) for index, point in enumerate(points)]
        for others, ranges in _groups(merged):
            table = RangeTable(ranges)
            digest.moved.extend((point, Place(table, index)) for index, point in enumerate(others))
    return digest


def _common_table(points: list[PointStatistics], sizes: tuple[int, ...]) -> RangeTable | None:
    """Return the table that holds the ranges of `points`, in this order, and no others; None without one."""
    first = points[0].place
    if first is None or first.table.ranges.sizes != sizes:
        return None
    table = first.table
    for index, point in enumerate(points):
        if point.place is None or point.place.table is not table or point.place.index != index:
            return None
    return table


def _nonfinite_channels(seen: Extremes) -> str:
    """Return in which channel there is NaN or infinity; empty where there is none."""
    bad = torch.nonzero(~(seen.minimum.isfinite() & seen.maximum.isfinite())).flatten().tolist()
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"NaN or infinity in channel {bad[0]}{more}" if bad else ""
