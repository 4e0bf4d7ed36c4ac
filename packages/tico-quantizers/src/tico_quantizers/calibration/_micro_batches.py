"""A batch in parts of a few samples each, without the padding that the samples of a part share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

import attrs
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tico_config import CalibrationError, Found, Problem
from tico_quantizers.calibration._calls import Call, Opaque, leaves_of
from tico_quantizers.calibration._masks import have_one_prefix, is_mask_name, real_tokens

Batch: TypeAlias = Tensor | Sequence[object] | Mapping[str, object]
"""What a model is called with: one input, several in order, or several by keyword."""

TokenMask: TypeAlias = str | Callable[[Batch], Tensor]
"""Which tokens of a batch are real: the name of an entry, or a function of the batch that says it."""

_Entries: TypeAlias = dict[int | str, object]
_PADDING_LEFT: Final = Problem(
    field="mask",
    value=Found("padding that cannot be cut"),
    expected="padding before or after the real tokens of a sample, on the second axis of the inputs",
    sentence="the mask says that there is padding which cannot be cut, and the model is not told of it",
    remedy="pass micro_batch=1, or give the model an attention_mask and leave mask out",
)


def micro_batches(
    batch: Batch, size: int | None, mask: TokenMask | None = None
) -> Iterator[tuple[tuple[object, ...], dict[str, object]]]:
    """Yield arguments for calls of a model with `size` samples of `batch` each; None leaves it whole.

    A batch is whole, too, if its tensors do not all have the same number of rows, or if some are within
    other objects. Tokens (samples, tokens) that are padding in all samples of a call, before the first real
    one or after the last, are cut from all tensors that the mask is about. Nothing is yielded for samples
    without a real token. Nothing is cut beside ``labels``, which a model compares with its output, nor beside
    tensors that have another axis as long as there are tokens.

    Raises:
        CalibrationError: `batch` or what `mask` gives of it is something else, or a mask that no name tells
            says that there is padding left.

    >>> import torch
    >>> ids, mask = torch.tensor([[0, 0, 7], [4, 5, 6]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    >>> for _, inputs in micro_batches({"input_ids": ids, "attention_mask": mask}, 1):
    ...     print(inputs["input_ids"].tolist())
    [[7]]
    [[4, 5, 6]]
    """
    entries = _entries(batch)
    name = mask if isinstance(mask, str) else ""
    if name and not isinstance(entries.get(name), Tensor):
        raise CalibrationError(_no_mask(name, entries))
    own = None if mask is None or is_mask_name(name) else _mask_of(entries[name] if name else mask, batch)
    for part, given in _parts(entries, own, size):
        names = [name] if name else [key for key in part if _is_mask(key)]
        cut = _cut_named(part, names) if given is None else _cut_own(part, given, name)
        if cut is not None:
            yield _arguments(cut)


def samples_of(call: Call) -> Iterator[Call]:
    """Yield calls with one sample each of a call of a model, as `micro_batches` does.

    A call with an object that is no tensor, such as a cache, which may know the samples, is left whole.

    >>> import torch
    >>> ids, mask = torch.tensor([[0, 0, 7], [4, 5, 6]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    >>> [each.args[0].tolist() for each in samples_of(Call(args=(ids,), kwargs={"attention_mask": mask}))]
    [[[7]], [[4, 5, 6]]]
    """
    if any(isinstance(leaf, Opaque) for leaf in leaves_of(call)):
        yield call
        return
    entries: _Entries = dict(enumerate(call.args))
    entries.update(call.kwargs.items())
    for part, _ in _parts(entries, None, 1):
        cut = _cut_named(part, [key for key in part if _is_mask(key)])
        if cut is not None:
            args, kwargs = _arguments(cut)
            yield attrs.evolve(call, args=args, kwargs=kwargs)


def _entries(batch: object) -> _Entries:
    match batch:
        case Tensor():
            return {0: batch}
        case Mapping():
            return {str(name): value for name, value in batch.items()}
        case list() | tuple():
            return dict(enumerate(batch))
        case _:
            expected = "a tensor, a list or tuple of arguments, or a dict of keyword arguments"
            raise CalibrationError(Problem(field="batches", value=batch, expected=expected))


def _arguments(entries: _Entries) -> tuple[tuple[object, ...], dict[str, object]]:
    by_name = {key: value for key, value in entries.items() if isinstance(key, str)}
    return tuple(value for key, value in entries.items() if isinstance(key, int)), by_name


def _parts(
    entries: _Entries, mask: Tensor | None, size: int | None
) -> Iterator[tuple[_Entries, Tensor | None]]:
    """Yield `entries` and `mask` for `size` samples at a time."""
    tensors = [value for value in (*entries.values(), mask) if isinstance(value, Tensor) and value.ndim]
    hidden = any(
        isinstance(leaf, Tensor)
        for value in entries.values()
        if not isinstance(value, Tensor)
        for leaf in tree_leaves(value)
    )
    counts = {len(tensor) for tensor in tensors}
    if size is None or hidden or len(counts) != 1:
        yield entries, mask
        return
    for start in range(0, counts.pop(), size):
        part = {key: _rows(value, start, start + size) for key, value in entries.items()}
        yield part, None if mask is None else mask[start : start + size]


def _rows(value: object, start: int, end: int) -> object:
    return value[start:end] if isinstance(value, Tensor) and value.ndim else value


def _is_mask(key: int | str) -> bool:
    return isinstance(key, str) and is_mask_name(key)


def _cut_own(entries: _Entries, mask: Tensor, name: str) -> _Entries | None:
    """Return `entries` without the padding of a mask that nobody knows for one; `name` is its own, if any.

    Raises:
        CalibrationError: some of it cannot be cut.
    """
    real = mask != 0
    columns = _columns(real)
    if columns is None or bool(real.all()):
        return None if columns is None else entries
    others = [value for key, value in entries.items() if key != name and isinstance(value, Tensor)]
    cut = _only(entries, real, columns, [*entries])
    is_alone = all(value.shape[:2] != real.shape for value in others)
    if cut is None or is_alone or not bool(real[:, slice(*columns)].all()):
        raise CalibrationError(_PADDING_LEFT)
    return cut


def _cut_named(entries: _Entries, names: Sequence[int | str]) -> _Entries | None:
    """Return `entries` without the padding of the masks among them; None if there is nothing else."""
    if "labels" in entries:
        return entries
    for name in names:
        mask = entries[name]
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            continue
        real = real_tokens(str(name), mask)
        columns = _columns(real)
        if columns is None:
            return None
        about = [key for key in entries if have_one_prefix(str(name), str(key))]
        entries = _only(entries, real, columns, about) or entries
    return entries


def _columns(real: Tensor) -> tuple[int, int] | None:
    """Return where the tokens from the first real one of any sample to the last begin and end, if any is."""
    places = real.any(0).nonzero().flatten()
    return (int(places[0]), int(places[-1]) + 1) if len(places) else None


def _only(
    entries: _Entries, real: Tensor, columns: tuple[int, int], about: Sequence[int | str]
) -> _Entries | None:
    """Return `entries` with the tokens in `columns` only; None where it is not clear on which axis."""
    tensors = {key: value for key in about if isinstance(value := entries[key], Tensor)}
    cut = {key: x[:, slice(*columns)] for key, x in tensors.items() if _is_of_tokens(key, x, real)}
    unclear = (x for key, x in tensors.items() if key not in cut and real.shape[1] in x.shape)
    return None if any(True for _ in unclear) else {**entries, **cut}


def _is_of_tokens(key: int | str, x: Tensor, real: Tensor) -> bool:
    has_features = isinstance(key, int) or key.endswith("embeds")
    return x.shape[:2] == real.shape and x.ndim <= (3 if has_features else 2)


def _mask_of(given: object, batch: Batch) -> Tensor:
    """Return a mask, which is `given` or what that function says of `batch`.

    Raises:
        CalibrationError: it is none.
    """
    mask: object = given(batch) if callable(given) and not isinstance(given, Tensor) else given
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        found = Found(f"a tensor {tuple(mask.shape)}") if isinstance(mask, Tensor) else mask
        expected = "a tensor (samples, tokens), 0 where a token is padding, or a function that returns one"
        raise CalibrationError(Problem(field="mask", value=found, expected=expected))
    return mask


def _no_mask(name: str, entries: _Entries) -> Problem:
    found = Found(f"a batch of {', '.join(map(str, entries)) or 'nothing'}")
    return Problem(field="mask", value=found, expected=f"batches with a tensor {name!r}")
