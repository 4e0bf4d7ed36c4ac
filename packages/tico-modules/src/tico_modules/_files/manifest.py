"""The manifest of a saved model: its architecture, the layout of its modules, the names of its files.

It is the last file to be written and the only one that says which other files count, so that replacing it
replaces the model. Its text is canonical JSON and ends with its own SHA-256: a changed byte is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from tico_config import ArtifactError, Found, Problem
from tico_modules._files.code_packing import describe_packing
from tico_modules._files.shards import Shard, parse_shard
from tico_modules._record.run import Run
from tico_modules._storage.layout import Layout
from tico_observers import replaced_file

MANIFEST_NAME: Final = "quantized.json"
FORMAT: Final = "tico-quantized"
VERSION: Final = 3
_READABLE: Final = (2, VERSION)
_MAX_BYTES: Final = 2**27


@attrs.frozen(kw_only=True)
class Manifest:
    """The description of a saved model, which is complete but for the tensors.

    Attributes:
        aliases: names of shared tensors, with the name that the tensor has in the shards.
        modules: path, and kind, package, layout and runs (by number) of every integer module.
        runs: the conversions, oldest first.
        transformers: class, config and so on of a transformers model; None for any other.
        shards: the files that hold the tensors.
        structure: class and settings of the modules of torch.nn, by path; None where the file has none.
    """

    __hash__ = None  # type: ignore[assignment]

    aliases: Mapping[str, str]
    modules: Mapping[str, Mapping[str, object]]
    runs: tuple[Run, ...]
    transformers: Mapping[str, object] | None
    shards: tuple[Shard, ...]
    structure: Mapping[str, Mapping[str, str]] | None = None

    def write(self, folder: Path) -> Path:
        """Replace the manifest in `folder` in one step; return its path.

        Raises:
            OSError: it cannot be written; an earlier manifest is still there.
        """
        target = folder / MANIFEST_NAME
        with replaced_file(target) as file:
            file.write(_seal_text(self._to_values()))
        return target

    def _to_values(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "aliases": dict(self.aliases),
            "packing": describe_packing(),
            "modules": {path: dict(entry) for path, entry in self.modules.items()},
            "runs": [run.to_values() for run in self.runs],
            "transformers": self.transformers,
            "shards": [attrs.asdict(shard) for shard in self.shards],
            "structure": None if self.structure is None else {**self.structure},
        }


def read_manifest(folder: Path, *, follow_links: bool = False) -> tuple[Manifest, Layout]:
    """Return the manifest in `folder`, and its values as a `Layout`.

    Raises:
        ArtifactError: the file is no manifest of this version, or a byte of it was changed.
        OSError: the file cannot be read.
    """
    where = folder / MANIFEST_NAME
    if where.is_symlink() and not follow_links:
        raise _make_error(where, "a link", "a regular file")
    if where.exists() and not where.is_file():  # a pipe would be waited for
        raise _make_error(where, "a folder, pipe or device", "a regular file")
    with where.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise _make_error(where, "a longer one", f"of at most {_MAX_BYTES} bytes")
    layout = Layout(str(where), _parse(where, content))
    names = ("aliases", "format", "modules", "runs", "shards", "transformers", "version")
    later = [name for name in ("packing", "structure") if name in layout.values]
    layout.require_keys((*names, *later))
    aliases, modules = layout.child("aliases"), layout.child("modules")
    transformers = layout.optional_child("transformers")
    manifest = Manifest(
        aliases={name: aliases.text(name) for name in aliases.values},
        modules={path: entry.values for path, entry in modules.children()},
        runs=tuple(Run.from_layout(run) for run in layout.objects("runs")),
        transformers=None if transformers is None else transformers.values,
        shards=tuple(map(parse_shard, layout.objects("shards"))),
    )
    return manifest, layout


def _seal_text(values: Mapping[str, object]) -> bytes:
    text = json.dumps(values, sort_keys=True, indent=1, allow_nan=False)
    seal = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"manifest": {text},\n"seal": "{seal}"}}\n'.encode()


def _parse(where: Path, content: bytes) -> Mapping[str, object]:
    """Return the values of the sealed text `content`.

    Raises:
        ArtifactError: the text has another format or version, or another seal.
    """
    try:
        document: object = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    match document:
        case {"manifest": {"format": str(kind), "version": int(version)} as found} if kind == FORMAT:
            values: dict[str, object] = {str(name): value for name, value in found.items()}
        case _:
            raise _make_error(where, "another text", f"JSON of the format {FORMAT}")
    if version not in _READABLE:
        origin = ", which a newer release of this library wrote" if version > VERSION else ""
        expected = f"of version {' or '.join(map(str, _READABLE))}"
        raise _make_error(where, f"one of version {version}{origin}", expected)
    if not _is_sealed(values, content):
        raise _make_error(where, "one that was changed", "as it was written, with the SHA-256 of its text")
    return values


def _is_sealed(values: Mapping[str, object], content: bytes) -> bool:
    try:
        return _seal_text(values) == content
    except (ValueError, RecursionError):  # NaN, lone surrogates, or nested too deeply
        return False


def _make_error(where: Path, found: str, expected: str) -> ArtifactError:
    return ArtifactError(Problem(module=str(where), field="manifest", value=Found(found), expected=expected))
