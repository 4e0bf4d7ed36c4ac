"""What every export promises, whatever the format."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, final

import attrs
import pytest
import torch
from torch import Tensor, nn

from tico.quantization import GPTQConfig, PT2EConfig, PTQConfig, convert, prepare, set_backend
from tico.quantization.config import BaseConfig, DType, no_quant
from tico_config import (
    ArtifactError,
    ConfigError,
    LifecycleError,
    MissingExtraError,
    Problem,
    UnsupportedError,
)
from tico_export import (
    PT2,
    Consumer,
    Example,
    Exporter,
    ExporterRegistry,
    ExportTarget,
    Source,
    export,
    exporter_entry,
    load_program,
)
from tico_export.protocol import Unfit, require_extra
from tico_modules import QuantizedLinear

X = torch.linspace(-2, 2, 40).view(5, 8)


def converted() -> nn.Module:
    """Return a small model of two integer layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    prepared = prepare(model, PTQConfig())
    prepared(X)
    return convert(prepared)


@final
@attrs.frozen(kw_only=True)
class Text(ExportTarget):
    """A format for these tests: the codes as text, beside which another file stands."""

    name: ClassVar[str] = "text"

    installed: bool = True
    runs: bool = True
    off_by: float = 0.0
    breaks: bool = False
    refused: tuple[str, ...] = ()
    needs: str = "json"


class TextExporter(Exporter[Text]):
    """Writes codes as text."""

    def problems(self, source: Source) -> Iterable[Problem]:
        """Refuse what the target names."""
        return [
            Problem(module=path, field="bias", value=0, expected="none")
            for path in source.weights
            if path in self.target.refused
        ]

    def write(self, source: Source, example: Example | None, path: Path) -> None:
        """Write two files."""
        path.with_name(f"{path.name}.beside").write_text("more")
        path.write_text(str([each.codes().tolist() for each in source.weights.values()]))
        if self.target.breaks:
            raise OSError(28, "No space left on device")

    def consumer(self, source: Source) -> Consumer:
        """Return something that computes as the model does, or nearly."""
        require_extra(self.target.needs, "text")
        if not self.target.installed:
            raise MissingExtraError(Problem(field="reader", value="none", expected="tico-export[text]"))

        if not self.target.runs:
            raise UnsupportedError(
                Problem(
                    field="reader", value="1.0", expected="2.0", sentence="reader 1.0 runs no such export"
                )
            )

        def run(path: Path, example: Example) -> Sequence[Tensor]:
            assert path.exists()
            found: Tensor = source.model(*example.args)
            return [found + self.target.off_by]

        return Consumer(name="reader 1.0", run=run, smallest_sqnr=40.0, why="its floats have few bits")

    def notes(self, source: Source) -> Iterable[str]:
        """Say how many layers there are."""
        return [f"{len(source.weights)} layers"]


REGISTRY = ExporterRegistry([exporter_entry(Text, TextExporter)])


def left_in(folder: Path) -> list[str]:
    """Return the names of everything in `folder`."""
    return sorted(each.name for each in folder.iterdir())


def test_an_export_is_compared_with_the_model(tmp_path: Path) -> None:
    """The result has the figures of the comparison, and the sizes."""
    result = export(converted(), tmp_path / "m.txt", Text(off_by=1e-4), args=(X,), registry=REGISTRY)
    assert (result.verified, result.consumer) == (True, "reader 1.0")
    assert result.max_difference == pytest.approx(1e-4, rel=1e-2)  # float32 rounds what is added
    assert result.sqnr > 60
    assert result.bytes == sum(each.stat().st_size for each in tmp_path.iterdir())
    assert left_in(tmp_path) == ["m.txt", "m.txt.beside"]


def test_what_an_encoder_makes_of_tokens_is_no_distribution_of_them(tmp_path: Path) -> None:
    """Features of as many tokens as were read are no logits, and have no divergence."""
    tokens = torch.tensor([[3, 39, 7]])
    prepared = prepare(nn.Sequential(nn.Embedding(40, 8), nn.Linear(8, 8)).eval(), PTQConfig())
    prepared(tokens)
    result = export(convert(prepared), tmp_path / "m.pt2", PT2(), args=(tokens,))
    assert result.verified
    assert (result.kl, result.perplexities) == (None, None)


