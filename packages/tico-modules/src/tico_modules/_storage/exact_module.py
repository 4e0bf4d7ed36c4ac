"""Modules whose buffers keep their dtype when a model is cast to another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from typing_extensions import Self


class ExactModule(nn.Module):
    """A module whose own buffers move to another device with the model, but keep their dtype when it is cast.

    So scales stay float32 in a bfloat16 model. State dicts carry the version of the buffers' layout;
    `load_state_dict` refuses another version.
    """

    _version: int = 1

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
        load = super()._load_from_state_dict
        load(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
