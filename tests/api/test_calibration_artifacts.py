"""One run over the data serves every algorithm that can use what it has shown."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import attrs
import pytest
import torch
from torch import Tensor, nn

from expert_models import Mixture, tokens
from smoothing_models import Encoder, model_with_data
from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    PT2EConfig,
    PTQConfig,
    Registry,
    SmoothQuantConfig,
    convert,
    load_calibration,
    prepare,
    quantizer_entry,
    report,
    save_calibration,
)
from tico.quantization.config import (
    ArtifactError,
    BaseConfig,
    CalibrationError,
    DType,
    LifecycleError,
    UnsupportedError,
    no_quant,
)
from tico_observers import AbsMaxStatistic, GramStatistic, Statistic, load_statistics, save_statistics
from tico_quantizers import LayerReport, PackedWeight, QuantizedModule, runs_of
from tico_quantizers.calibration import GroupedGram
from tico_quantizers.conversion import BlockQuantizer
from tico_quantizers.gptq import solve
from tico_quantizers.layers import QuantizedWeight, Target, matrix, shape
from tico_quantizers.testing import refused, same_tensors, tensors_of, unchanged
from tiny_models import TOKENS, tiny_llama, values

GPTQ = GPTQConfig(token_weights="uniform", show_progress=False)
AWQ = AWQConfig(group_size=4, clip=True, show_progress=False)
SMOOTH = SmoothQuantConfig()
SEARCH = SmoothQuantConfig(alpha="auto")
# Points of steps take attention apart, so that what reads it sees sums that are rounded otherwise.
PTQ = PTQConfig(steps="declared")
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


class Save(Protocol):
    """Saves what a config sees of batches, by default of all."""

    def __call__(self, config: BaseConfig, *batches: Tensor, start: nn.Module | None = None) -> Path:
        """Return the path of the file."""


@pytest.fixture
def saved(tmp_path: Path) -> Save:
    """Return a function that saves what a config sees of batches."""

    def save(config: BaseConfig, *batches: Tensor, start: nn.Module | None = None) -> Path:
        path = tmp_path / f"seen {len(list(tmp_path.iterdir()))}"
        batches = batches or BATCHES
        save_calibration(run(ready(config, start, batches[0]), *batches), path)
        return path

    return save


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_file_serves_another_algorithm_as_the_data_do(saved: Save, source: str, target: str) -> None:
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
    "config",
    [
        GPTQ,
        attrs.evolve(GPTQ, bits=8, group_size=4),
        attrs.evolve(GPTQ, bits=3, symmetric=True, act_order=False, damping=0.1),
        attrs.evolve(GPTQ, bits=2, overrides={"head": no_quant(), "layers.0.*": {"bits": 5}}),
    ],
    ids=["defaults", "groups", "act_order", "overrides"],
)
@pytest.mark.parametrize("source", ["GPTQ", "AWQ", "search"])
def test_gptq_solves_for_the_gram_matrices_of_the_file(saved: Save, source: str, config: GPTQConfig) -> None:
    """Each layer has the codes that the solver gives for what it reads in the float model."""
    path = saved(SOURCES[source])
    loaded = ready(config)
    load_calibration(loaded, path)
    quantized = convert(loaded)
    known, lines = load_statistics(path), {line.path: line for line in report(quantized).layers}
    integers = {path: each for path, each in quantized.named_modules() if isinstance(each, QuantizedModule)}
    assert len(integers) == (12 if config.overrides else 13)
    for name, integer in integers.items():
        gram, layer = known[f"{name}|gram"], model().get_submodule(name)
        assert isinstance(gram, GramStatistic)
        assert isinstance(layer, nn.Linear)
        solution = solve(matrix(layer), gram.matrix(), config.resolve(name).spec)
        assert torch.equal(integer.packed.integer_codes().to(torch.int64), solution.codes.to(torch.int64))
        assert "the float model, from a calibration file" in lines[name].reason


def test_gptq_is_refused_a_file_without_gram_matrices(saved: Save) -> None:
    """One sentence says what is lacking, and which calibrations have it."""
    for source in (SMOOTH, PTQ):
        path, loaded = saved(source), ready(GPTQ)
        with refused(loaded, CalibrationError, field="statistics", module=str(path)) as error:
            load_calibration(loaded, path)
        assert GRAMS in str(error.value)
        assert "GPTQConfig()" in str(error.value)


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("token_weights", attrs.evolve(GPTQ, token_weights="auto")),
        ("token_weights", attrs.evolve(GPTQ, token_weights=(4.0,))),
        ("true_sequential", attrs.evolve(GPTQ, true_sequential=True)),
        ("asymmetric", attrs.evolve(GPTQ, asymmetric=0.25)),
        ("forward_dtype", attrs.evolve(GPTQ, forward_dtype="bfloat16")),
        ("activation_dtype", attrs.evolve(GPTQ, activation_dtype="bfloat16")),
        ("checkpoint_dir", attrs.evolve(GPTQ, checkpoint_dir="folder")),
    ],
)
def test_settings_about_passes_are_refused(saved: Save, field: str, config: GPTQConfig) -> None:
    """The field is named with the value that does without the data."""
    path, loaded = saved(GPTQ), ready(config)
    with refused(loaded, UnsupportedError, field=field, module=str(path)) as error:
        load_calibration(loaded, path)
    assert f"prepare the model with {field}=" in str(error.value)


def test_settings_of_one_layer_are_refused_by_its_path(saved: Save) -> None:
    """An override that asks for token weights is named by the layer that it holds for."""
    config = attrs.evolve(GPTQ, overrides={"head": {"token_weights": "auto"}})
    path, loaded = saved(GPTQ), ready(config)
    with refused(loaded, UnsupportedError, field="token_weights", module="head"):
        load_calibration(loaded, path)


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("token_weights", attrs.evolve(GPTQ, token_weights=(4.0,))),
        ("asymmetric", attrs.evolve(GPTQ, asymmetric=0.25)),
        ("activation_dtype", attrs.evolve(GPTQ, activation_dtype="bfloat16")),
    ],
)
def test_records_that_are_not_those_of_the_float_model_are_not_saved(
    tmp_path: Path, field: str, config: GPTQConfig
) -> None:
    """What was weighted, paired or rounded when it was recorded serves no other algorithm."""
    source = run(ready(config), *BATCHES)
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
def test_files_add_up(saved: Save, config: BaseConfig) -> None:
    """What two files tell is one calibration: that of all data, which Gram matrices keep in order."""
    loaded, expected = ready(config), ready(config)
    for batch in BATCHES:
        load_calibration(loaded, saved(config, batch))
    load_calibration(expected, saved(config, *BATCHES))
    assert same_tensors(tensors_of(convert(loaded)), tensors_of(convert(expected)))


@pytest.mark.parametrize("config", [SMOOTH, PTQ], ids=lambda config: type(config).__name__)
def test_ranges_add_up_in_any_order(saved: Save, config: BaseConfig) -> None:
    """Ranges commute bit for bit, also with data of one's own."""
    loaded = run(ready(config), BATCHES[1])
    load_calibration(loaded, saved(config, BATCHES[0]))
    expected = run(ready(config), *BATCHES)
    assert same_tensors(tensors_of(convert(loaded)), tensors_of(convert(expected)))