def test_values_beyond_the_bound_are_an_error_and_leave_no_file(tmp_path: Path) -> None:
    """A consumer that gives something else than the model is named with the difference."""
    with pytest.raises(ArtifactError, match=r"reader 1.0 gives other values than the model .*dB"):
        export(converted(), tmp_path / "m.txt", Text(off_by=1.0), args=(X,), registry=REGISTRY)
    assert left_in(tmp_path) == []


def test_nan_is_never_near_enough(tmp_path: Path) -> None:
    """A consumer that gives NaN does not pass."""
    with pytest.raises(ArtifactError, match="other values"):
        export(converted(), tmp_path / "m", Text(off_by=float("nan")), args=(X,), registry=REGISTRY)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """A full disk leaves the folder as it was."""
    with pytest.raises(OSError, match="No space"):
        export(converted(), tmp_path / "m.txt", Text(breaks=True), args=(X,), registry=REGISTRY)
    assert left_in(tmp_path) == []


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a folder that nothing can be written to, not even by the superuser."""
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):  # permissions do not hold for the superuser
        monkeypatch.setattr(os, "mkdir", _refuse)
    yield folder
    folder.chmod(0o700)


def _refuse(path: str, mode: int = 0o777) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def test_a_read_only_folder_is_an_error_that_names_it(read_only: Path) -> None:
    """Nothing is there afterwards, and the model is as it was."""
    model = converted()
    set_backend(model, "native")
    before = model(X)
    with pytest.raises(PermissionError, match=r"Permission denied: .*read-only"):
        export(model, read_only / "m.pt2", PT2(), args=(X,))
    assert left_in(read_only) == []
    assert torch.equal(model(X), before)


def test_a_file_beside_the_export_is_not_replaced(tmp_path: Path) -> None:
    """What has the name of a file that the format writes beside the export stays, and is named."""
    (tmp_path / "m.txt.beside").write_text("mine")
    with pytest.raises(ConfigError, match=r"m.txt.beside"):
        export(converted(), tmp_path / "m.txt", Text(), args=(X,), registry=REGISTRY)
    assert left_in(tmp_path) == ["m.txt.beside"]
    assert (tmp_path / "m.txt.beside").read_text() == "mine"


def test_everything_a_format_cannot_hold_is_told_at_once(tmp_path: Path) -> None:
    """Each module is in the one error."""
    with pytest.raises(UnsupportedError) as caught:
        export(converted(), tmp_path / "m", Text(refused=("0", "2")), args=(X,), registry=REGISTRY)
    assert [each.module for each in caught.value.problems] == ["0", "2"]
    assert left_in(tmp_path) == []


def test_a_consumer_that_is_not_installed_is_said(tmp_path: Path) -> None:
    """The result says that nothing was verified; required, that is an error."""
    missing = Text(installed=False)
    result = export(converted(), tmp_path / "m", missing, args=(X,), registry=REGISTRY)
    assert not result.verified
    assert result.consumer.startswith("not verified: ")
    assert "tico-export[text]" in result.consumer
    with pytest.raises(MissingExtraError):
        export(converted(), tmp_path / "n", missing, args=(X,), registry=REGISTRY, verify="require")
    assert left_in(tmp_path) == ["m", "m.beside"]


@pytest.mark.parametrize(
    ("verify", "says"), [(False, "not verified: verify=False"), (True, "there are no example inputs")]
)
def test_what_was_not_compared_is_said(tmp_path: Path, verify: bool, says: str) -> None:
    """Without example inputs, or where it was not asked for, the result says so."""
    result = export(converted(), tmp_path / "m", Text(), registry=REGISTRY, verify=verify)
    assert not result.verified
    assert says in result.consumer


def _prepared() -> nn.Module:
    return prepare(nn.Sequential(nn.Linear(8, 8)).eval(), GPTQConfig(show_progress=False))


@pytest.mark.parametrize(
    ("model", "error"),
    [
        (nn.Linear(8, 8).eval(), UnsupportedError),
        ("a model", UnsupportedError),
        (_prepared(), LifecycleError),
        (converted().train(), LifecycleError),
    ],
    ids=["float", "no module", "prepared", "training"],
)
def test_only_converted_models_are_exported(tmp_path: Path, model: nn.Module, error: type[Exception]) -> None:
    """Any other model is refused, and nothing is written."""
    with pytest.raises(error, match=r"convert|evaluation"):
        export(model, tmp_path / "m", Text(), args=(X,), registry=REGISTRY)
    assert left_in(tmp_path) == []


def test_a_version_that_is_known_not_to_work_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is wrong with it and what to install, and nothing is left."""
    entry = Unfit(package="torch", below="999.1", why="computes nothing")
    monkeypatch.setattr("tico_export.protocol._versions.UNFIT", (entry,))
    with pytest.raises(ConfigError, match=r"torch .* computes nothing; .*'tico-export\[text\]'.*999\.1"):
        export(converted(), tmp_path / "m", Text(needs="torch.nn"), args=(X,), registry=REGISTRY)
    assert left_in(tmp_path) == []
    monkeypatch.setattr("tico_export.protocol._versions.UNFIT", (attrs.evolve(entry, below="1.0"),))
    assert export(converted(), tmp_path / "m", Text(needs="torch.nn"), args=(X,), registry=REGISTRY).verified


