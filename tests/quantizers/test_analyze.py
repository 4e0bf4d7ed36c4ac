"""analyze: the bits of each layer that cost least within a budget."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree as ET

import attrs
import pytest
import torch
from torch import Tensor, nn

from fused_models import fused_model, token_ids
from tico_config import CalibrationError, ConfigError, GPTQConfig, LifecycleError, no_quant
from tico_modules import report, total_bytes
from tico_quantizers import GPTQQuantizer, QuantizedLinear, Registry, analysis, quantizer_entry
from tico_quantizers.analysis import Analysis, Budget
from tico_quantizers.analysis._measuring import measure
from tico_quantizers.evaluation import compare, perplexity
from tico_quantizers.lifecycle import (
    calibrate,
    convert,
    load_calibration,
    plan,
    prepare,
    save_calibration,
)
from tico_quantizers.testing import unchanged, values
from tiny_models import images, net, tiny_llama

REGISTRY = Registry([quantizer_entry(GPTQConfig, GPTQQuantizer)])
BASE = GPTQConfig(group_size=8, show_progress=False)
CANDIDATES = ({"bits": 2}, {"bits": 3}, {"bits": 8})
DATA = torch.arange(96).view(8, 12) * 7 % 40
TEST = torch.arange(48).view(4, 12) * 11 % 40


def analyze(model: nn.Module, *batches: Tensor, budget: Budget, base: GPTQConfig = BASE) -> Analysis:
    """Return what is chosen, measured on other data."""
    return analysis.analyze(
        model,
        batches or [DATA],
        budget=budget,
        base=base,
        candidates=CANDIDATES,
        heldout=[TEST],
        points=4,
        show_progress=False,
        registry=REGISTRY,
    )


@pytest.fixture(scope="module")
def found() -> Analysis:
    """Return what is chosen within 12 bits, which no test changes."""
    return analyze(tiny_llama(), budget=Budget(bits=12))


def converted(model: nn.Module, config: GPTQConfig, data: Tensor = DATA) -> nn.Module:
    """Return a copy that was calibrated and converted."""
    prepared = prepare(model, config, inplace=False, registry=REGISTRY)
    return convert(calibrate(prepared, [data], show_progress=False))


def from_file(model: nn.Module, config: GPTQConfig, folder: Path) -> nn.Module:
    """Return a copy that was converted from what layers read in the float model."""
    plain = attrs.evolve(config, token_weights="uniform")
    source, other = (prepare(model, plain, inplace=False, registry=REGISTRY) for _ in range(2))
    save_calibration(calibrate(source, [DATA], show_progress=False), folder / "seen")
    load_calibration(other, folder / "seen")
    return convert(other)


@pytest.mark.parametrize("budget", [Budget(bits=12.5), Budget(bytes=11500)])
def test_the_config_gives_what_was_promised(budget: Budget) -> None:
    """Bytes and bits are those of the model that it makes, and within the budget."""
    model = tiny_llama()
    with unchanged(model):
        found = analyze(model, budget=budget)
    made = converted(model, found.config)
    assert total_bytes(made) == plan(model, found.config, registry=REGISTRY).bytes == found.chosen.bytes
    layers = [each for each in made.modules() if isinstance(each, QuantizedLinear)]
    weights = sum(math.prod(layer.packed.shape) for layer in layers)
    bits = 8 * sum(total_bytes(layer.packed) for layer in layers) / weights
    assert bits == found.chosen.bits
    assert bits <= (budget.bits or bits)
    assert found.chosen.bytes <= (budget.bytes or found.chosen.bytes)
    chosen = {line.path: CANDIDATES[line.chosen]["bits"] for line in found.lines}
    assert chosen == {line.path: line.bits for line in report(made).layers if line.bits is not None}
    assert len(set(chosen.values())) > 1


def test_batches_and_repetitions_do_not_matter(found: Analysis) -> None:
    """The same samples give the same numbers, whatever the batches."""
    assert analyze(tiny_llama(), *torch.split(DATA, 3), budget=Budget(bits=12)) == found


def test_padding_does_not_matter(found: Analysis) -> None:
    """Tokens that the mask leaves out are neither calibrated on nor measured."""
    padding = torch.full((8, 5), 3)
    mask = torch.cat([torch.zeros_like(padding), torch.ones_like(DATA)], 1)
    padded = {"input_ids": torch.cat([padding, DATA], 1), "attention_mask": mask}
    other = analysis.analyze(
        tiny_llama(),
        [padded],
        budget=Budget(bits=12),
        base=BASE,
        candidates=CANDIDATES,
        heldout=[{name: tensor[::2] for name, tensor in padded.items()}],
        points=4,
        show_progress=False,
        registry=REGISTRY,
    )
    plain = analysis.analyze(
        tiny_llama(),
        [DATA],
        budget=Budget(bits=12),
        base=BASE,
        candidates=CANDIDATES,
        heldout=[DATA[::2]],
        points=4,
        show_progress=False,
        registry=REGISTRY,
    )
    assert other == plain
    assert plain.chosen != found.chosen


def test_what_is_measured_is_the_divergence_of_the_converted_model(found: Analysis, tmp_path: Path) -> None:
    """That of a model that was converted by the same config from what layers read in the float one."""
    model = tiny_llama()
    made = from_file(model, found.config, tmp_path)
    assert found.chosen.divergence == compare(model, made, [TEST]).kl
    grown = perplexity(made, TEST) / perplexity(model, TEST) - 1
    # The float32 losses of a token, up to 4, are summed in float64: 2**-22 covers both quotients.
    assert found.chosen.error == pytest.approx(grown, abs=2**-22)


def test_losses_of_a_block_are_its_divergence(found: Analysis, tmp_path: Path) -> None:
    """At the smallest candidate they add up to what the model with that block alone diverges by."""
    model = tiny_llama()
    path = "model.layers.1"
    smallest = attrs.evolve(BASE, bits=2, overrides={"model.layers.0.*": no_quant()})
    made = from_file(model, smallest, tmp_path)
    own = [line.loss[0] for line in found.lines if line.path.startswith(path)]
    assert len(own) == 7
    # Seven products and their sum, each rounded once.
    assert sum(own) == pytest.approx(compare(model, made, [TEST]).kl, rel=2**-49)
    assert all(list(line.loss) == sorted(line.loss, reverse=True) for line in found.lines)


def test_a_model_that_fails_is_left_as_it_was() -> None:
    """What stood in for a layer is taken out again."""

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ArithmeticError

    model = tiny_llama()
    with unchanged(model), pytest.raises(ArithmeticError):
        measure(model, [{"model.layers.0.mlp.up_proj": Failing()}], [((DATA,), {})], show_progress=False)


def test_the_curve_falls(found: Analysis) -> None:
    """More bytes lose less, from the smallest candidates everywhere to the largest."""
    assert found.chosen in found.curve
    sizes, losses = ([getattr(each, name) for each in found.curve] for name in ("bytes", "loss"))
    assert sizes == sorted(set(sizes))
    assert losses == sorted(losses, reverse=True)
    assert set(found.curve[0].choices) == {0}
    assert set(found.curve[-1].choices) == {2}
    assert found.config_of(found.curve[-1]).resolve("model.layers.0.mlp.up_proj").spec.bits == 8


def test_layers_that_share_get_the_same() -> None:
    """Those of one parent that match the same pattern."""
    found = analysis.analyze(
        tiny_llama(),
        [DATA],
        budget=Budget(bits=12.2),
        base=BASE,
        candidates=CANDIDATES,
        together=["*.[qkv]_proj", "re:.*(gate|up)_proj"],
        points=2,
        show_progress=False,
        registry=REGISTRY,
    )
    chosen = {line.path: line.chosen for line in found.lines}
    for block in ("model.layers.0", "model.layers.1"):
        assert len({chosen[f"{block}.self_attn.{name}_proj"] for name in "qkv"}) == 1
        assert len({chosen[f"{block}.mlp.{name}_proj"] for name in ("gate", "up")}) == 1
    assert len(set(chosen.values())) > 1


def test_what_the_base_says_of_layers_holds_still() -> None:
    """What it leaves out stays float, and what it sets for some is kept beside their bits."""
    overrides = {"model.layers.0": no_quant(), "*.1.mlp.down_proj": {"damping": 0.1}}
    base = attrs.evolve(BASE, overrides=overrides)
    found = analyze(tiny_llama(), budget=Budget(bits=12), base=base)
    assert {line.path.split(".")[2] for line in found.lines} == {"1"}
    spec = found.config.resolve("model.layers.1.mlp.down_proj").spec
    (line,) = (each for each in found.lines if each.path.endswith("down_proj"))
    assert (spec.damping, spec.bits) == (0.1, CANDIDATES[line.chosen]["bits"])
    assert found.config.overrides["model.layers.0"] == no_quant()


def test_a_budget_of_error_is_met_by_measurement() -> None:
    """For outputs that are no logits: their squared error as a share of the float ones' squared norm."""
    model, data, test = net(), images(0, 64), images(1, 16)
    base = GPTQConfig(show_progress=False)

    def of(budget: Budget) -> Analysis:
        return analysis.analyze(
            model,
            [data],
            budget=budget,
            base=base,
            candidates=CANDIDATES,
            heldout=[test],
            points=3,
            show_progress=False,
            registry=REGISTRY,
        )

    found = of(Budget(error=0.01))
    made = converted(model, found.config, data)
    with torch.no_grad():
        expected, given = model(test).double(), made(test).double()
    error = (given - expected).square().sum() / expected.square().sum()
    # Samples are computed one by one, and all at once here: float32 products of 48 terms.
    assert found.chosen.error == pytest.approx(float(error), rel=2**-12)
    assert found.chosen.error <= 0.01 < found.curve[0].error
    assert found.chosen.bytes < found.curve[-1].bytes
    with pytest.raises(
        ConfigError, match=r"no choice of bits=2, bits=3, bits=8 was measured to err by 1e-09 at most"
    ):
        of(Budget(error=1e-9))