def test_file_and_data_add_up(saved: Save) -> None:
    """Data that are run before or after loading count beside the file: all tokens are counted."""
    path = saved(GPTQ, BATCHES[0])
    loaded = ready(GPTQ)
    load_calibration(loaded, path)
    quantized = convert(run(loaded, BATCHES[1]))
    figures = [dict(line.figures) for line in report(quantized).layers]
    assert {each["tokens"] for each in figures if "tokens" in each} == {30.0}


@pytest.mark.parametrize("config", [AWQ, SMOOTH], ids=["AWQ", "SmoothQuant"])
def test_pairs_need_an_example(saved: Save, config: BaseConfig) -> None:
    """No file says which layers form pairs, so `prepare` needs to see a pass."""
    path = saved(GPTQ)
    loaded = prepare(model(), config)
    with refused(loaded, CalibrationError, field="args", module=str(path)) as error:
        load_calibration(loaded, path)
    assert "give prepare args or kwargs" in str(error.value)


@pytest.mark.parametrize("config", [GPTQ, AWQ, SMOOTH, PTQ], ids=lambda config: type(config).__name__)
def test_other_weights_are_refused(saved: Save, config: BaseConfig) -> None:
    """The same layers with other weights read something else: the fingerprint tells."""
    path, other = saved(config), model()
    with torch.no_grad():
        other.get_parameter("head.bias").add_(1)
    loaded = ready(config, other)
    with refused(loaded, ArtifactError, field="model", module=str(path)) as error:
        load_calibration(loaded, path)
    assert len(error.value.problems) == 1


def test_modules_that_differ_are_listed(saved: Save) -> None:
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
def test_file_serves_layers_that_were_left_out(saved: Save, source: BaseConfig, pattern: str) -> None:
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


def test_damaged_file_is_refused(saved: Save) -> None:
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