def test_codes_beyond_float32_are_refused(tmp_path: Path) -> None:
    """The layer gives the largest number, and a file would give infinity."""
    layer = QuantizedLinear.from_float(nn.Linear(8, 8), DType.int(8), symmetric=True)
    layer.packed.scale[3] = 3e36
    with pytest.raises(
        UnsupportedError, match=r"0: some codes of this layer stand for values beyond float32"
    ):
        export(nn.Sequential(layer).eval(), tmp_path / "m.pt2", PT2(), args=(X,))
    assert left_in(tmp_path) == []


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    """Paths that exist or have no folder, targets that are none, inputs that are missing: one error each."""
    model = converted()
    (tmp_path / "there").write_text("mine")
    with pytest.raises(ConfigError, match="does not exist yet"):
        export(model, tmp_path / "there", PT2(), args=(X,))
    with pytest.raises(ConfigError, match="in a folder that exists"):
        export(model, tmp_path / "no" / "m", PT2(), args=(X,))
    with pytest.raises(UnsupportedError, match=r"write PT2\(\)"):
        export(model, tmp_path / "m", PT2, args=(X,))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="no exporter serves PT2"):
        export(model, tmp_path / "m", PT2(), args=(X,), registry=REGISTRY)
    with pytest.raises(ConfigError, match="no example inputs"):
        export(model, tmp_path / "m", PT2())
    with pytest.raises(ConfigError, match=r"args=\(x,\)"):
        export(model, tmp_path / "m", PT2(), args=X)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="require"):
        export(model, tmp_path / "m", PT2(), args=(X,), verify="always")  # type: ignore[arg-type]
    assert left_in(tmp_path) == ["there"]


def test_the_model_keeps_its_back_end(tmp_path: Path) -> None:
    """The comparison is with the reference, whatever computes the model before and after."""
    model = converted()
    set_backend(model, "native")
    before = model(X)
    assert export(model, tmp_path / "m.pt2", PT2(), args=(X,)).max_difference == 0.0
    assert torch.equal(model(X), before)
    assert [getattr(each, "backend", "") for each in model] == ["native", "", "native"]  # type: ignore[attr-defined]