def test_every_fourth_sample_is_held_out() -> None:
    """Without other data to measure on; one sample serves both."""
    model = tiny_llama()

    def of(data: Tensor, heldout: list[Tensor] | None) -> Analysis:
        return analysis.analyze(
            model,
            [data],
            budget=Budget(bits=12),
            base=BASE,
            candidates=CANDIDATES,
            heldout=heldout,
            points=2,
            show_progress=False,
            registry=REGISTRY,
        )

    rows = torch.tensor([number % 4 == 3 for number in range(8)])
    assert of(DATA, None) == of(DATA[~rows], [DATA[rows]])
    assert of(DATA[:1], None) == of(DATA[:1], [DATA[:1]])


def test_experts_that_share_a_parameter_share_their_bits() -> None:
    """Each parameter is one weight of the module; the config has an override for each expert."""
    model, data = fused_model("mixtral"), token_ids(rows=32)
    found = analysis.analyze(
        model,
        [data],
        budget=Budget(bits=12),
        base=BASE,
        candidates=CANDIDATES,
        points=2,
        show_progress=False,
        registry=REGISTRY,
    )
    experts = {line.path: line.chosen for line in found.lines if ".experts." in line.path}
    assert experts
    for block in "01":
        assert len({chosen for path, chosen in experts.items() if f"layers.{block}." in path}) == 1
    assert total_bytes(converted(model, found.config, data)) == found.chosen.bytes


