"""Blocks of which only the inputs are kept for the derivatives, so that memory is bounded by one block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tico_quantizers.calibration import map_leaves

_PLAIN = (Tensor, bool, int, float, str, torch.dtype, torch.device, type(None))


@contextmanager
def recomputed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Let each of `blocks` keep only what it is called with, and be run again when derivatives are computed.

    Chen et al. 2016, arXiv 1604.06174. A call with an object that may change in it, such as a cache, is not
    run again: all that it computes is kept. Derivatives have to be computed before the context ends.

    >>> block, x = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2, requires_grad=True)
    >>> with recomputed([block]):
    ...     (slope,) = torch.autograd.grad(block(x).sum(), x)
    >>> torch.equal(slope, torch.autograd.grad(block(x).sum(), x)[0])
    True
    """
    changed: list[tuple[dict[str, object], object]] = []
    try:
        for block in blocks:
            attributes: dict[str, object] = vars(block)
            changed.append((attributes, attributes.get("forward")))
            attributes["forward"] = partial(_run, block.forward)
        yield
    finally:
        for attributes, before in reversed(changed):
            if before is None:
                attributes.pop("forward", None)
            else:
                attributes["forward"] = before


class _Forward(Protocol):
    def __call__(self, *args: object, **kwargs: object) -> object: ...


def _run(forward: _Forward, /, *args: object, **kwargs: object) -> object:
    if not torch.is_grad_enabled() or not _are_plain(args, kwargs):
        return forward(*args, **kwargs)
    run = partial(forward, *args, **kwargs)
    found: object = checkpoint(run, use_reentrant=False, preserve_rng_state=False)
    return found


def _are_plain(*trees: object) -> bool:
    """Tell whether all in `trees` are values that a call cannot change, or tensors."""
    leaves: list[object] = []
    map_leaves(trees, leaves.append)
    return all(isinstance(leaf, _PLAIN) for leaf in leaves)
