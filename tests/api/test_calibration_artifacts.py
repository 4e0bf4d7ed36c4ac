"""One run over the data serves every algorithm that can use what it has shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn

from smoothing_models import Encoder, model_with_data
from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    PT2EConfig,
    PTQConfig,
    SmoothQuantConfig,
    convert,
    load_calibration,
    prepare,
    report,
    save_calibration,
)
from tico.quantization.config import (
    ArtifactError,
    BaseConfig,
    CalibrationError,
    LifecycleError,
    UnsupportedError,
    no_quant,
)
from tico_observers import GramStatistic, load_statistics
from tico_quantizers import QuantizedModule
from tico_quantizers.gptq import solve
from tico_quantizers.layers import matrix
from tico_quantizers.testing import refused, same_tensors, tensors_of, unchanged
from tiny_models import values

GPTQ = GPTQConfig(token_weights="uniform", show_progress=False)
AWQ = AWQConfig(group_size=4, clip=True, show_progress=False)
SMOOTH = SmoothQuantConfig()
SEARCH = SmoothQuantConfig(alpha="auto")
PTQ = PTQConfig()
TARGETS = {"AWQ": AWQ, "SmoothQuant": SMOOTH, "search": SEARCH, "PTQ": PTQ}
SOURCES = {"GPTQ": GPTQConfig(show_progress=False), **TARGETS}
GRAMS = "no Gram matrices"
LACKS = {
    ("SmoothQuant", "GPTQ"): GRAMS,
    ("SmoothQuant", "AWQ"): GRAMS,
    ("SmoothQuant", "search"): GRAMS,
    ("PTQ", "GPTQ"): GRAMS,
    ("PTQ", "AWQ"): GRAMS,
    ("PTQ", "search"): GRAMS,
    **{(source, "PTQ"): "no statistics of quantization points" for source in SOURCES if source != "PTQ"},
}
BATCHES = tuple(values(seed, 3, 5, 8) for seed in (1, 2))


class Model(nn.Module):
    """Two blocks, and a layer outside of them."""

    def __init__(self) -> None:
        """Make the layers, with random weights."""
        super().__init__()
        self.layers = nn.ModuleList([Encoder(), Encoder()])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return 4 values for each token of x (batch, tokens, 8)."""
        for layer in self.layers:
            x = layer(x)
        output: Tensor = self.head(x)
        return output


def model() -> nn.Module:
    """Return a model, always the same one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model().eval()


def run(prepared: nn.Module, *batches: Tensor) -> nn.Module:
    """Return `prepared` after it was run on `batches`."""
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    return prepared


def ready(config: BaseConfig, start: nn.Module | None = None, x: Tensor = BATCHES[0]) -> nn.Module:
    """Return a model that is prepared with `config`; the pairs are known."""
    smooths = isinstance(config, AWQConfig | SmoothQuantConfig)
    return prepare(start or model(), config, args=(x,) if smooths else None)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves what a config sees of batches."""

    def save(config: BaseConfig, *batches: Tensor, start: nn.Module | None = None) -> Path:
        path = tmp_path / f"seen {len(list(tmp_path.iterdir()))}"
        batches = batches or BATCHES
        save_calibration(run(ready(config, start, batches[0]), *batches), path)
        return path

    return save


