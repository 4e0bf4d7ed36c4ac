"""The processes that convert a model together: what each tells the others, and who does what."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tico_config import ConfigError, Found, LifecycleError, Problem, TicoError
from tico_modules import named_modules
from tico_quantizers.calibration._messages import Message, Messages

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # which builds of torch without it lack

T = TypeVar("T")


class OtherRankFailed(Exception):  # noqa: N818  # the error is on another rank
    """Another rank has raised an exception, which is no `TicoError`, in work that all do together."""


class Ranks:
    """The processes of a group that convert copies of one model together, or this one alone.

    All of them run the same code on the same state, but for the work that they share. They exchange what was
    found in the same order, each time with all others: `gather`, `together` and `first` are such exchanges,
    and `about` says what for, so that ranks which have come apart are told so. Where one raises in between,
    `guard` lets it take part in the exchange that the others are in, so that all of them raise.

    Attributes:
        number: the rank of this process in the group.
        count: how many there are.

    >>> Ranks().count, Ranks().gather("greetings", "alone")
    (1, ['alone'])
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        self._group = group
        self.number, self.count = (0, 1) if group is None else _place_in(group)
        self._messages = Messages({})
        self._agreed: BaseException | None = None
        self._is_broken = False

    def bind(self, model: nn.Module) -> None:
        """Let messages name the modules of `model` by their paths."""
        self._messages = Messages(dict(named_modules(model)))

    def release(self) -> None:
        """Forget the model, which may then leave memory; messages name no modules any more."""
        self._messages = Messages({})

    def owns(self, index: int) -> bool:
        """Return whether the part `index` of work that is dealt out in turn is this rank's."""
        return index % self.count == self.number

    def owners(self, costs: Sequence[float]) -> list[int]:
        """Return a rank for each piece of work with one of `costs`: the dearest first, to who has least."""
        found, loads = [0] * len(costs), [0.0] * self.count
        for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
            found[index] = loads.index(min(loads))
            loads[found[index]] += costs[index]
        return found

    def gather(self, about: str, value: T) -> list[T]:
        """Return the values of all ranks in their order; that of this one is `value` itself.

        Raises:
            LifecycleError: a rank has failed, or does not answer.
        """
        if self.count == 1:
            return [value]
        values, failed = self._exchange(about, value, is_failure=False)
        if failed:
            self._agreed = _failure(failed)
            raise self._agreed
        return [cast("T", each) for each in values]

    def together(self, about: str, work: Callable[[], T]) -> list[T]:
        """Return what `work` gives on each rank; where it raises on one, it does on all of them.

        Raises:
            LifecycleError: it has raised a `TicoError` on another rank, or one does not answer.
            OtherRankFailed: it has raised something else on another rank.
        """
        try:
            value = work()
        except Exception as error:
            self._tell(error)
            raise
        return self.gather(about, value)

    def first(self, about: str, work: Callable[[], T]) -> T:
        """Return what `work` gives on the first rank, which alone does it."""
        found = self.together(about, lambda: work() if self.number == 0 else None)[0]
        return cast("T", found)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Tell the other ranks of an exception in the context, so that they raise one too.

        Raises:
            LifecycleError: another rank has raised.
        """
        try:
            yield
        except OtherRankFailed as error:
            raise LifecycleError(_problem(str(error))) from error
        except Exception as error:
            if error is not self._agreed:
                self._tell(error)
            raise

    def require_present(self) -> None:
        """Wait until all ranks are here.

        Raises:
            LifecycleError: one is not within the time limit of the group; the first rank names it.
        """
        mark, others = torch.zeros(1), range(1, self.count if self.number == 0 else 1)
        if self.number > 0:
            with self._answering("rank 0"):
                dist.send(mark.to(self._device), self._global(0), group=self._group)
        for rank in others:
            with self._answering(f"rank {rank}"):
                dist.recv(mark.to(self._device), self._global(rank), group=self._group)

    def _tell(self, error: Exception) -> None:
        """Tell the others of an error, as far as they answer."""
        if self.count > 1 and not self._is_broken:
            self._agreed = error
            text = f"{type(error).__name__}: {error}"
            with suppress(TicoError):
                self._exchange("a failure", (isinstance(error, TicoError), text), is_failure=True)

    def _exchange(
        self, about: str, value: object, *, is_failure: bool
    ) -> tuple[list[object], dict[int, object]]:
        """Return the values of all ranks, and those of them that tell of a failure, by rank."""
        message, matter = self._messages.pack(value), zlib.crc32(about.encode())
        with self._answering():
            heads = self._heads([int(is_failure), len(message.outline), len(message.content), matter])
            self._require_together(about, {head[3] for head in heads if not head[0]})
            outlines = self._contents(message.outline, [head[1] for head in heads])
            contents = self._contents(message.content, [head[2] for head in heads])
        pairs = zip(outlines, contents, strict=True)
        values = [
            value if rank == self.number else self._messages.unpack(Message(*pair))
            for rank, pair in enumerate(pairs)
        ]
        return values, {rank: values[rank] for rank, head in enumerate(heads) if head[0]}

    def _require_together(self, about: str, matters: set[int]) -> None:
        """Refuse to go on where ranks exchange different things.

        Raises:
            LifecycleError: there is more than one matter.
        """
        if len(matters) > 1:
            self._is_broken = True
            sentence = f"the ranks have come apart: this one is about to tell {about}, another something else"
            raise LifecycleError(_problem(sentence, _ALIKE))

    @contextmanager
    def _answering(self, who: str = "another rank") -> Iterator[None]:
        """Say in one sentence that another process does not answer.

        Raises:
            LifecycleError: it does not.
        """
        try:
            yield
        except TicoError:
            raise
        except RuntimeError as error:
            self._is_broken = True
            sentence = f"{who} has ended, or does not answer within the time limit of the group ({error})"
            remedy = "see what the other processes say, and start all of them again"
            raise LifecycleError(_problem(sentence, remedy)) from error

    @property
    def _device(self) -> torch.device:
        """Where tensors are that the group can send."""
        gpu = dist.get_backend(self._group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")

    def _heads(self, own: list[int]) -> list[list[int]]:
        given = torch.tensor(own, dtype=torch.int64, device=self._device)
        found = [torch.empty_like(given) for _ in range(self.count)]
        dist.all_gather(found, given, group=self._group)
        return [each.tolist() for each in found]

    def _contents(self, own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Return the bytes of all ranks, each of which has as many as `sizes` say."""
        device = self._device
        found = [torch.empty(size, dtype=torch.uint8, device=device) for size in sizes]
        found[self.number] = own.to(device)
        waiting = [
            dist.broadcast(each, src=self._global(rank), group=self._group, async_op=True)
            for rank, each in enumerate(found)
            if sizes[rank]
        ]
        for work in waiting:
            if work is not None:
                work.wait()
        return [each.cpu() for each in found]

    def _global(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)