def test_models_without_calibration_are_refused(saved: Save) -> None:
    """A float model and a graph: neither can take what a file holds."""
    path = saved(GPTQ)
    plain = model()
    with refused(plain, LifecycleError, field="model"):
        load_calibration(plain, path)
    start = nn.Sequential(nn.Linear(8, 4)).eval()
    graph = prepare(start, PT2EConfig(), args=(BATCHES[0],), inplace=False)
    path = saved(GPTQ, start=start)
    for action in (load_calibration, save_calibration):
        with pytest.raises(UnsupportedError, match="hold nothing of a GraphCalibration"):
            action(graph, path)


@pytest.mark.parametrize("config", [GPTQ, AWQ, SMOOTH, SEARCH], ids=lambda config: type(config).__name__)
def test_copies_and_repeated_conversions_keep_what_was_loaded(saved: Save, config: BaseConfig) -> None:
    """A loaded model can be converted to a copy, and then itself."""
    loaded = ready(config)
    load_calibration(loaded, saved(config))
    first = tensors_of(convert(loaded, inplace=False))
    assert same_tensors(first, tensors_of(convert(loaded)))


@pytest.mark.parametrize("name", ["llama", "convolutions"])
@pytest.mark.parametrize("config", [attrs.evolve(AWQ, group_size=None), SMOOTH, SEARCH], ids=str)
def test_language_models_and_convolutions(saved: Save, name: str, config: BaseConfig) -> None:
    """Attention with masks, and windows over images: the file of GPTQ serves as the data do."""
    start, x = model_with_data(name)
    path = saved(GPTQConfig(show_progress=False), x, start=start)
    loaded = ready(config, model_with_data(name)[0], x)
    load_calibration(loaded, path)
    expected = convert(run(ready(config, model_with_data(name)[0], x), x))
    assert same_tensors(tensors_of(convert(loaded)), tensors_of(expected))


@pytest.mark.parametrize(
    "config",
    [attrs.evolve(AWQ, group_size=None), SMOOTH, SEARCH, GPTQ],
    ids=["AWQ", "ranges", "search", "GPTQ"],
)
def test_padding_counts_nowhere(tmp_path: Path, config: BaseConfig) -> None:
    """What stands in the padding changes no statistic of the file."""
    mask = torch.ones_like(TOKENS)
    mask[0, :5] = 0
    paths = []
    for filling in (0, 7):
        source = prepare(tiny_llama(), config, kwargs={"input_ids": TOKENS, "attention_mask": mask})
        with torch.no_grad():
            source(TOKENS.where(mask == 1, filling), attention_mask=mask)
        save_calibration(source, tmp_path / f"{filling}")
        paths.append(load_statistics(tmp_path / f"{filling}"))
    for name, seen in paths[0].items():
        other = paths[1][name]
        if isinstance(seen, GramStatistic) and isinstance(other, GramStatistic):
            assert torch.equal(seen.matrix(), other.matrix())
        else:
            assert seen == other


def test_experts_that_read_little_are_rounded_to_nearest(tmp_path: Path) -> None:
    """The rows of the Gram matrices in the file tell them, as those of the data do."""
    config, results = attrs.evolve(GPTQ, min_expert_tokens=10), []
    for is_loaded in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            start = nn.Sequential(Mixture(), Mixture()).eval()
        prepared = prepare(start, config)
        if is_loaded:
            load_calibration(prepared, tmp_path / "seen")
        else:
            save_calibration(run(prepared, tokens((40, 10, 9, 0))), tmp_path / "seen")
        results.append(convert(prepared))
    # What a file has of the second block is of the float first one.
    assert same_tensors(*(tensors_of(each.get_submodule("0")) for each in results))
    for each in results:
        starved = [line.path for line in report(each).layers if "fewer than 10" in line.reason]
        assert starved[:4] == ["0.experts.2.0", "0.experts.2.1", "0.experts.3.0", "0.experts.3.1"]


def test_passes_that_ended_early_are_enough(saved: Save) -> None:
    """What `stop_after_capture` leaves out of the user's passes is in the file all the same."""
    start, x = model_with_data("llama")
    path = saved(GPTQConfig(stop_after_capture=True, show_progress=False), x, x.flip(1), x, start=start)
    loaded = ready(SMOOTH, model_with_data("llama")[0], x)
    load_calibration(loaded, path)
    expected = convert(run(ready(SMOOTH, model_with_data("llama")[0], x), x, x.flip(1)))
    assert same_tensors(tensors_of(convert(loaded)), tensors_of(expected))


