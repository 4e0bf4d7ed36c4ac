"""What processes that convert a model together tell each other, as bytes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping

import attrs
import torch
from torch import Tensor, nn

from tico_config import Found, Problem, UnsupportedError

_ALIGNMENT = 64


@attrs.frozen(eq=False)
class Message:
    """A value: its `outline`, and the bytes of the tensors in it, one after the other."""

    outline: Tensor
    content: Tensor


class Messages:
    """Turns values into messages and back; modules of the model are named by their paths.

    The messages are those of processes of one program, which trust each other as the processes of
    `torch.distributed` do.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._paths = {id(module): path for path, module in modules.items()}

    def pack(self, value: object) -> Message:
        """Return `value` as a message.

        Raises:
            UnsupportedError: a part of it cannot be sent.
        """
        outline = io.BytesIO()
        writer = _Writer(outline, self._paths)
        try:
            writer.dump(value)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise UnsupportedError(
                Problem(
                    field="group",
                    value=Found(f"data that cannot be sent ({error})"),
                    expected="calls of the model with tensors, plain values, or objects that can be pickled",
                    sentence=f"what the model was called with cannot be sent to another process ({error})",
                    remedy="call the model with tensors and plain values alone",
                )
            ) from error
        return Message(_tensor_of(outline.getvalue()), _joined([_bytes_of(x) for x in writer.tensors]))

    def unpack(self, message: Message) -> object:
        """Return the value of a message; tensors are new ones."""
        reader = _Reader(io.BytesIO(message.outline.numpy().tobytes()), message.content, self._modules)
        value: object = reader.load()
        return value


class _Writer(pickle.Pickler):
    """Leaves tensors and modules of the model out, which are sent otherwise."""

    def __init__(self, file: io.BytesIO, paths: Mapping[int, str]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._paths = paths
        self._end = 0
        self._known: dict[int, tuple[object, ...]] = {}

    def persistent_id(self, item: object) -> tuple[object, ...] | None:
        """Return what stands for a tensor or a module, or None for anything else."""
        if isinstance(item, nn.Module):
            path = self._paths.get(id(item))
            return None if path is None else ("module", path)
        if type(item) is not Tensor or item.layout is not torch.strided or item.is_meta:
            return None
        if id(item) not in self._known:
            self._known[id(item)] = "tensor", self._end, item.dtype, tuple(item.shape), item.device.type
            self._end += _padded(item.nbytes)
            self.tensors.append(item)
        return self._known[id(item)]


class _Reader(pickle.Unpickler):
    """Puts in what the writer has left out."""

    def __init__(self, file: io.BytesIO, content: Tensor, modules: Mapping[str, nn.Module]) -> None:
        super().__init__(file)
        self._content = content
        self._modules = modules
        self._known: dict[int, Tensor] = {}

    def persistent_load(self, name: object) -> object:
        """Return what `name` stands for: one tensor for all places where there was one."""
        match name:
            case ("module", str(path)):
                return self._modules[path]
            case ("tensor", int(start), torch.dtype() as dtype, tuple(shape), str(device)):
                if not shape or 0 not in shape:
                    if start not in self._known:
                        self._known[start] = self._tensor(start, dtype, shape).to(device)
                    return self._known[start]
                return torch.empty(shape, dtype=dtype, device=device)
            case _:
                raise pickle.UnpicklingError(f"no such stand-in: {name!r}")

    def _tensor(self, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        size = dtype.itemsize
        for length in shape:
            size *= length
        return self._content[start : start + size].clone().view(dtype).view(shape)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _bytes_of(tensor: Tensor) -> Tensor:
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.view(-1).view(torch.uint8) if plain.numel() else torch.empty(0, dtype=torch.uint8)


def _joined(parts: list[Tensor]) -> Tensor:
    """Return the bytes of all parts, each from an aligned place on."""
    whole = torch.zeros(sum(_padded(len(part)) for part in parts), dtype=torch.uint8)
    start = 0
    for part in parts:
        whole[start : start + len(part)] = part
        start += _padded(len(part))
    return whole


def _tensor_of(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