_ALIKE: Final = "start them on processors of one kind, with the same libraries and environment"

ALONE: Final = Ranks()
"""This process alone, for what is converted without a group."""


def _place_in(group: object) -> tuple[int, int]:
    """Return the rank of this process in `group`, and the size of the group.

    Raises:
        ConfigError: it is no group, or one that this process is not in.
    """
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        expected = "a ProcessGroup of torch.distributed that this process is in, or None"
        remedy = "call torch.distributed.init_process_group first, and pass torch.distributed.group.WORLD"
        raise ConfigError(Problem(field="group", value=group, expected=expected, remedy=remedy))
    return dist.get_rank(group), dist.get_world_size(group)


def _failure(failed: dict[int, object]) -> Exception:
    """Return what to raise for the first rank that has failed."""
    rank, told = next(iter(failed.items()))
    is_known, text = told if isinstance(told, tuple) else (False, str(told))
    sentence = f"rank {rank} could not go on: {text}"
    return LifecycleError(_problem(sentence)) if is_known else OtherRankFailed(sentence)


def _problem(sentence: str, remedy: str = "mend that, and call convert on all ranks again") -> Problem:
    return Problem(
        field="group",
        value=Found(sentence),
        expected="ranks that all go on",
        sentence=sentence,
        remedy=remedy,
    )
