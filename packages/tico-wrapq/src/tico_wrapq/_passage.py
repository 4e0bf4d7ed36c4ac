"""The forward passes of a calibration, each counted with all of its points once it has ended well."""

from __future__ import annotations

from itertools import accumulate
from typing import final

import attrs
import torch
from torch import Tensor

from tico_config import Found, NumericsError, Problem
from tico_quantizers import Calibration, Recorder
from tico_wrapq._channel_range import ChannelRange, JoinedRanges, KnownRanges, Stretch
from tico_wrapq._watching import Watching


@final
@attrs.frozen(eq=False)
class _Standing:
    """Points whose ranges are joined, each with its place."""

    joined: JoinedRanges
    places: list[tuple[Watching, Stretch]]

    @classmethod
    def of(cls, shown: list[Watching], ranges: list[ChannelRange]) -> _Standing | None:
        """Return `shown` with the given ranges joined; None where these cannot be."""
        both = JoinedRanges.of(ranges)
        if both is None:
            return None
        joined, sizes = JoinedRanges(both), [each.low.numel() for each in ranges]
        ends = zip(accumulate(sizes), sizes, strict=True)
        places = [Stretch(joined, end - size, size) for end, size in ends]
        return cls(joined, list(zip(shown, places, strict=True)))

    def fits(self, shown: list[Watching], ranges: list[ChannelRange]) -> bool:
        """Tell whether `shown` are these points, with as many channels as before."""
        if not len(self.places) == len(shown) == len(ranges):
            return False
        for (point, place), other, seen in zip(self.places, shown, ranges, strict=True):
            if point is not other or seen.low.numel() != place.size:
                return False
        return True


@final
class Passage(Recorder):
    """The points that the forward pass under way has reached, in order, each with its path.

    As long as one pass after the other shows the same points, their ranges are merged all at once.
    """

    def __init__(self) -> None:
        self.calibration: Calibration | None = None
        self.under_way = False
        self._reached: list[tuple[str, Watching]] = []
        self._shown: list[Watching] = []
        self._known = KnownRanges()
        self._standing: _Standing | None = None
        self._next: tuple[_Standing, ChannelRange] | None = None

    def see(self, path: str, watching: Watching, x: Tensor) -> None:
        """Show `x` to the point at `path`; outside of a pass of the model it counts at once."""
        if watching.is_untouched:
            self._reached.append((path, watching))
        watching.see(x, self._known)
        if not (self.under_way or (self.calibration is not None and self.calibration.in_forward)):
            self.finish()

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
        for _, watching in self._reached:
            watching.drop_unfinished()
        self._forget()

    def _forget(self) -> None:
        self._reached.clear()
        self._shown.clear()
        self._known.forget()
        self._next = None

    def digest(self) -> None:
        """Merge what the pass has shown.

        Raises:
            NumericsError: a point saw NaN or infinity; the first one that did is named.
        """
        with torch.inference_mode(mode=False), torch.no_grad():
            touched = {id(watching): watching for _, watching in self._reached if not watching.is_untouched}
            self._shown = list(touched.values())
            ranges = [watching.latest for watching in self._shown if watching.latest is not None]
            joined = JoinedRanges.of(ranges)
            if not all(each.is_finite for each in (ranges if joined is None else (joined,))):
                self._refuse()
            if joined is not None and self._standing is not None and self._standing.fits(self._shown, ranges):
                self._next = self._standing, self._standing.joined.channels.merge(joined)
            else:
                self._next = self._digested_singly()

    def _digested_singly(self) -> tuple[_Standing, ChannelRange] | None:
        merged = [watching.digest() for watching in self._shown]
        ranges = [each for each in merged if each is not None]
        standing = _Standing.of(self._shown, ranges) if len(ranges) == len(merged) else None
        return None if standing is None else (standing, standing.joined.channels)

    def accept(self) -> None:
        """Count what the pass has shown."""
        if self._next is None:
            for watching in self._shown:
                watching.accept()
            self._standing = None
        else:
            standing, channels = self._next
            standing.joined.channels = channels
            for watching, place in standing.places:
                watching.accept_at(place)
            self._standing = standing
        self._forget()

    def _refuse(self) -> None:
        for path, watching in self._reached:
            if watching.latest is not None and (found := _not_finite(watching.latest)):
                remedy = f"this was batch {watching.batches}, counted from 0"
                expected = "finite in every element"
                raise NumericsError(
                    Problem(module=path, field="x", value=Found(found), expected=expected, remedy=remedy)
                )


def _not_finite(seen: ChannelRange) -> str:
    """Return in which channel there is NaN or infinity; empty where there is none."""
    bad = torch.nonzero(~(seen.low.isfinite() & seen.high.isfinite())).flatten().tolist()
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"NaN or infinity in channel {bad[0]}{more}" if bad else ""