Saved = Callable[..., Path]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_file_serves_another_algorithm_as_the_data_do(saved: Saved, source: str, target: str) -> None:
    """Each algorithm gives the same bits from the file as from the data, or says what the file lacks."""
    path, config = saved(SOURCES[source]), TARGETS[target]
    loaded = ready(config)
    if (source, target) in LACKS:
        with refused(loaded, CalibrationError, field="statistics", module=str(path)) as error:
            load_calibration(loaded, path)
        assert LACKS[source, target] in str(error.value)
        assert len(error.value.problems) == 1
        return
    load_calibration(loaded, path)
    expected = convert(run(ready(config), *BATCHES))
    assert same_tensors(tensors_of(convert(loaded)), tensors_of(expected))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bits": 8, "group_size": 4},
        {"bits": 3, "symmetric": True, "act_order": True, "damping": 0.1},
        {"bits": 2, "overrides": {"head": no_quant(), "layers.0.*": {"bits": 5}}},
    ],
    ids=str,
)
@pytest.mark.parametrize("source", ["GPTQ", "AWQ", "search"])
def test_gptq_solves_for_the_gram_matrices_of_the_file(
    saved: Saved, source: str, changes: dict[str, object]
) -> None:
    """Each layer has the codes that the solver gives for what it reads in the float model."""
    config = attrs.evolve(GPTQ, **changes)
    path = saved(SOURCES[source])
    loaded = ready(config)
    load_calibration(loaded, path)
    quantized = convert(loaded)
    known = load_statistics(path)
    layers = {path: layer for path, layer in model().named_modules() if isinstance(layer, nn.Linear)}
    left = {"head"} if changes.get("overrides") else set()
    integers = {path: each for path, each in quantized.named_modules() if isinstance(each, QuantizedModule)}
    assert integers.keys() == layers.keys() - left
    for name, integer in integers.items():
        gram = known[f"{name}|gram"]
        assert isinstance(gram, GramStatistic)
        weight = matrix(layers[name])
        solution = solve(weight, gram.matrix(), config.resolve(name).spec)
        assert torch.equal(integer.packed.integer_codes().to(torch.int64), solution.codes.to(torch.int64))
        line = next(each for each in report(quantized).layers if each.path == name)
        assert "the float model, from a calibration file" in line.reason


def test_gptq_is_refused_a_file_without_gram_matrices(saved: Saved) -> None:
    """One sentence says what is lacking, and which calibrations have it."""
    for source in (SMOOTH, PTQ):
        path, loaded = saved(source), ready(GPTQ)
        with refused(loaded, CalibrationError, field="statistics", module=str(path)) as error:
            load_calibration(loaded, path)
        assert GRAMS in str(error.value)
        assert "GPTQConfig()" in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"token_weights": "auto"},
        {"token_weights": (4.0,)},
        {"true_sequential": True},
        {"asymmetric": 0.25},
        {"forward_dtype": "bfloat16"},
        {"activation_dtype": "bfloat16"},
        {"checkpoint_dir": "folder"},
    ],
    ids=str,
)
def test_settings_about_passes_are_refused(saved: Saved, changes: dict[str, object]) -> None:
    """The field is named with the value that does without the data."""
    (field,) = changes
    path, loaded = saved(GPTQ), ready(attrs.evolve(GPTQ, **changes))
    with refused(loaded, UnsupportedError, field=field, module=str(path)) as error:
        load_calibration(loaded, path)
    assert f"prepare the model with {field}=" in str(error.value)


def test_settings_of_one_layer_are_refused_by_its_path(saved: Saved) -> None:
    """An override that asks for token weights is named by the layer that it holds for."""
    config = attrs.evolve(GPTQ, overrides={"head": {"token_weights": "auto"}})
    path, loaded = saved(GPTQ), ready(config)
    with refused(loaded, UnsupportedError, field="token_weights", module="head"):
        load_calibration(loaded, path)


