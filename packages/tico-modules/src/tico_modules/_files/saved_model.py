"""A saved model as it lies in a folder, to be put into a float skeleton of the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import attrs
from torch import Tensor, nn

from tico_config import ArtifactError, Found, Problem, UnsupportedError
from tico_modules._files.manifest import Manifest, read_manifest
from tico_modules._files.module_kinds import load_kinds
from tico_modules._files.restoring import Restoring
from tico_modules._files.shards import read_shards
from tico_modules._files.structure import require_structure
from tico_modules._files.transformers_model import make_skeleton, require_config
from tico_modules._storage.layout import Layout, select_below
from tico_modules._tree.edit import Edit
from tico_modules._tree.ties import drop_stale_ties
from tico_observers import locked_folder


@attrs.frozen(kw_only=True, eq=False)
class SavedModel:
    """What `save_quantized` has written to a folder, every byte of it checked.

    Attributes:
        manifest: the description.
        about: the same as values.
        tensors: mapped from the files, by every name that they have in the model.
    """

    manifest: Manifest
    about: Layout
    tensors: Mapping[str, Tensor]

    @classmethod
    def open(cls, directory: str | os.PathLike[str], *, follow_links: bool = False) -> SavedModel:
        """Read the folder `directory`.

        With `follow_links`, files may be links, as they are in a cache of downloads.

        Raises:
            ArtifactError: a file is missing, damaged or foreign.
            OSError: a file cannot be read.
        """
        folder = as_path(directory)
        if folder.exists() and not folder.is_dir():
            problem = Problem(field="directory", value=Found(f"the file {folder}"), expected="a folder")
            raise ArtifactError(problem)
        with locked_folder(folder, shared=True):
            manifest, about = read_manifest(folder, follow_links=follow_links)
            tensors = read_shards(folder, manifest.shards, follow_links=follow_links)
        return cls(
            manifest=manifest,
            about=about,
            tensors=tensors | resolve_aliases(about.child("aliases"), tensors),
        )

    @property
    def architecture(self) -> str | None:
        """The class of the transformers model that was saved; None for any other model."""
        known = self.about.optional_child("transformers")
        return None if known is None else known.text("architecture")

    def below(self, path: str) -> SavedModel:
        """Return what was saved of the module at `path`, as a saved model of its own.

        Raises:
            ArtifactError: tensors in it are other names of tensors outside.
        """
        modules = select_below(self.manifest.modules, path)
        aliases = select_below(self.manifest.aliases, path)
        for name, first in aliases.items():
            if not first.startswith(f"{path}."):
                raise self.about.child("aliases").make_error(f"{path}.{name}", f"a tensor of {path}")
        aliases = {name: first.removeprefix(f"{path}.") for name, first in aliases.items()}
        structure = self.about.optional_child("structure")
        parts: dict[str, object] = {
            "modules": modules,
            "aliases": aliases,
            "structure": None if structure is None else select_below(structure.values, path),
        }
        return SavedModel(
            manifest=attrs.evolve(self.manifest, modules=modules, aliases=aliases),
            about=Layout(self.about.where, {**self.about.values, **parts}),
            tensors=select_below(self.tensors, path),
        )

    def make_skeleton(self) -> nn.Module:
        """Return the transformers model that was saved, without weights.

        Raises:
            ArtifactError: it is none of transformers.
            MissingExtraError: transformers is not installed.
        """
        return make_skeleton(self.about)

    def put_into(self, model: nn.Module, *, given: bool) -> nn.Module:
        """Put the integer modules and all tensors into the float `model`; return its root afterwards.

        Args:
            model: has the architecture of the saved model; its weights are not used.
            given: `model` was made by somebody else, and its config is compared with the saved one.

        Raises:
            ArtifactError: the files do not fit `model`, which is then unchanged.
            UnsupportedError: two installed packages have modules of the same kind.
        """
        kinds = load_kinds()
        with Edit() as edit:
            restoring = Restoring(root=model, where=self.about.where, tensors=self.tensors, edit=edit)
            restoring.put_modules(self.about.child("modules"), kinds, self.manifest.runs)
            restoring.fill()
            self._require_alike(restoring.root, given=given)
            restoring.tie_weights()
            drop_stale_ties(restoring.root, edit)
        return restoring.root

    def _require_alike(self, root: nn.Module, *, given: bool) -> None:
        """Refuse a model that computes something else than the saved one, as far as that can be told.

        Raises:
            ArtifactError: with every difference in modules and in the config of transformers.
        """
        about = self.about
        structure = about.optional_child("structure") if "structure" in about.values else None
        if structure is not None:
            require_structure(structure, root)
        if given:
            require_config(about, root)


def as_path(directory: object) -> Path:
    """Return the path of the folder `directory`.

    Raises:
        UnsupportedError: it is no path.
    """
    if not isinstance(directory, str | os.PathLike):
        raise UnsupportedError(Problem(field="directory", value=directory, expected="the path of a folder"))
    return Path(directory)


def resolve_aliases(aliases: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensor of each of the further names in `aliases`.

    Raises:
        ArtifactError: there is none of the name that it is an alias of.
    """
    found: dict[str, Tensor] = {}
    for name in aliases.values:
        first = aliases.text(name)
        if first not in tensors:
            raise aliases.make_error(name, "the name of a tensor in the file")
        found[name] = tensors[first]
    return found
