"""SHA-256 digests of the model and of the data that a conversion started from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tico_modules._tree.answers import StandIn
from tico_modules._tree.module_tree import child_path, named_modules
from tico_modules._tree.requirements import require_module
from tico_observers import tensor_digest


def all_tensors(
    model: nn.Module, *, empty: bool = False, every_path: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer, also the buffers that a state dict leaves out.

    The empty parameters that only tell the dtype of a float weight are none of them, except with `empty`.
    Those of a shared module come with each of its paths, or with the first alone.
    """
    for path, module in named_modules(model, every_path=every_path):
        parameters: dict[str, nn.Parameter | None] = module._parameters
        buffers: dict[str, Tensor | None] = module._buffers
        unsaved = module.unsaved if isinstance(module, StandIn) and not empty else frozenset()
        for name, tensor in (*parameters.items(), *buffers.items()):
            if tensor is not None and name not in unsaved:
                yield child_path(path, name), tensor


def model_fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of the names, formats, shapes and bytes of all parameters and buffers.

    Raises:
        UnsupportedError: `model` is no module, or a module in it holds itself.

    >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> keys = other.load_state_dict(one.state_dict())
    >>> model_fingerprint(one) == model_fingerprint(other)
    True
    """
    require_module(model)
    known: dict[int, str] = {}
    digest = hashlib.sha256()
    for name, tensor in sorted(all_tensors(model), key=lambda item: item[0]):
        if id(tensor) not in known:
            known[id(tensor)] = _describe(tensor)
        digest.update(f"{name}\0{known[id(tensor)]}\0".encode())
    return digest.hexdigest()


class DataFingerprint:
    """A digest of the tensors that a model was called with, whatever the order of the calls.

    `text` is the sum of the digests of the calls, modulo 2^256, as 64 hexadecimal digits. Only tensors count,
    and tensors inside tuples, lists and mappings.

    >>> import torch
    >>> data = DataFingerprint()
    >>> data.note((torch.ones(2),), {})
    >>> data.accept()
    >>> data.calls, len(data.text)
    (1, 64)
    """

    def __init__(self) -> None:
        self.calls = 0
        self._sum = 0
        self._unfinished: int | None = None
        self._is_whole = True
        self._batches: list[str] = []

    @property
    def text(self) -> str:
        """The digest of the calls that ended well."""
        return f"{self._sum:064x}"

    @property
    def batches(self) -> tuple[str, ...]:
        """The digests of the calls of one's own that were given nothing but tensors and plain values.

        Others, such as those of `generate` with a cache, are not told apart by their tensors.
        """
        return tuple(self._batches)

    def note(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        """Digest the tensors in the arguments of a call that begins."""
        digest = hashlib.sha256()
        self._is_whole = _is_plain((args, kwargs))
        for name, tensor in _find_tensors("", (args, kwargs)):
            digest.update(f"{name}\0{_describe(tensor)}\0".encode())
        self._unfinished = int(digest.hexdigest(), 16)

    def add(self, text: str, calls: int) -> None:
        """Count also the calls that another fingerprint has counted, `calls` of them, with its `text`."""
        self.calls += calls
        self._sum = (self._sum + int(text, 16)) % 2**256

    def drop_unfinished(self) -> None:
        """Forget the call that did not end."""
        self._unfinished = None

    def accept(self) -> None:
        """Count the call that has ended, if there is one."""
        if self._unfinished is not None:
            self.calls += 1
            self._sum = (self._sum + self._unfinished) % 2**256
            self._batches += [f"{self._unfinished:064x}"] if self._is_whole else []
            self._unfinished = None


def _is_plain(value: object) -> bool:
    match value:
        case tuple() | list():
            return all(map(_is_plain, value))
        case Mapping():
            return all(map(_is_plain, value.values()))
        case _:
            return value is None or isinstance(value, Tensor | bool | int | float | str)


def _find_tensors(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    match value:
        case Tensor():
            yield name, value
        case tuple() | list():
            for index, item in enumerate(value):
                yield from _find_tensors(f"{name}.{index}", item)
        case Mapping():
            for key, item in sorted(value.items(), key=lambda pair: str(pair[0])):
                yield from _find_tensors(f"{name}.{key}", item)
        case _:
            return


def _describe(tensor: Tensor) -> str:
    """Return format, shape and digest; a tensor without plain data of its own has no digest."""
    if is_lazy(tensor):
        return "not initialized"
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_meta
    return f"{tensor.dtype} {tuple(tensor.shape)} {tensor_digest(tensor) if plain else tensor.layout}"