@pytest.mark.parametrize(
    "changes",
    [{"token_weights": (4.0,)}, {"asymmetric": 0.25}, {"activation_dtype": "bfloat16"}],
    ids=str,
)
def test_records_that_are_not_those_of_the_float_model_are_not_saved(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    """What was weighted, paired or rounded when it was recorded serves no other algorithm."""
    (field,) = changes
    source = run(ready(attrs.evolve(GPTQ, **changes)), *BATCHES)
    with refused(source, UnsupportedError, field=field):
        save_calibration(source, tmp_path / "seen")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", SOURCES.values(), ids=SOURCES.keys())
def test_saving_changes_nothing(tmp_path: Path, config: BaseConfig) -> None:
    """A model that was saved is converted as one that was not, and calibrated further."""
    source = run(ready(config), BATCHES[0])
    save_calibration(source, tmp_path / "seen")
    save_calibration(source, tmp_path / "again")
    assert (tmp_path / "seen").read_bytes() == (tmp_path / "again").read_bytes()
    expected = convert(run(ready(config), *BATCHES))
    assert same_tensors(tensors_of(convert(run(source, BATCHES[1]))), tensors_of(expected))


@pytest.mark.parametrize("config", [GPTQ, AWQ, SMOOTH, SEARCH], ids=lambda config: type(config).__name__)
def test_files_add_up(saved: Saved, config: BaseConfig) -> None:
    """What two files tell is one calibration: that of all data, which Gram matrices keep in order."""
    loaded, expected = ready(config), ready(config)
    for batch in BATCHES:
        load_calibration(loaded, saved(config, batch))
    load_calibration(expected, saved(config, *BATCHES))
    assert same_tensors(tensors_of(convert(loaded)), tensors_of(convert(expected)))


@pytest.mark.parametrize("config", [SMOOTH, PTQ], ids=lambda config: type(config).__name__)
def test_ranges_add_up_in_any_order(saved: Saved, config: BaseConfig) -> None:
    """Ranges commute bit for bit, also with data of one's own."""
    loaded = run(ready(config), BATCHES[1])
    load_calibration(loaded, saved(config, BATCHES[0]))
    expected = run(ready(config), *BATCHES)
    assert same_tensors(tensors_of(convert(loaded)), tensors_of(convert(expected)))


def test_file_and_data_add_up(saved: Saved) -> None:
    """Data that are run before or after loading count beside the file: all tokens are counted."""
    path = saved(GPTQ, BATCHES[0])
    loaded = ready(GPTQ)
    load_calibration(loaded, path)
    quantized = convert(run(loaded, BATCHES[1]))
    figures = [dict(line.figures) for line in report(quantized).layers]
    assert {each["tokens"] for each in figures if "tokens" in each} == {30.0}


@pytest.mark.parametrize("config", [AWQ, SMOOTH], ids=["AWQ", "SmoothQuant"])
def test_pairs_need_an_example(saved: Saved, config: BaseConfig) -> None:
    """No file says which layers form pairs, so `prepare` needs to see a pass."""
    path = saved(GPTQ)
    loaded = prepare(model(), config)
    with refused(loaded, CalibrationError, field="args", module=str(path)) as error:
        load_calibration(loaded, path)
    assert "give prepare args or kwargs" in str(error.value)


@pytest.mark.parametrize("config", [GPTQ, AWQ, SMOOTH, PTQ], ids=lambda config: type(config).__name__)
def test_other_weights_are_refused(saved: Saved, config: BaseConfig) -> None:
    """The same layers with other weights read something else: the fingerprint tells."""
    path, other = saved(config), model()
    with torch.no_grad():
        other.get_parameter("head.bias").add_(1)
    loaded = ready(config, other)
    with refused(loaded, ArtifactError, field="model", module=str(path)) as error:
        load_calibration(loaded, path)
    assert len(error.value.problems) == 1


def test_modules_that_differ_are_listed(saved: Saved) -> None:
    """A file of another model names the layers that this one lacks."""
    path, loaded = saved(GPTQ), prepare(nn.Sequential(nn.Linear(8, 8)).eval(), GPTQ)
    with refused(loaded, ArtifactError, field="model", module=str(path)) as error:
        load_calibration(loaded, path)
    assert [each.field for each in error.value.problems][1:3] == ["head", "layers.0.key"]


def test_layers_that_were_left_out_are_listed(tmp_path: Path) -> None:
    """A layer that the calibration did not watch, and that no pass of the model can show, is named."""
    narrow = attrs.evolve(GPTQ, overrides={"head": no_quant()})
    source = ready(narrow)
    for block in source.get_submodule("layers").children():
        run(block, *BATCHES)
    save_calibration(source, tmp_path / "seen")
    loaded, left_out = ready(GPTQ), ready(narrow)
    with refused(loaded, CalibrationError, field="statistics", module="head"):
        load_calibration(loaded, tmp_path / "seen")
    load_calibration(left_out, tmp_path / "seen")
    assert isinstance(convert(left_out).get_submodule("head"), nn.Linear)


@pytest.mark.parametrize("pattern", ["head", "layers.1.linear2"])
@pytest.mark.parametrize("source", [GPTQ, attrs.evolve(AWQ, clip=False)], ids=["GPTQ", "AWQ"])
def test_file_serves_layers_that_were_left_out(saved: Saved, source: BaseConfig, pattern: str) -> None:
    """What a config leaves in float is read in passes that are made again, in blocks and outside."""
    assert isinstance(source, GPTQConfig | AWQConfig)
    path = saved(attrs.evolve(source, overrides={pattern: no_quant()}))
    loaded = ready(AWQ)
    load_calibration(loaded, path)
    assert same_tensors(tensors_of(convert(loaded)), tensors_of(convert(run(ready(AWQ), *BATCHES))))


@pytest.mark.parametrize("config", SOURCES.values(), ids=SOURCES.keys())
def test_nothing_seen_cannot_be_saved(tmp_path: Path, config: BaseConfig) -> None:
    """A model without data is refused, and no file is written."""
    source = ready(config)
    with unchanged(source), pytest.raises(CalibrationError, match="no calibration data"):
        save_calibration(source, tmp_path / "seen")
    assert not list(tmp_path.iterdir())


def test_damaged_file_is_refused(saved: Saved) -> None:
    """A byte that is wrong is found, and nothing was seen."""
    path = saved(GPTQ)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    loaded = ready(GPTQ)
    with refused(loaded, ArtifactError, field="file", module=str(path)):
        load_calibration(loaded, path)
    with pytest.raises(CalibrationError, match="no calibration data"):
        convert(loaded)


def test_models_without_calibration_are_refused(saved: Saved) -> None:
    """A float model and a graph: neither can take what a file holds."""
    path = saved(GPTQ)
    plain = model()
    with refused(plain, LifecycleError, field="model"):
        load_calibration(plain, path)
    graph = prepare(model(), PT2EConfig(), args=(BATCHES[0],), inplace=False)
    for action in (load_calibration, save_calibration):
        with pytest.raises(UnsupportedError, match="hold nothing of a GraphCalibration"):
            action(graph, path)


@pytest.mark.parametrize("config", [GPTQ, AWQ, SMOOTH, SEARCH], ids=lambda config: type(config).__name__)
def test_copies_and_repeated_conversions_keep_what_was_loaded(saved: Saved, config: BaseConfig) -> None:
    """A loaded model can be converted to a copy, and then itself."""
    loaded = ready(config)
    load_calibration(loaded, saved(config))
    first = tensors_of(convert(loaded, inplace=False))
    assert same_tensors(first, tensors_of(convert(loaded)))


@pytest.mark.parametrize("name", ["llama", "convolutions"])
@pytest.mark.parametrize("config", [attrs.evolve(AWQ, group_size=None), SMOOTH, SEARCH], ids=str)
def test_language_models_and_convolutions(saved: Saved, name: str, config: BaseConfig) -> None:
    """Attention with masks, and windows over images: the file of GPTQ serves as the data do."""
    start, x = model_with_data(name)
    path = saved(GPTQConfig(show_progress=False), x, start=start)
    loaded = ready(config, model_with_data(name)[0], x)
    load_calibration(loaded, path)
    expected = convert(run(ready(config, model_with_data(name)[0], x), x))
    assert same_tensors(tensors_of(convert(loaded)), tensors_of(expected))
