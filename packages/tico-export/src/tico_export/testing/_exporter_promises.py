"""What every exporter promises."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from tico_config import (
    FP8,
    MXFP4,
    NVFP4,
    ConfigError,
    DType,
    FloatFormat,
    MissingExtraError,
    SuperBlock,
    UnsupportedError,
)
from tico_export.protocol import ExporterRegistry
from tico_export.source import Source
from tico_export.testing._elsewhere import files_elsewhere, files_in
from tico_export.testing._exporter_case import ExporterCase
from tico_modules import PackedWeight, QuantizedModule, named_modules

_FORMATS = (FP8(), MXFP4(), NVFP4())
_FULL = 256  # bytes, which no export is smaller than


class ExporterPromises:
    """Tests of exporters: a subclass names targets with models, and pytest collects it."""

    cases: ClassVar[Mapping[str, ExporterCase]] = {}
    """The targets, each with a model that it takes, by a name for the test's report."""

    registry: ClassVar[ExporterRegistry | None] = None
    """Where their exporters are found; by default what is built in or installed."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run every promise with every case."""
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", list(self.cases))

    def test_the_runtime_gives_what_the_model_gives(self, name: str, tmp_path: Path) -> None:
        """The result has the figures and their bound, or says that nothing was verified and why."""
        model = self.cases[name].make()
        result = self.cases[name].export(tmp_path, self.registry, model=model, verify=True)
        sizes = sum(map(len, files_in(tmp_path).values()))
        assert (result.target, result.bytes) == (self.cases[name].target.name, sizes)
        assert result.verified != result.consumer.startswith("not verified: ")
        assert not (result.verified and torch.isnan(torch.tensor([result.sqnr, result.bound])).any())
        left = Source.read(model).float_weights
        assert all(any(each in note for note in result.notes) for each in left[:1])

    def test_verification_can_be_required(self, name: str, tmp_path: Path) -> None:
        """It is an error, and nothing is left, where there is no runtime or nothing to run it on."""
        case = self.cases[name]
        try:
            assert case.export(tmp_path, self.registry, verify="require").verified
        except (MissingExtraError, UnsupportedError):
            assert files_in(tmp_path) == {}
        with pytest.raises(ConfigError):
            case.export(tmp_path, self.registry, verify="require", examples=False)

    def test_a_package_that_is_not_there_is_named(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the extra that brings it, and nothing is left; a format that needs none is verified."""
        monkeypatch.setattr("tico_export.protocol._extra.importlib", _NothingInstalled)
        said = "verified"
        try:
            assert self.cases[name].export(tmp_path, self.registry, verify="require").verified
        except MissingExtraError as error:
            said = str(error)
        assert said == "verified" or ("pip install" in said and files_in(tmp_path) == {})

    def test_only_converted_models_are_taken(self, name: str, tmp_path: Path) -> None:
        """A float model is refused with what to do, and nothing is written."""
        with pytest.raises(UnsupportedError, match="convert"):
            self.cases[name].export(tmp_path, self.registry, model=nn.Sequential(nn.Linear(2, 2)).eval())
        assert list(tmp_path.iterdir()) == []

    def test_offsets_are_held_or_refused(self, name: str, tmp_path: Path) -> None:
        """Those of a weight's groups, which are no zero points, are in the export or named in the error."""
        model = self.cases[name].make()
        self._held_or_refused(name, tmp_path, model, _add_offsets(model))

    @pytest.mark.parametrize("dtype", _FORMATS, ids=str)
    def test_elements_are_held_or_refused(self, name: str, dtype: FloatFormat, tmp_path: Path) -> None:
        """Those of a weight are in the export, which the runtime then gives, or named in the error."""
        model = self.cases[name].make()
        self._held_or_refused(name, tmp_path, model, _round_to_elements(model, dtype))

    def _held_or_refused(self, name: str, folder: Path, model: nn.Module, path: str | None) -> None:
        """Assert that the export gives what `model` gives, or names the weight at `path`, if there is one."""
        if path is None:
            return
        refused = ""
        try:
            self.cases[name].export(folder, self.registry, model=model, verify=True)
        except UnsupportedError as error:
            refused = str(error)
        assert bool(refused) == (files_in(folder) == {})
        assert not refused or path in refused

    def test_example_inputs_are_asked_for(self, name: str, tmp_path: Path) -> None:
        """Where a target needs them; otherwise the result says that nothing was compared."""
        case = self.cases[name]
        if case.target.needs_example:
            with pytest.raises(ConfigError, match="no example inputs"):
                case.export(tmp_path, self.registry, examples=False)
            assert list(tmp_path.iterdir()) == []
        else:
            result = case.export(tmp_path, self.registry, verify=True, examples=False)
            assert "no example inputs" in result.consumer

    def test_what_is_there_stays(self, name: str, tmp_path: Path) -> None:
        """A path that exists is refused."""
        (tmp_path / self.cases[name].file_name).write_text("mine")
        with pytest.raises(ConfigError, match="does not exist yet"):
            self.cases[name].export(tmp_path, self.registry)
        assert list(files_in(tmp_path).values()) == [b"mine"]

    def test_a_read_only_folder_is_an_error_that_names_it(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing is there afterwards, and the model is as it was."""
        with _unchanged(self.cases[name].make()) as model:
            folder = tmp_path / "read-only"
            folder.mkdir(mode=0o500)
            if os.access(folder, os.W_OK):  # permissions do not hold for the superuser
                monkeypatch.setattr(os, "mkdir", _refuse)
            with pytest.raises(PermissionError, match="read-only"):
                self.cases[name].export(folder, self.registry, model=model)
            folder.chmod(0o700)
        assert list(folder.iterdir()) == []

    def test_a_full_disk_is_an_error_that_leaves_nothing(self, name: str, tmp_path: Path) -> None:
        """Neither at the path nor beside it, and the model is as it was."""
        with _unchanged(self.cases[name].make()) as model:
            # What the first call makes elsewhere, such as tables of operators, is there for the second one.
            self.cases[name].export(tmp_path, self.registry, model=model)
            folder = tmp_path / "full"
            folder.mkdir()
            with _no_larger_file_than(_FULL), pytest.raises(OSError, match=r"space|large|full|writ"):
                self.cases[name].export(folder, self.registry, model=model)
        assert list(folder.iterdir()) == []

    def test_the_same_model_gives_the_same_bytes_in_every_process(self, name: str, tmp_path: Path) -> None:
        """Also where texts have other hashes."""
        self.cases[name].export(tmp_path, self.registry)
        assert files_in(tmp_path) == files_elsewhere(type(self), name)

    def test_nothing_else_changes(self, name: str, tmp_path: Path) -> None:
        """Neither the model nor random numbers, the default dtype or whether gradients are computed."""
        before = (torch.get_default_dtype(), torch.is_grad_enabled())
        with _unchanged(self.cases[name].make()) as model:
            state = torch.get_rng_state()
            self.cases[name].export(tmp_path, self.registry, model=model, verify=True)
            assert torch.equal(torch.get_rng_state(), state)
        assert (torch.get_default_dtype(), torch.is_grad_enabled()) == before


def _round_to_elements(model: nn.Module, dtype: FloatFormat) -> str | None:
    """Round the weight of the first quantized layer in `model`; return its path, None without one."""
    for path, layer in named_modules(model):
        if isinstance(layer, QuantizedModule):
            weight = layer.packed.dequantize()
            layer.packed = PackedWeight.round_to_nearest(weight, dtype, symmetric=True, group_size=None)
            return path
    return None


def _add_offsets(model: nn.Module) -> str | None:
    """Give the first integer layer in `model` offsets of half a step; return its path, None without one."""
    for path, layer in named_modules(model):
        if isinstance(layer, QuantizedModule) and isinstance(layer.packed.dtype, DType):
            packed = layer.packed
            layer.packed = PackedWeight.from_codes(
                packed.integer_codes(),
                packed.scale,
                packed.zero_point,
                dtype=packed.dtype,
                shape=packed.shape,
                group_size=packed.group_size,
                group_index=packed.group_index,
                offset=packed.scale / 2,
                super_block=SuperBlock(offset_bits=6),
                float_dtype=packed.float_dtype,
            )
            return path
    return None


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a model, and demand that its tensors and its mode are the same afterwards."""
    before: dict[str, Tensor] = {name: each.clone() for name, each in model.state_dict().items()}
    yield model
    after: dict[str, Tensor] = dict(model.state_dict())
    assert before.keys() == after.keys()
    assert all(torch.equal(each, after[name]) for name, each in before.items())
    assert not model.training


class _NothingInstalled:
    """What stands for the machinery of imports where no extra is installed."""

    @staticmethod
    def import_module(name: str) -> None:
        """Find nothing.

        Raises:
            ImportError: always.
        """
        raise ImportError(name)


def _refuse(path: str, mode: int = 0o777) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


@contextmanager
def _no_larger_file_than(size: int) -> Iterator[None]:
    """Let the system refuse to write more than `size` bytes into a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