def test_groups_of_channels_and_lone_layers(tmp_path: Path) -> None:
    """A layer has a Gram matrix for each group; the model may be a layer itself."""
    starts = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 4, 3, stride=2)), nn.Linear(9, 3)
    for start in starts:
        start.eval()
        source, loaded = prepare(start, GPTQ, inplace=False), prepare(start, GPTQ, inplace=False)
        save_calibration(run(source, values(1, 2, 4, 9, 9)), tmp_path / "seen")
        load_calibration(loaded, tmp_path / "seen")
        assert same_tensors(tensors_of(convert(loaded)), tensors_of(convert(source)))


@pytest.mark.parametrize(
    "origin",
    [{"data": "0", "calls": "1"}, {"data": "0" * 64}, {"data": "0" * 64, "calls": "-1"}],
    ids=str,
)
def test_origin_that_cannot_be_is_refused(saved: Save, origin: dict[str, str]) -> None:
    """A file that somebody else wrote has to say of its data what this library says, or nothing."""
    path, loaded = saved(GPTQ), ready(GPTQ)
    save_statistics(path, load_statistics(path), origin)
    with refused(loaded, ArtifactError, field="origin", module=str(path)):
        load_calibration(loaded, path)


@pytest.mark.parametrize(
    ("name", "statistic"),
    [
        ("head|gram", GramStatistic(columns=7)),
        ("head|gram", AbsMaxStatistic()),
        ("head|absmax", AbsMaxStatistic().observe(torch.ones(2, 7))),
    ],
)
def test_statistics_of_another_shape_are_refused(saved: Save, name: str, statistic: Statistic) -> None:
    """A file without fingerprint is held against the layers of the model."""
    path, loaded = saved(GPTQ), ready(GPTQ)
    save_statistics(path, {**load_statistics(path), name: statistic})
    with refused(loaded, ArtifactError, field=name, module=str(path)):
        load_calibration(loaded, path)


def test_report_tells_of_the_data_of_the_file(saved: Save) -> None:
    """The run that a converted layer remembers has the fingerprint of all data, wherever they were seen."""
    loaded = ready(GPTQ)
    load_calibration(loaded, saved(GPTQ, BATCHES[0]))
    (one,) = runs_of(convert(run(loaded, BATCHES[1])).get_submodule("head"))
    (other,) = runs_of(convert(run(ready(GPTQ), *BATCHES)).get_submodule("head"))
    assert (one.data, one.calls, one.model) == (other.data, other.calls, other.model)


class _Means(BlockQuantizer[GPTQConfig]):
    """Rounds to nearest, and reports the mean square of what a layer reads."""

    def quantize(self, targets: tuple[Target[GPTQConfig], ...], read: GroupedGram) -> list[QuantizedWeight]:
        """Return the codes of each target."""
        return [self._rounded(target, float(read.means()[0].trace())) for target in targets]

    def _rounded(self, target: Target[GPTQConfig], square: float) -> QuantizedWeight:
        weight, dtype = matrix(target.layer).view(shape(target.layer)), DType.uint(target.config.bits)
        packed = PackedWeight.round_to_nearest(weight, dtype, symmetric=False, group_size=None)
        figures = (("square", square),)
        line = LayerReport(path=target.path, module="", algorithm="means", figures=figures)
        return QuantizedWeight(packed, line)


def test_algorithms_of_others_are_served(saved: Save) -> None:
    """An algorithm that works block by block takes the file as GPTQ does, and gives one."""
    registry = Registry((quantizer_entry(GPTQConfig, _Means),))
    path, figures = saved(GPTQ), []
    for is_loaded in (False, True):
        prepared = prepare(model(), GPTQ, registry=registry)
        if is_loaded:
            load_calibration(prepared, path)
        else:
            save_calibration(run(prepared, *BATCHES), path.with_name("own"))
        (line,) = (each for each in report(convert(prepared)).layers if each.path == "layers.0.query")
        figures.append(line.figures)
    assert path.with_name("own").read_bytes() == path.read_bytes()
    # The first layers of the first block read the same in the float model and in the quantized one.
    assert figures[0] == figures[1]


def test_graphs_of_pt2e_are_served(tmp_path: Path) -> None:
    """GPTQ on a graph takes what GPTQ on the same graph has seen."""
    start, x = nn.Sequential(nn.Linear(8, 4)).eval(), BATCHES[0]
    graph = convert(run(prepare(start, PT2EConfig(weight=no_quant()), args=(x,), inplace=False), x))
    source, loaded = (prepare(graph, GPTQ, inplace=False) for _ in range(2))
    save_calibration(run(source, x), tmp_path / "seen")
    load_calibration(loaded, tmp_path / "seen")
    assert torch.equal(convert(loaded)(x), convert(source)(x))
