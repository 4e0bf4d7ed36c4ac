"""What a folder with a saved model holds, read and rewritten without the code under test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from tico_observers import read_sealed

MANIFEST = "quantized.json"


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in `folder`."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def shards(folder: Path) -> list[Path]:
    """Return the sealed files in `folder`."""
    return sorted(folder.glob("*.safetensors"))


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of all sealed files in `folder`."""
    return {name: tensor for path in shards(folder) for name, tensor in read_sealed(path).tensors.items()}


def rewrite(folder: Path, place: tuple[str | int, ...], value: object) -> None:
    """Change one value of the manifest in `folder`, and give it a seal that fits."""

    def change(manifest: dict[str, object]) -> None:
        inner: object = manifest
        for name in place[:-1]:
            inner = inner[name]  # type: ignore[index]
        inner[place[-1]] = value  # type: ignore[index]

    rewrite_with(folder, change)


def rewrite_with(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Let `change` work on the values of the manifest in `folder`, and give it a seal that fits."""
    manifest: dict[str, object] = json.loads((folder / MANIFEST).read_text())["manifest"]
    change(manifest)
    text = json.dumps(manifest, sort_keys=True, indent=1)
    seal = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(f'{{"manifest": {text},\n"seal": "{seal}"}}\n')
