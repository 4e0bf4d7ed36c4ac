"""Modules whose buffers keep their dtype when a model is cast, and say in the state dict what they mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tico_config import Found, Problem

_EXTRA = "_extra_state"
_MARK = "mark"
_REMEDY = "load it into a model that was converted with the same config"


class ExactModule(nn.Module):
    """A module whose own buffers move to another device with the model, but keep their dtype when it is cast.

    So scales stay float32 in a bfloat16 model. State dicts carry the version of the buffers' layout and,
    as bytes of text, the number format; `load_state_dict` refuses another version, another format,
    tensors of another dtype, and values that no such module has.
    """

    _version: int = 1

    def meaning(self) -> Mapping[str, object]:
        """Return, as JSON values, what must be the same in two modules for their numbers to mean the same."""
        return {}

    def tensor_problems(self, tensors: Mapping[str, Tensor]) -> Iterator[Problem]:
        """Yield what is wrong with `tensors`, by name, as buffers of this module; their shapes aside."""
        own: dict[str, Tensor | None] = self._buffers
        for name, given in tensors.items():
            buffer = own[name]
            if buffer is not None and given.dtype != buffer.dtype:
                yield Problem(field=name, value=Found(str(given.dtype)), expected=str(buffer.dtype))

    def mark(self, tensors: Mapping[str, Tensor | None]) -> str | None:
        """Return what tells `tensors`, the buffers of such a module by name, from averages of several ones.

        None where nothing does.
        """
        return None

    def get_extra_state(self) -> Tensor:
        """Return number format and mark for a state dict, as the bytes of a text, uint8."""
        mark = self.mark(self._buffers)
        values = dict(self.meaning()) | ({} if mark is None else {_MARK: mark})
        return torch.tensor(list(json.dumps(values, sort_keys=True).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: object) -> None:
        """Do nothing: the format was compared before, and never changes."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        own: dict[str, Tensor | None] = self._buffers
        before = {name: buffer for name, buffer in own.items() if buffer is not None}
        # torch may cast the buffers; afterwards the ones from before are put back, on the new device.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for name, buffer in before.items():
            moved = own[name]
            if moved is not None and moved.dtype != buffer.dtype:
                own[name] = buffer.to(moved.device)
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Mapping[str, object],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        version = local_metadata.get("version", self._version)
        if version != self._version:
            error_msgs.append(
                f"{prefix.removesuffix('.')}: the layout is of version {version}, this release of "
                f"tico-modules reads version {self._version}"
            )
            return
        problems = list(self._find_misfits(state_dict, prefix))
        if problems:
            error_msgs.extend(map(str, problems))
            return
        load = super()._load_from_state_dict
        load(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if prefix + _EXTRA in missing_keys:  # state dicts of earlier releases have none
            missing_keys.remove(prefix + _EXTRA)

    def _find_misfits(self, state_dict: Mapping[str, Tensor], prefix: str) -> Iterator[Problem]:
        """Yield what keeps the tensors of a state dict from being those of this module."""
        where = prefix.removesuffix(".")
        saved = _read_extra(state_dict.get(prefix + _EXTRA))
        found = list(_format_problems(saved, self.meaning()))
        if not found:
            own: dict[str, Tensor | None] = self._buffers
            given = {name: state_dict.get(prefix + name) for name in own}
            # Tensors of another shape are left to torch, which has words for them.
            fitting = {
                name: tensor
                for name, tensor in given.items()
                if tensor is not None and tensor.shape == getattr(own[name], "shape", None)
            }
            found = list(self.tensor_problems(fitting)) or list(_mark_problems(saved, self.mark(given)))
        for problem in found:
            yield Problem(
                module=where,
                field=problem.field,
                value=problem.value,
                expected=problem.expected,
                remedy=problem.remedy or _REMEDY,
            )


def _read_extra(saved: Tensor | None) -> Mapping[str, object] | None:
    """Return the values in the extra state of a state dict; None where it is not one of such a module."""
    if saved is None:
        return {}
    try:
        values: object = json.loads(bytes(saved.tolist()))
    except (ValueError, TypeError, RecursionError):
        values = None
    return values if isinstance(values, dict) else None


def _format_problems(saved: Mapping[str, object] | None, own: Mapping[str, object]) -> Iterator[Problem]:
    """Yield each field of the number format that is another one in a state dict, if it has any."""
    if saved is None:
        yield Problem(field="format", value=Found("other bytes"), expected="as state_dict() gives it")
        return
    for name in sorted(own.keys() | saved.keys()) if saved else ():
        if name != _MARK and saved.get(name) != own.get(name):
            expected = f"{own.get(name)!r}, as in the format of this module"
            yield Problem(field=name, value=saved.get(name), expected=expected)


def _mark_problems(saved: Mapping[str, object] | None, given: str | None) -> Iterator[Problem]:
    """Yield that the codes of a state dict are not those that it was made with, if it says which."""
    marked = saved.get(_MARK) if saved else None
    if None not in (marked, given) and marked != given:
        remedy = "average float models and convert the result: codes are no values to average"
        expected = "those that the state dict was made with"
        yield Problem(field="codes", value=Found("others"), expected=expected, remedy=remedy)


def has_values(*tensors: Tensor) -> bool:
    """Tell whether the values of all `tensors` can be read here and now, also from another device."""
    plain = all(type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta for tensor in tensors)
    return plain and torch._C._functorch.peek_interpreter_stack() is None
