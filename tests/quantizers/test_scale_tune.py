"""Scales tuned against the float model: what moves, what stays, and what is refused."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn

from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    HQQConfig,
    PTQConfig,
    ScaleTuneConfig,
    SmoothQuantConfig,
    calibrate,
    compare,
    convert,
    load_quantized,
    prepare,
    quantize_checkpoint,
    report,
)
from tico_config import (
    BaseConfig,
    CalibrationError,
    ConfigError,
    DType,
    UnsupportedError,
    affine,
    no_quant,
    profiles,
)
from tico_modules import PackedWeight, named_modules
from tico_quantizers.algorithms.scale_tune._divergence import mean_divergence
from tico_quantizers.algorithms.scale_tune._teacher import Teacher
from tico_quantizers.calibration import Call, after_call
from tico_quantizers.testing import ResidualBlock, same_tensors, seeded, tensors_of, unchanged, values
from tico_quantizers.tuning import Split, TreeState
from tiny_models import tiny_llama

GPTQ = GPTQConfig(bits=3, show_progress=False)
QUIET = ScaleTuneConfig(base=GPTQ, steps=8, learning_rate=0.01, show_progress=False)


def model() -> nn.Module:
    """Return two blocks."""
    return seeded(lambda: nn.Sequential(ResidualBlock(), ResidualBlock()))


def data() -> Tensor:
    """Return 16 samples."""
    return values(0, 16, 6, 8)


def converted(config: BaseConfig, float_model: nn.Module | None = None) -> nn.Module:
    """Return a model converted with `data`."""
    work = prepare(model() if float_model is None else float_model, config)
    work(data())
    return convert(work)


def weights(quantized: nn.Module) -> dict[str, PackedWeight]:
    """Return the packed weights by path."""
    return {path: each for path, each in named_modules(quantized) if isinstance(each, PackedWeight)}


def figures(quantized: nn.Module) -> dict[str, float]:
    """Return the figures of the first integer layer."""
    return dict(next(line for line in report(quantized).layers if line.bits is not None).figures)


@pytest.mark.parametrize(
    "base",
    [GPTQ, HQQConfig(bits=3, show_progress=False), AWQConfig(bits=3, group_size=4, show_progress=False)],
)
def test_only_scales_change(base: BaseConfig) -> None:
    """Codes and zero points are those of the base, and so is all else that the model holds."""
    alone, tuned = converted(base).state_dict(), converted(attrs.evolve(QUIET, base=base)).state_dict()
    changed = {name for name, tensor in tuned.items() if not torch.equal(tensor, alone[name])}
    assert alone.keys() == tuned.keys()
    assert changed == {name for name in alone if name.endswith("packed.scale")}


def test_loss_in_the_report_is_that_of_the_samples_held_out() -> None:
    """Before and after, as `compare` computes it in float64.

    A logarithm of a probability above 2^-4 is off by at most 2^-21 in float32, and the mean of rows by that.
    """
    split = Split.of(16, share=QUIET.held_out, seed=QUIET.seed)
    held_out = data()[list(split.held_out)]
    tuned = converted(QUIET)
    found = figures(tuned)
    assert found["divergence"] < found["divergence before"]
    assert found["divergence"] == pytest.approx(compare(model(), tuned, [held_out]).kl, abs=2**-20)
    before = compare(model(), converted(GPTQ), [held_out]).kl
    assert found["divergence before"] == pytest.approx(before, abs=2**-20)


def test_nothing_changes_where_no_step_is_better() -> None:
    """Steps that are far too long leave the scales that the base has found, bit for bit."""
    base = attrs.evolve(GPTQ, bits=8)
    tuned = converted(attrs.evolve(QUIET, base=base, learning_rate=1.0, steps=2, check_every=1))
    alone = converted(base).state_dict()
    assert all(torch.equal(tensor, alone[name]) for name, tensor in tuned.state_dict().items())
    found = figures(tuned)
    assert found["divergence"] == found["divergence before"]
    assert (found["step"], found["largest change"]) == (0, 0)


def test_layer_that_an_override_leaves_out_keeps_its_scales() -> None:
    """It is quantized all the same, and the report says so."""
    tuned = converted(attrs.evolve(QUIET, overrides={"0.first": no_quant()}))
    alone = weights(converted(GPTQ))
    kept = [path for path, each in weights(tuned).items() if torch.equal(each.scale, alone[path].scale)]
    assert kept == ["0.first.packed"]
    (line,) = (line for line in report(tuned).layers if line.path == "0.first")
    assert line.bits == 3
    assert line.reason == "codes by gptq; scales not tuned: left out by the override '0.first'"


def test_norms_are_tuned_where_that_is_asked_for() -> None:
    """Their weights move besides the scales, their biases and codes do not, and the report names them."""
    config = attrs.evolve(QUIET, norms=True, overrides={"1": no_quant()})
    alone, tuned = converted(GPTQ), converted(config)
    states = alone.state_dict(), tuned.state_dict()
    changed = {name for name, tensor in states[1].items() if not torch.equal(tensor, states[0][name])}
    assert changed == {"0.norm.weight", "0.first.packed.scale", "0.second.packed.scale"}
    assert isinstance(tuned.get_submodule("0.norm").weight, nn.Parameter)
    reasons = {line.path: line.reason for line in report(tuned).layers}
    assert "its weight is tuned" in reasons["0.norm"]
    assert "its weight is tuned" not in reasons["1.norm"]


def test_model_of_integers_is_refused() -> None:
    """Its own output is no target; the error says what to prepare instead."""
    quantized = converted(GPTQ)
    with unchanged(quantized), pytest.raises(UnsupportedError) as caught:
        prepare(quantized, QUIET)
    assert caught.value.module == "0.first"
    assert "the float model that its scales would be tuned against is gone" in str(caught.value)
    assert "prepare the float model with ScaleTuneConfig(base=GPTQConfig(…))" in str(caught.value)


def test_base_without_integers_is_refused() -> None:
    """By `convert`, which leaves the model prepared and float."""
    work = prepare(model(), attrs.evolve(QUIET, base=SmoothQuantConfig()))
    work(data())
    with unchanged(work), pytest.raises(ConfigError, match="SmoothQuantConfig leaves no scales") as caught:
        convert(work)
    assert caught.value.field == "base"


def test_base_that_tunes_scales_is_refused() -> None:
    """Once is enough."""
    with pytest.raises(ConfigError) as caught:
        ScaleTuneConfig(base=ScaleTuneConfig())
    assert caught.value.field == "base"


def test_a_single_sample_is_refused() -> None:
    """None would be left to tell what a step is worth."""
    work = prepare(model(), QUIET)
    work(data()[:1])
    with unchanged(work), pytest.raises(CalibrationError, match="at least two samples"):
        convert(work)
    work(data()[1:3])
    assert convert(work) is work


def test_base_that_needs_no_data_needs_them_here() -> None:
    """There is nothing to come near to without."""
    work = prepare(model(), attrs.evolve(QUIET, base=HQQConfig(show_progress=False)))
    with pytest.raises(CalibrationError, match="there is none"):
        convert(work)


def test_target_is_that_of_the_base() -> None:
    """It is judged by what the base makes, wherever it is said; twice it has to be the same."""
    aimed = ScaleTuneConfig(base=GPTQConfig(bits=3), target=profiles.VLLM)
    for config in (aimed, ScaleTuneConfig(base=GPTQConfig(bits=3, target=profiles.VLLM))):
        with pytest.raises(ConfigError, match="vLLM"):
            prepare(seeded(lambda: nn.Sequential(nn.Linear(128, 128))), config)
    assert profiles.VLLM.config(ScaleTuneConfig).aimed_base() == profiles.VLLM.config(GPTQConfig)
    with pytest.raises(ConfigError) as caught:
        attrs.evolve(aimed, target=profiles.LLAMA_CPP, base=GPTQConfig(target=profiles.VLLM))
    assert caught.value.field == "target"


def test_activations_on_grids_do_not_stop_derivatives() -> None:
    """Rounding counts as the identity, as in training with quantization."""
    base = PTQConfig(weight=affine(DType.uint(3)), strict_wrap=False)
    found = figures(converted(attrs.evolve(QUIET, base=base)))
    assert found["divergence"] < found["divergence before"]


def test_passes_may_end_early() -> None:
    """Only their arguments are needed: the bits are those of whole passes."""
    found = []
    for early in (False, True):
        config = attrs.evolve(QUIET, base=attrs.evolve(GPTQ, stop_after_capture=early))
        work = prepare(model(), config)
        outputs = [work(batch) for batch in torch.split(data(), 4)]
        assert [output is None for output in outputs[1:]] == [early] * 3
        found.append(weights(convert(work)))
    assert all(torch.equal(each.scale, found[1][path].scale) for path, each in found[0].items())


def test_checkpoint_is_quantized_to_the_same_bits(tmp_path: Path) -> None:
    """From folder to folder, as in memory."""
    batches = [{"input_ids": torch.arange(4 * 16).view(4, 16) % 32}]
    tiny_llama().save_pretrained(tmp_path / "float")
    quantize_checkpoint(tmp_path / "float", tmp_path / "integers", QUIET, batches)
    expected = convert(calibrate(prepare(tiny_llama(), QUIET), batches, show_progress=False))
    loaded = load_quantized(tmp_path / "integers", tiny_llama())
    assert same_tensors(tensors_of(loaded), tensors_of(expected))
    assert report(loaded) == report(expected)


def test_language_model_is_tuned() -> None:
    """One that makes a cache by itself; its blocks are run again for the derivatives."""
    tokens = torch.arange(4 * 16).view(4, 16) % 32
    work = prepare(tiny_llama(), QUIET)
    work(input_ids=tokens)
    tuned = convert(work)
    found = figures(tuned)
    assert found["divergence"] < found["divergence before"]


@pytest.mark.parametrize("rows", [1, 64, 65, 200])
def test_divergence_is_its_definition(rows: int) -> None:
    """The mean of Σ p (log p - log q) over rows, which are taken some at a time.

    Logarithms of probabilities are off by at most 2^-20 of numbers below 16.
    """
    expected, found = 2 * values(0, rows, 9), (2 * values(1, rows, 9)).requires_grad_()
    p, q = (each.double().log_softmax(-1) for each in (expected, found))
    defined = (p.exp() * (p - q)).sum() / rows
    told = mean_divergence(expected, found)
    assert float(told.detach()) == pytest.approx(float(defined.detach()), abs=2**-16)
    (slope,) = torch.autograd.grad(told, found)
    assert torch.allclose(slope.double(), (q.exp() - p.exp()).detach() / rows, rtol=0, atol=2**-20 / rows)


def test_classes_without_probability_count_nothing() -> None:
    """Logits of minus infinity in both models, as masked classes have."""
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    assert float(mean_divergence(logits, logits)) == 0.0


class Capped(nn.Module):
    """A model whose logits are not what its last linear layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = ResidualBlock(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits between -1 and 1."""
        logits: Tensor = self.head(self.block(x))
        return logits.tanh()


@pytest.mark.parametrize("masked", [False, True])
def test_teacher_runs_only_its_head_again(masked: bool) -> None:
    """With the bits of the whole pass; the rows of padding stay left out."""
    llama, tokens = tiny_llama(), torch.arange(12).view(2, 6)
    mask = {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])} if masked else {}
    call = Call(args=(tokens,), kwargs=mask)
    teacher = Teacher(TreeState.of(llama))
    first = teacher.logits(0, call)
    calls: list[object] = []
    after_call(llama.model, lambda *call: calls.append(call))
    again = teacher.logits(0, call)
    assert not calls
    assert torch.equal(again, first)
    assert len(first) == (10 if masked else 12)
    teacher.logits(1, call)
    assert len(calls) == 1


def test_teacher_runs_all_of_a_model_that_changes_what_the_head_gives() -> None:
    """Its second pass gives the same again."""
    capped = seeded(Capped)
    call, calls = Call(args=(data(),), kwargs={}), list[object]()
    teacher = Teacher(TreeState.of(capped))
    first = teacher.logits(0, call)
    after_call(capped.block, lambda *call: calls.append(call))
    assert torch.equal(teacher.logits(0, call), first)
    assert torch.equal(first, capped(data()).flatten(0, -2))
    assert calls
