"""Restoring a saved model inside a float model, through an edit that can be undone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs
from torch import Tensor, nn

from tico_config import ArtifactError, Found, Problem
from tico_modules._files.module_kinds import ModuleKinds
from tico_modules._layers.quantized_module import QuantizedModule
from tico_modules._layers.restorable import RestorableModule
from tico_modules._record.fingerprint import all_tensors
from tico_modules._record.history import remember
from tico_modules._record.run import Run
from tico_modules._storage.layout import Layout, select_below
from tico_modules._storage.packed_weight import PackedWeight
from tico_modules._tree.answers import answer_for
from tico_modules._tree.edit import Edit
from tico_modules._tree.module_tree import child_path, children, named_modules
from tico_modules._tree.recorded_outputs import record_outputs


def find_restorable(model: nn.Module) -> Iterator[tuple[str, RestorableModule]]:
    """Yield the modules that files can restore, with their paths; shared ones under each of their paths."""
    return (
        (path, module)
        for path, module in named_modules(model, every_path=True)
        if isinstance(module, RestorableModule)
    )


@attrs.define(kw_only=True, eq=False)
class Restoring:
    """A float model, `root`, that becomes the saved model; `where` names the file that holds `tensors`."""

    root: nn.Module
    where: str
    tensors: Mapping[str, Tensor]
    edit: Edit

    def put_modules(self, entries: Layout, kinds: ModuleKinds, runs: tuple[Run, ...]) -> None:
        """Replace float modules by those that `entries` describe, outer ones first.

        Raises:
            ArtifactError: a module does not fit the model, no package has it, or the model is not float.
        """
        self._require_float()
        record_outputs(self.root, self.edit)
        done: set[int] = set()
        for path, entry in sorted(entries.children(), key=lambda item: item[0].count(".")):
            kind = kinds.find(entry)
            original = self._find_original(path.rpartition(".")[0] if kind.stands_beside else path)
            if id(original) in done:
                continue  # a shared module that another of its paths has already restored
            own = select_below(self.tensors, path) if path else self.tensors
            new = kind.restore(original, entry.child("layout"), own)
            for number in entry.integers("runs"):
                if number >= len(runs):
                    raise entry.make_error("runs", f"integers below {len(runs)}")
                remember((new,), runs[number])
            if kind.stands_beside:
                done.add(id(original))
                new.join(original, self.edit)
            else:
                done.add(id(new))
                answer_for(original, new)
                self.root = self.edit.replace(self.root, original, new)

    def _require_float(self) -> None:
        remedy = "pass the model as it was before prepare"
        problems = [
            Problem(
                module=path,
                field="model",
                value=Found(f"a {type(module).__name__}"),
                expected="float",
                remedy=remedy,
            )
            for path, module in find_restorable(self.root)
        ]
        if problems:
            raise ArtifactError(*problems)

    def _find_original(self, path: str) -> nn.Module:
        found: nn.Module | None = self.root
        for name in path.split(".") if path else ():
            found = None if found is None else children(found).get(name)
        if found is None:
            value, expected = Found("a model without this module"), "of the architecture that was saved"
            raise ArtifactError(Problem(module=path, field="model", value=value, expected=expected))
        return found

    def fill(self) -> None:
        """Replace every parameter and buffer by the saved one.

        Raises:
            ArtifactError: with every tensor that is missing, left over, or of another shape or kind of dtype.
        """
        expected = dict(all_tensors(self.root, empty=True))
        problems = [
            Problem(module=self.where, field=name, value=value, expected=wanted)
            for name in sorted(self.tensors.keys() | dict(all_tensors(self.root)).keys())
            for value, wanted in _find_misfits(expected.get(name), self.tensors.get(name))
        ]
        if problems:
            raise ArtifactError(*problems)
        made: dict[int, nn.Parameter] = {}
        for path, module in named_modules(self.root, every_path=True):
            self._assign(module, path, made)

    def _assign(self, module: nn.Module, path: str, made: dict[int, nn.Parameter]) -> None:
        """Give `module` its tensors; `made` has a parameter for each tensor, so that tied ones stay tied."""
        parameters: dict[str, nn.Parameter | None] = module._parameters
        for name, old in parameters.items():
            if old is not None and child_path(path, name) in self.tensors:
                value = self.tensors[child_path(path, name)]
                if id(value) not in made:
                    made[id(value)] = nn.Parameter(value, requires_grad=old.requires_grad)
                self.edit.put(parameters, name, made[id(value)])
        buffers: dict[str, Tensor | None] = module._buffers
        for name, buffer in buffers.items():
            if buffer is not None:
                self.edit.put(buffers, name, self.tensors[child_path(path, name)])

    def tie_weights(self) -> None:
        """Let modules with the same codes share one packed weight, as they did when they were saved."""
        first: dict[int, PackedWeight] = {}
        for _, module in named_modules(self.root):
            if isinstance(module, QuantizedModule):
                shared = first.setdefault(id(module.packed.codes), module.packed)
                parts: dict[str, nn.Module | None] = module._modules
                if shared is not module.packed:
                    self.edit.put(parts, "packed", shared)


def _find_misfits(expected: Tensor | None, saved: Tensor | None) -> Iterator[tuple[str, str]]:
    """Yield the found and the expected state of a tensor, if they differ."""
    if expected is None:
        yield Found("a tensor in the file"), "absent, as the model has no such tensor"
    elif saved is None:
        yield Found("none"), "a tensor in the file"
    elif expected.shape != saved.shape or expected.is_floating_point() != saved.is_floating_point():
        yield Found(f"one {_describe(saved)}"), _describe(expected)


def _describe(tensor: Tensor) -> str:
    return f"of shape {tuple(tensor.shape)} and dtype {str(tensor.dtype).removeprefix('torch.')}"