def test_a_lone_layer_is_analyzed() -> None:
    """Its path is empty, so that the config itself says its bits."""
    found = analysis.analyze(
        nn.Linear(8, 8).eval(),
        [values(0, 4, 6, 8)],
        budget=Budget(bits=11),
        base=BASE,
        candidates=CANDIDATES,
        points=2,
        show_progress=False,
        registry=REGISTRY,
    )
    assert [(line.path, line.chosen) for line in found.lines] == [("", 1)]
    assert found.config.bits == 3


def test_tables_and_json_have_the_same_numbers(found: Analysis) -> None:
    """A person reads the one, a program the other."""
    told = json.loads(found.to_json())
    assert told["chosen"]["bytes"] == found.chosen.bytes
    paths = [line.path for line in found.lines if line.path in found.config.overrides]
    assert told["overrides"] == {path: {"bits": found.config.resolve(path).spec.bits} for path in paths}
    assert [line["path"] for line in told["lines"]] == [line.path for line in found.lines]
    shown = found.to_markdown()
    assert f"| {found.chosen.bytes:,} (chosen) | {found.chosen.bits:.3f} |" in shown
    assert shown == str(found)
    assert all(f"| {line.path} | {line.weights:,} |" in shown for line in found.lines)


def test_the_picture_has_every_point(found: Analysis) -> None:
    """A circle each, further right for more bytes and further down for less divergence; one is filled."""
    root = ET.fromstring(found.to_svg())  # noqa: S314  # what was just written
    circles = [each.attrib for each in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(circles) == len(found.curve)
    across, down = ([float(each[name]) for each in circles] for name in ("cx", "cy"))
    assert across == sorted(across)
    pairs = zip(found.curve, down, strict=True)
    assert down == [y for _, y in sorted(pairs, key=lambda pair: -pair[0].divergence)]
    assert [each["fill"] for each in circles].count("currentColor") == 1
    assert circles[found.curve.index(found.chosen)]["fill"] == "currentColor"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "budget must be one of bits, bytes and error, got nothing"),
        ({"bits": 4.0, "bytes": 3}, "got bits and bytes"),
        ({"bits": 0}, "bits must be a number above 0"),
        ({"bytes": 1.5}, "bytes must be an integer"),
        ({"error": -1.0}, "error must be a number above 0"),
    ],
)
def test_a_budget_is_one_positive_number(given: dict[str, object], text: str) -> None:
    """The error says what was given."""
    with pytest.raises(ConfigError, match=text):
        Budget(**given)  # type: ignore[arg-type]


