"""Which rows of what layers read are real, and which are padding: the one place that knows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Final, TypeAlias

import attrs
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tico_config import CalibrationError, Found, Problem
from tico_modules import children, named_modules
from tico_quantizers.calibration._calls import first_rows
from tico_quantizers.calibration._expert_layers import ExpertLayers
from tico_quantizers.calibration._hooks import Watcher, after_call, before_call
from tico_quantizers.calibration._masks import Statement, is_mask_name, statements
from tico_quantizers.calibration._picked_rows import real_among
from tico_quantizers.calibration._token_places import place_of, spread

_NOTHING: Final[Mapping[str, object]] = MappingProxyType({})
_LISTS = (nn.ModuleList, nn.ModuleDict)


@attrs.frozen(eq=False)
class _Known:
    """What is known in a call: what its masks say, and of which rows experts may be given some.

    In a call that is `alone`, what those around it say does not count.
    """

    said: tuple[Statement, ...] = ()
    rows: Tensor | None = None
    real: Tensor | None = None
    alone: bool = False


_Owner: TypeAlias = tuple[int, str]
_Look: TypeAlias = Callable[[tuple[object, ...], Mapping[str, object]], _Known]


class RealTokens:
    """What the masks of the calls that go on say of the tensors inside of them.

    Padding is found by the masks that the model, or a module in it, is called with. A tensor is told by its
    shape: (samples, tokens, …), (tokens, samples, …), (samples * tokens, …), (samples, heads, tokens, …),
    (samples * heads, tokens, …) and, for convolutions, (samples, channels, tokens). Rows that a module of a
    list is given, as an expert is, were picked from the tokens of the module above it, and are told by their
    values. In a tensor of any other shape all is real. Of tensors of one shape that have different masks, as
    with an encoder and a decoder of the same length, the modules whose calls go on tell which is which.

    Args:
        by_shape_alone: the model calls no modules, as a graph, so that equal shapes cannot be told apart.

    >>> import torch
    >>> tokens, mask = RealTokens(), torch.tensor([[1, 1, 0]])
    >>> class Model(nn.Module):
    ...     def forward(self, x, attention_mask):
    ...         return tokens.strip(x)
    >>> model = Model()
    >>> handles = tokens.watch(model)
    >>> model(torch.arange(3.0).reshape(1, 3, 1), attention_mask=mask).tolist()
    [[0.0], [1.0]]
    """

    def __init__(self, *, by_shape_alone: bool = False) -> None:
        self._by_shape_alone = by_shape_alone
        self._calls: list[tuple[_Owner, _Known]] = []
        self._named: tuple[str, tuple[int, ...], Statement] | None = None
        self._has_padding = False

    def __deepcopy__(self, memo: dict[int, object]) -> RealTokens:
        """Return one that knows of no calls: those that go on are calls of the original."""
        return RealTokens(by_shape_alone=self._by_shape_alone)

    def watch(self, root: nn.Module, watcher: Watcher | None = None) -> list[RemovableHandle]:
        """Set the hooks on `root`, and on all in it that may take masks, that tell which calls go on."""
        handles: list[RemovableHandle] = []
        for path, module in named_modules(root):
            if isinstance(module, ExpertLayers):
                handles += self._follow(module, partial(self._tell, module), watcher)
                continue
            names, may_take_masks = _argument_names(module)
            if may_take_masks or not path:
                handles += self._follow(module, partial(_read_masks, module, names), watcher)
            lists = [child for child in children(module).values() if isinstance(child, _LISTS)]
            if lists:
                handles += self._follow(module, self._offer, watcher)
            for member in (member for child in lists for member in children(child).values()):
                handles += self._follow(member, self._pick, watcher)
        return handles

    def _follow(self, module: nn.Module, look: _Look, watcher: Watcher | None) -> list[RemovableHandle]:
        owner = (id(module), getattr(look, "__name__", "masks"))
        begin, end = partial(self._begin, owner, look), partial(self._end, owner)
        return [before_call(module, begin, watcher), after_call(module, end, watcher, always=True)]

    def _begin(
        self, owner: _Owner, look: _Look, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> None:
        self._drop_from(owner)
        with (
            torch._C.DisableTorchFunction()
        ):  # to look is no part of the model, whose functions may be followed
            known = look(args, kwargs)
        if self._by_shape_alone:
            _require_one_mask_a_shape(known.said)
        self._set_calls([*self._calls, (owner, known)])

    def _end(self, owner: _Owner, args: object, kwargs: object, output: object) -> None:
        self._drop_from(owner)

    def _drop_from(self, owner: _Owner) -> None:
        """Forget the call of `owner`, and those in it."""
        owners = [known for known, _ in self._calls]
        if owner in owners:
            self._set_calls(self._calls[: owners.index(owner)])

    def _set_calls(self, calls: list[tuple[_Owner, _Known]]) -> None:
        self._calls = calls
        self._has_padding = any(one.real is not None for one in self._said())

    def clear(self) -> None:
        """Forget all calls: none goes on."""
        self._set_calls([])
        self._named = None

    @property
    def has_padding(self) -> bool:
        """Whether masks of the calls that go on say that some tokens are padding."""
        return self._has_padding

    def now(
        self, args: tuple[object, ...] = (), kwargs: Mapping[str, object] = _NOTHING
    ) -> tuple[Statement, ...]:
        """Return what is said of tensors by their shape in the calls that go on; nothing if all is real.

        So does a call of a member of a list with `args` and `kwargs` that is about to begin.
        """
        if not self._has_padding:
            return ()
        said = (*self._said(), *self._pick(args, kwargs).said)
        return tuple(one for one in said if one.tensor is None)

    @contextmanager
    def again(self, said: tuple[Statement, ...]) -> Iterator[None]:
        """Let hold what `now` returned, and nothing else, in the context."""
        before = self._calls
        self._set_calls([((0, "again"), _Known(said))])
        try:
            yield
        finally:
            self._set_calls(before)

    def rows(self, x: Tensor, owner: str = "") -> Tensor | None:
        """Return which rows of `x` (…, features) are real, of shape (…); None if all are.

        The next tensor of that shape that the same `owner` has is told like this one.
        """
        lead = tuple(x.shape[:-1])
        said = self._about(x, lead, owner) if self._has_padding else None
        return None if said is None or said.real is None else spread(said.real, lead)

    def places(self, x: Tensor) -> Tensor | None:
        """Return which places of `x` (samples, channels, tokens) are real, (samples, tokens); None if all."""
        if x.ndim != 3 or not self._has_padding:
            return None
        shape = (x.shape[0], x.shape[2])
        return next((one.real for one in self._ranked() if one.shape == shape), None)

    def strip(self, x: Tensor, channels: int = -1, owner: str = "") -> Tensor:
        """Return `x` without padding. Where there is any, the places left are along one axis.

        Args:
            x: a tensor with the features in the last axis, with heads in axis -3 (samples, heads, tokens, …)
                or with the channels of a convolution in axis 1.
            channels: which of these. It has the same meaning in the result.
            owner: the module that `x` is an input or an output of.
        """
        if not self._has_padding or x.ndim < 2:
            return x
        if channels == -1 or x.ndim == 2:
            rows = self.rows(x, owner)
            return x if rows is None else x[rows]
        by_place = x.movedim(channels, -1)
        real = self.places(x) if channels != -3 else self._of_heads(by_place)
        if real is None:
            return x
        shape = [1] * x.ndim
        shape[channels], shape[-1] = x.shape[channels], -1
        return by_place[real].T.reshape(shape)

    def _of_heads(self, x: Tensor) -> Tensor | None:
        """Return which places of `x` (samples, tokens, …, heads) are real."""
        said = next((one for one in self._ranked() if one.shape == x.shape[:2]), None)
        if said is None or said.real is None:
            return None
        return said.real.view(*said.shape, *(1,) * (x.ndim - 3)).expand(x.shape[:-1])

    def _said(self) -> Iterator[Statement]:
        alone = [place for place, (_, known) in enumerate(self._calls) if known.alone]
        inner = self._calls[alone[-1] :] if alone else self._calls
        return (one for _, known in inner for one in known.said)

    def _tell(self, experts: ExpertLayers, args: tuple[object, ...], kwargs: Mapping[str, object]) -> _Known:
        """Tell `experts` which of the rows that they are given are real: they go on with these alone."""
        x = first_rows(args, kwargs) if self._has_padding else None
        if x is not None and experts.about.routing == "sorted":
            x = x.reshape(experts.about.count, -1, x.shape[-1])[0]
        real = None if x is None else self.rows(x)
        experts.real = None if real is None else real.reshape(-1)
        return _Known(alone=True)

    def _ranked(self) -> list[Statement]:
        """Return what is said of tensors by their shape, what counts most first."""
        said = [one for one in self._said() if one.tensor is None][::-1]
        return sorted(said, key=lambda one: not one.explicit)

    def _about(self, x: Tensor, lead: tuple[int, ...], owner: str = "") -> Statement | None:
        """Return what is said of `x`, by its identity or by the shape of its places `lead`."""
        named = next((one for one in reversed(list(self._said())) if one.is_about(x)), None)
        if named is not None:
            self._named = (owner, lead, named) if owner else self._named
        elif owner and self._named is not None and self._named[:2] == (owner, lead):
            named = self._named[2]
        shaped = (one for one in self._ranked() if place_of(one.shape, lead) is not None)
        return named or next(shaped, None)

    def _offer(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> _Known:
        """Return the rows of which the members of a list in a module may be given some."""
        x = first_rows(args, kwargs) if self._has_padding else None
        real = None if x is None else self.rows(x)
        if x is None or real is None:
            return _Known()
        return _Known(rows=x.reshape(-1, x.shape[-1]), real=real.reshape(-1))

    def _pick(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> _Known:
        """Return which of the rows that a member of a list is given are real."""
        x = first_rows(args, kwargs) if self._has_padding else None
        if x is None or x.ndim != 2 or self._about(x, tuple(x.shape[:-1])) is not None:
            return _Known()
        for known in (known for _, known in reversed(self._calls) if known.rows is not None):
            if known.rows is not None and known.real is not None and known.rows.shape[1:] == x.shape[1:]:
                return _Known((Statement((len(x),), real_among(x, known.rows, known.real)),))
        return _Known()


def _read_masks(
    module: nn.Module, names: tuple[str, ...], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> _Known:
    named: dict[str, object] = {}
    for name, value in (*zip(names, args, strict=False), *kwargs.items()):
        named |= value if isinstance(value, Mapping) else {name: value}
    return _Known(tuple(statements(module, named)))


def _require_one_mask_a_shape(said: tuple[Statement, ...]) -> None:
    """Refuse masks of one shape that say different things.

    Raises:
        CalibrationError: there are two.
    """
    known: dict[tuple[int, ...], Tensor | None] = {}
    for one in said:
        other = known.setdefault(one.shape, one.real)
        if other is not one.real and (other is None or one.real is None or not torch.equal(other, one.real)):
            found = Found(f"two masks of shape {one.shape}")
            sentence = f"two groups of tokens have different padding and the same shape {one.shape}, so that"
            sentence += " values in the graph cannot be told apart; pad one of them to another length"
            raise CalibrationError(
                Problem(field="mask", value=found, expected="one mask for a shape", sentence=sentence)
            )


def _argument_names(module: nn.Module) -> tuple[tuple[str, ...], bool]:
    """Return the names of the arguments of `module`, and whether it may be given a mask."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # of a compiled or scripted module
        return (), True
    names = tuple(parameter.name for parameter in parameters)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return names, takes_any or any(map(is_mask_name, names))
