"""What the masks among the arguments of a call say: which tokens are real, and which are padding.

A mask is known by the name of its argument: ``attention_mask``, ``attn_mask``, ``key_padding_mask`` and
``padding_mask``, each also with a prefix (``decoder_attention_mask``), and ``mask``. It may be (samples,
tokens), with 0, or a very low number if it is additive, for padding; in a ``padding_mask``, True stands for
padding. Or it is (samples, [heads,] queries, keys), where a token is padding if no query may see it.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Mapping

import attrs
import torch
from torch import Tensor, nn

_SUFFIXES = ("attention_mask", "attn_mask", "key_padding_mask", "padding_mask")
_PREFIXES = ("encoder", "memory", "src", "", "decoder", "tgt")
"""Of two groups of tensors of one shape the later one counts: outputs are those of the decoder."""


@attrs.frozen(eq=False)
class Statement:
    """Which places of tensors (samples, tokens, …) of `shape` are real; `real` is None where all are.

    With `tensor` it is about that tensor alone. `explicit` ones come from a mask of two axes; the others
    were derived from who may see whom.
    """

    shape: tuple[int, ...]
    real: Tensor | None
    explicit: bool = True
    tensor: weakref.ref[Tensor] | None = None

    def is_about(self, x: Tensor) -> bool:
        """Return whether it names `x`."""
        return self.tensor is not None and self.tensor() is x


@functools.cache
def is_mask_name(name: str) -> bool:
    """Return whether an argument of this name is taken for a mask of tokens.

    >>> [is_mask_name(name) for name in ("decoder_attention_mask", "mask", "head_mask")]
    [True, True, False]
    """
    return name == "mask" or any(name == end or name.endswith(f"_{end}") for end in _SUFFIXES)


def have_one_prefix(mask: str, name: str) -> bool:
    """Return whether the mask of this name may be about the argument `name`.

    >>> [have_one_prefix("decoder_attention_mask", name) for name in ("decoder_input_ids", "input_ids")]
    [True, False]
    """
    return _prefix(mask) == _prefix(name)


def statements(module: nn.Module, named: Mapping[str, object]) -> list[Statement]:
    """Return what the masks among the arguments of a call of `module`, given by name, say.

    Arguments with a prefix, as those of a decoder, belong to the mask with that prefix. Where some have a
    mask and others have none, all places of the others are real.
    """
    if not any(isinstance(value, Tensor) and is_mask_name(name) for name, value in named.items()):
        return []
    return [statement for group in _groups(named).values() for statement in group.statements(module)]


@attrs.define(eq=False)
class _Group:
    """A mask, and the tensors that it is about."""

    prefix: str
    name: str = ""
    mask: Tensor | None = None
    tensors: dict[str, Tensor] = attrs.field(factory=dict)

    def statements(self, module: nn.Module) -> Iterator[Statement]:
        """Yield what the mask says, or that all is real where there is none."""
        if self.mask is None:
            shapes = dict.fromkeys(tuple(tensor.shape[:2]) for tensor in self.tensors.values())
            return (Statement(shape, None) for shape in shapes if len(shape) == 2)
        ours = not type(module).__module__.startswith("torch.nn")
        if self.mask.ndim == 2 and (ours or self.name.endswith("padding_mask")):
            return self._of_tokens(self.mask)
        return self._of_pairs(self.mask) if ours and self.mask.ndim in (3, 4) else iter(())

    def _of_tokens(self, mask: Tensor) -> Iterator[Statement]:
        real = real_tokens(self.name, mask)
        batch, count = real.shape
        sizes = [tuple(tensor.shape[:2]) for tensor in self.tensors.values() if tensor.ndim > 1]
        shorter = [size[1] for size in sizes if size[0] == batch and size[1] < count]
        if (batch, count) not in sizes and (count, batch) not in sizes and shorter:  # others are in a cache
            real = real[:, -shorter[0] :]
        return self._about(real, explicit=True)

    def _of_pairs(self, mask: Tensor) -> Iterator[Statement]:
        alike = [one for one in self.tensors.values() if one.ndim == 3 and one.shape[1] == mask.shape[-1]]
        square = mask.shape[-2] in (1, mask.shape[-1])
        if not alike or (not self.prefix and (len(alike) > 1 or not square)):
            return iter(())  # it may be about what another one attends to
        if mask.shape[0] not in (1, alike[0].shape[0]):
            return iter(())  # it is no mask of samples: Swin has one of windows
        seen = _seen(mask)
        return self._about(seen.expand(alike[0].shape[0], -1), explicit=False)

    def _about(self, real: Tensor, *, explicit: bool) -> Iterator[Statement]:
        places = None if bool(real.all()) else real
        keys = self.tensors.get("key")
        if keys is not None and keys is not self.tensors.get("query"):
            told = [keys, *(value for name, value in self.tensors.items() if name == "value")]
        else:
            told = list(self.tensors.values()) if self.prefix else []
            yield Statement(tuple(real.shape), places, explicit)
        for tensor in told:
            if tensor.shape[:2] == real.shape:
                yield Statement(tuple(real.shape), places, explicit, weakref.ref(tensor))


def _groups(named: Mapping[str, object]) -> dict[str, _Group]:
    groups = {prefix: _Group(prefix) for prefix in _PREFIXES}
    for name, value in named.items():
        if isinstance(value, Tensor):
            group = groups[_prefix(name)]
            if is_mask_name(name):
                group.name, group.mask = name, value
            else:
                group.tensors[name] = value
    return {prefix: group for prefix, group in groups.items() if group.tensors or group.mask is not None}


def _prefix(name: str) -> str:
    first = name.partition("_")[0]
    return first if first in _PREFIXES else ""


def real_tokens(name: str, mask: Tensor) -> Tensor:
    """Return True for each place (samples, tokens) that is no padding."""
    if mask.is_floating_point() and bool((mask < 0).any()):
        return mask > torch.finfo(mask.dtype).min / 2
    says_padding = name.endswith("padding_mask") and mask.dtype == torch.bool
    return ~mask if says_padding else mask != 0


def _seen(mask: Tensor) -> Tensor:
    """Return which keys (samples, keys) some query may see."""
    allowed = mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask != 0
    seen = allowed.any(-2)
    return seen.any(1) if mask.ndim == 4 else seen