_SAVES = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_export import PT2, X, converted, export
export(converted(), Path(sys.argv[1]), PT2(), args=(X,), verify=False)
"""


def test_example_inputs_that_the_model_does_not_take_are_refused(tmp_path: Path) -> None:
    """In one sentence, and nothing is left."""
    with pytest.raises(ConfigError, match=r"^the model cannot be called with the example inputs: \S.*$"):
        export(converted(), tmp_path / "m", Text(), args=(torch.ones(5, 9),), registry=REGISTRY)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("verify", [True, False])
def test_a_result_has_the_notes_of_the_exporter(tmp_path: Path, verify: bool) -> None:
    """Whether the export was verified or not."""
    result = export(converted(), tmp_path / "m", Text(), args=(X,), registry=REGISTRY, verify=verify)
    assert (result.verified, result.notes) == (verify, ("2 layers",))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (PTQConfig(overrides={"2": no_quant()}), "2.weight"),
        (PTQConfig(overrides={"2.weight": no_quant()}), "2.layer.weight"),
        (PT2EConfig(overrides={"2": no_quant()}), "2.weight"),
    ],
    ids=["a layer", "a weight between grids", "a graph"],
)
def test_parts_left_in_float_are_exported_and_named(tmp_path: Path, config: BaseConfig, name: str) -> None:
    """A format that keeps floats has the very outputs of the model, and the notes say what they are."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    inplace = not isinstance(config, PT2EConfig)
    prepared = prepare(model, config, args=(X,), inplace=inplace)
    prepared(X)
    mixed = convert(prepared, inplace=inplace).eval()
    result = export(mixed, tmp_path / "m.pt2", PT2(), args=(X,))
    assert (result.verified, result.max_difference) == (True, 0.0)
    assert result.notes == (f"weights left in float: {name}",)


def test_of_many_weights_in_float_the_first_are_named(tmp_path: Path) -> None:
    """A note is a sentence that people can read."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(6))).eval()
    rest = {str(index): no_quant() for index in range(1, 6)}
    prepared = prepare(model, PTQConfig(overrides=rest))
    prepared(X)
    result = export(convert(prepared), tmp_path / "m", Text(), args=(X,), registry=REGISTRY)
    assert result.notes == ("1 layers", "weights left in float: 1.weight, 2.weight, 3.weight and 2 more")


def test_an_export_that_nothing_runs_says_so(tmp_path: Path) -> None:
    """The result has the reason; who requires verification gets it as an error, and no file."""
    target = Text(runs=False)
    result = export(converted(), tmp_path / "m", target, args=(X,), registry=REGISTRY)
    assert (result.verified, result.consumer) == (False, "not verified: reader 1.0 runs no such export.")
    with pytest.raises(UnsupportedError, match=r"^reader 1\.0 runs no such export\.$"):
        export(converted(), tmp_path / "n", target, args=(X,), registry=REGISTRY, verify="require")
    assert left_in(tmp_path) == ["m", "m.beside"]


def test_the_same_model_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """An export here and one in a fresh process are equal, and are the model's bits."""
    here, there = tmp_path / "here" / "m.pt2", tmp_path / "there" / "m.pt2"
    here.parent.mkdir()
    there.parent.mkdir()
    export(converted(), here, PT2(), args=(X,))
    command = [sys.executable, "-c", _SAVES, str(there), str(Path(__file__).parent)]
    subprocess.run(command, check=True)
    assert torch.equal(load_program(there).module()(X), converted()(X))
    assert here.read_bytes() == there.read_bytes()


def test_the_source_has_names_and_ties() -> None:
    """Integer layers stand by their path, floats by their names, and shared weights have one."""
    model = converted()
    source = Source.read(model)
    assert list(source.weights) == ["0", "2"]
    assert source.weights["0"].shape == (16, 8)
    assert source.weights["0"].act_in is not None
    assert dict(source.floats) == {}
    assert torch.equal(source.weights["2"].dequantize(), model[2].weight)  # type: ignore[index]


class Gate(nn.Module):
    """A module whose steps have points."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input times what the layer gives."""
        product: Tensor = x * self.layer(x)
        return product


def test_points_have_the_paths_that_reports_have() -> None:
    """Also those of steps, which stand beside the children of a module."""
    model = prepare(nn.Sequential(Gate()).eval(), PTQConfig())
    model(X)
    assert list(Source.read(convert(model)).points) == ["0.mul_0"]