def test_a_budget_below_the_smallest_candidates_is_refused() -> None:
    """The error says how much they take."""
    with pytest.raises(ConfigError, match=r"the candidates take 10\.0 bits at least"):
        analyze(tiny_llama(), budget=Budget(bits=9))


def test_what_cannot_be_analyzed_is_refused() -> None:
    """Candidates that fit no layer, no data, and a model that is prepared already."""
    model = tiny_llama()

    def of(model: nn.Module, candidates: object, batches: list[Tensor]) -> None:
        analysis.analyze(
            model,
            batches,
            budget=Budget(bits=12),
            base=BASE,
            candidates=candidates,  # type: ignore[arg-type]
            show_progress=False,
            registry=REGISTRY,
        )

    with pytest.raises(ConfigError, match="candidates must be two mappings or more"):
        of(model, [{"bits": 4}], [DATA])
    with pytest.raises(ConfigError, match="bits must be"):
        of(model, [{"bits": 4}, {"bits": 9}], [DATA])
    with pytest.raises(ConfigError, match="true_sequential"):
        of(model, [{"bits": 4}, {"true_sequential": True}], [DATA])
    with pytest.raises(ConfigError, match="group_size"):
        of(model, [{"bits": 4}, {"group_size": 7}], [DATA])
    with pytest.raises(CalibrationError, match="batches must be at least one batch"):
        of(model, CANDIDATES, [])
    with pytest.raises(LifecycleError, match="prepared"):
        of(prepare(model, BASE, registry=REGISTRY), CANDIDATES, [DATA])
