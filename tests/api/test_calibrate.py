"""calibrate runs samples one by one, without their padding, for as long as there is something to learn."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs
import pytest
import torch
import transformers
from torch import Tensor, nn

from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    PT2EConfig,
    PTQConfig,
    SmoothQuantConfig,
    calibrate,
    convert,
    prepare,
)
from tico.quantization.config import DType, HistogramSpec, PerToken, affine
from tico_config import BaseConfig, CalibrationError, ConfigError, LifecycleError
from tico_quantizers.calibration import micro_batches
from tico_quantizers.testing import same_tensors, tensors_of, values
from tiny_models import tiny_llama

LENGTHS: Final = (12, 7, 9, 1, 12)
CONFIGS: Final[Mapping[str, BaseConfig]] = {
    "GPTQ": GPTQConfig(bits=4, show_progress=False),
    "GPTQ, early end in the config": GPTQConfig(bits=4, stop_after_capture=True, show_progress=False),
    "AWQ": AWQConfig(group_size=8),
    "SmoothQuant": SmoothQuantConfig(alpha="auto"),
    "PTQ": PTQConfig(),
    "PTQ, histograms": PTQConfig(activation=affine(DType.int(8), observer=HistogramSpec())),
    "PTQ, tokens": PTQConfig(activation=affine(DType.int(8), granularity=PerToken())),
}


def samples() -> list[Tensor]:
    """Return rows of tokens of several lengths."""
    return [torch.arange(length) * (5 + number) % 37 + 3 for number, length in enumerate(LENGTHS)]


def padded(rows: Sequence[Tensor], side: str) -> dict[str, Tensor]:
    """Return rows as a batch, with zeros on one side of the shorter ones."""
    width = max(map(len, rows)) + 2
    ids, mask = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[number, place], mask[number, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


BATCHES: Final[Mapping[str, Callable[[], list[Mapping[str, Tensor]]]]] = {
    "padded left": lambda: [padded(samples(), "left")],
    "padded right": lambda: [padded(samples(), "right")],
    "in two batches": lambda: [padded(samples()[:2], "left"), padded(samples()[2:], "right")],
    "of a tokenizer": lambda: [transformers.BatchEncoding(dict(padded(samples(), "left")))],
}


def quantized(config: BaseConfig, batches: Sequence[Mapping[str, Tensor]]) -> nn.Module:
    """Return a LLaMA that was calibrated with `batches`."""
    example = {"input_ids": samples()[0][None], "use_cache": False}
    return convert(calibrate(prepare(tiny_llama(), config, kwargs=example), batches))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_padding_and_batches_change_no_bit(config: BaseConfig) -> None:
    """Rows padded on either side, in any batches, give what a loop over the bare rows gives."""
    example = {"input_ids": samples()[0][None], "use_cache": False}
    model = prepare(tiny_llama(), config, kwargs=example)
    with torch.no_grad():
        for row in samples():
            model(row[None])
    wanted = tensors_of(convert(model))
    for name, batches in BATCHES.items():
        assert same_tensors(tensors_of(quantized(config, batches())), wanted), name


def test_graphs_are_calibrated_sample_by_sample() -> None:
    """A model that PT2E has made a graph of for one sample takes batches of several."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    rows = values(1, 5, 4)
    converted = [
        convert(calibrate(prepare(model, PT2EConfig(), args=(rows[:1],), inplace=False), batches))
        for batches in ([rows], [(rows[:2],), [rows[2:]]], [row[None] for row in rows])
    ]
    for other in converted[1:]:
        assert same_tensors(tensors_of(other), tensors_of(converted[0]))


class Counting(nn.Module):
    """A layer that counts its calls, and may fail at one of them."""

    def __init__(self, fails_at: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.calls, self.fails_at = 0, fails_at

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer gives."""
        self.calls += 1
        if self.calls == self.fails_at:
            raise ValueError("the data are odd")
        found: Tensor = x + self.layer(x)
        return found


class Stack(nn.Module):
    """Three blocks, of which the first may fail."""

    def __init__(self, fails_at: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Counting(fails_at), Counting(), Counting()])

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last block gives."""
        for block in self.blocks:
            x = block(x)
        return x


def stack(fails_at: int = 0) -> Stack:
    """Return a stack, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Stack(fails_at).eval()


def test_passes_end_where_nothing_more_is_learned() -> None:
    """The first pass shows that all blocks follow from what the first is given; later ones run none."""
    rows = values(2, 4, 3, 4)
    model = prepare(stack(), GPTQConfig(show_progress=False))
    calibrate(model, [rows])
    assert [block.calls for block in model.get_submodule("blocks").children()] == [1, 1, 1]
    own = prepare(stack(), GPTQConfig(show_progress=False))
    for row in rows:
        own(row[None])
    assert same_tensors(tensors_of(convert(model)), tensors_of(convert(own)))


def test_the_model_answers_again_afterwards() -> None:
    """Early ends are over when calibrate is, also where a batch fails."""
    model, rows = prepare(stack(fails_at=1), GPTQConfig(show_progress=False)), values(3, 4, 3, 4)
    with pytest.raises(ValueError, match="the data are odd"):
        calibrate(model, [rows])
    assert isinstance(model(rows), Tensor)
    assert "forward" not in vars(model)
    calibrate(model, [rows])
    assert isinstance(model(rows), Tensor)


def test_gradients_and_modes_are_as_they_were() -> None:
    """Calibration records no graph, and leaves the mode of gradients alone."""
    model, seen = prepare(stack(), PTQConfig()), []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    calibrate(model, [values(4, 2, 3, 4)])
    handle.remove()
    assert seen == [False, False]
    assert torch.is_grad_enabled()


class Averaged(nn.Module):
    """A model that is given padding, and no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, size: Tensor) -> Tensor:
        """Return the sum over tokens, divided by their number."""
        found: Tensor = self.layer(x).sum(1) / size[:, None]
        return found


def test_a_function_says_what_a_model_is_not_told() -> None:
    """Padding that only the caller knows counts nothing."""
    x, sizes = values(5, 3, 6, 4), torch.tensor([6, 2, 4])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: nn.Module = Averaged().eval()
    own = prepare(model, PTQConfig(), inplace=False)
    for row, size in zip(x, sizes, strict=True):
        own(row[None, : int(size)], size[None])
    model = prepare(model, PTQConfig())
    calibrate(model, [(x, sizes)], mask=lambda batch: torch.arange(6) < batch[1][:, None])
    assert same_tensors(tensors_of(convert(model)), tensors_of(convert(own)))


def parts(
    batch: Mapping[str, object], size: int | None = 1, mask: str | None = None
) -> list[Mapping[str, object]]:
    """Return the arguments that calls are made with."""
    return [inputs for _, inputs in micro_batches(batch, size, mask)]


def shapes(found: Sequence[Mapping[str, object]]) -> list[dict[str, tuple[int, ...]]]:
    """Return the shapes of all tensors."""
    return [{key: tuple(x.shape) for key, x in each.items() if isinstance(x, Tensor)} for each in found]


def test_a_decoder_has_padding_of_its_own() -> None:
    """Each mask cuts the tensors with its prefix, also where both sides have the same length."""
    both = padded(samples()[:2], "right") | {
        f"decoder_{key}": x for key, x in padded(samples()[1::-1], "left").items()
    }
    one, two = shapes(parts(both))
    assert one == {
        "input_ids": (1, 12),
        "attention_mask": (1, 12),
        "decoder_input_ids": (1, 7),
        "decoder_attention_mask": (1, 7),
    }
    assert [shape[1] for shape in two.values()] == [7, 7, 12, 12]


def test_calls_share_what_padding_they_have() -> None:
    """Of several samples a call, only what is padding in all of them is cut."""
    assert shapes(parts(padded(samples(), "left"), 2)) == [
        {"input_ids": (2, 12), "attention_mask": (2, 12)},
        {"input_ids": (2, 9), "attention_mask": (2, 9)},
        {"input_ids": (1, 12), "attention_mask": (1, 12)},
    ]


def test_samples_of_padding_alone_are_left_out() -> None:
    """There is nothing to learn from them."""
    batch = padded(samples()[:2], "left")
    batch["attention_mask"][0] = 0
    assert shapes(parts(batch)) == [{"input_ids": (1, 7), "attention_mask": (1, 7)}]


@pytest.mark.parametrize(
    "more",
    [
        {"labels": torch.zeros(5, 14)},
        {"positions": torch.zeros(5, 3, 14)},
        {"cache_position": torch.arange(14)},
        {"features": torch.zeros(5, 14, 6)},
    ],
    ids=["labels", "tokens on a later axis", "tokens on the first", "perhaps features of tokens"],
)
def test_nothing_is_cut_where_the_tokens_are_not_known_for_sure(more: Mapping[str, Tensor]) -> None:
    """What might no longer fit together stays whole; the mask still says what is padding."""
    found = shapes(parts(padded(samples(), "left") | dict(more)))
    assert {shape["input_ids"][1] for shape in found} == {14}


@pytest.mark.parametrize(
    "more",
    [{"grid": torch.zeros(3, 2)}, {"cache": [torch.zeros(5, 2)]}],
    ids=["other numbers of rows", "tensors in other objects"],
)
def test_batches_that_cannot_be_taken_apart_are_one_call(more: Mapping[str, object]) -> None:
    """As with images of which a sample has any number."""
    assert len(parts(padded(samples(), "left") | dict(more))) == 1


def test_a_mask_may_have_another_name() -> None:
    """The name of an entry says which tokens are real, and the entry is passed on."""
    batch = padded(samples()[:2], "left")
    batch["real"] = batch.pop("attention_mask")
    assert [shape["input_ids"] for shape in shapes(parts(batch, mask="real"))] == [(1, 12), (1, 7)]


def between(batch: object) -> Tensor:
    """Return a mask with padding between tokens."""
    return torch.tensor([[1, 0, 1], [1, 1, 1]])


WRONG: Final[Mapping[str, tuple[list[object], dict[str, object], type[Exception], str]]] = {
    "text": (["text"], {}, CalibrationError, "batches must be a tensor, .* got 'text'"),
    "number": ([3], {}, CalibrationError, "batches must be a tensor, .* got 3"),
    "nothing": ([], {}, CalibrationError, "batches must be at least one batch with a real token, got none"),
    "no samples a call": ([], {"micro_batch": 0}, ConfigError, "micro_batch must be .* got 0"),
    "true": ([], {"micro_batch": True}, ConfigError, "micro_batch must be .* got True"),
    "no such entry": (
        [{"input_ids": torch.ones(1, 2)}],
        {"mask": "real"},
        CalibrationError,
        "batches with a tensor 'real', got a batch of input_ids",
    ),
    "no mask": ([values(1, 2, 4)], {"mask": len}, CalibrationError, "mask must be a tensor .* got 2"),
    "a flat mask": (
        [values(1, 2, 4)],
        {"mask": lambda batch: torch.ones(2)},
        CalibrationError,
        r"a tensor \(2,\)",
    ),
    "between": ([values(1, 2, 3, 4)], {"mask": between}, CalibrationError, "padding which cannot be cut"),
    "between, by a name": (
        [{"x": values(1, 2, 3, 4), "real": between(None)}],
        {"mask": "real"},
        CalibrationError,
        "padding which cannot be cut",
    ),
    "of other tokens": (
        [values(1, 2, 5, 4)],
        {"mask": lambda batch: torch.tensor([[1, 1, 0], [1, 1, 1]])},
        CalibrationError,
        "padding which cannot be cut",
    ),
    "on another axis": (
        [values(1, 2, 4, 3)],
        {"mask": lambda batch: torch.tensor([[1, 1, 0], [1, 1, 1]])},
        CalibrationError,
        "padding which cannot be cut",
    ),
}


@pytest.mark.parametrize(("batches", "options", "error", "text"), WRONG.values(), ids=WRONG)
def test_wrong_data_are_refused(
    batches: list[object], options: dict[str, object], error: type[Exception], text: str
) -> None:
    """One sentence says what was expected."""
    model = prepare(stack(), GPTQConfig(show_progress=False))
    with pytest.raises(error, match=text):
        calibrate(model, batches, **options)  # type: ignore[arg-type]  # that is what is tested


def test_a_model_that_is_not_prepared_is_refused() -> None:
    """As convert does."""
    with pytest.raises(LifecycleError, match="not prepared"):
        calibrate(stack(), [values(1, 2, 4)])


def test_other_mappings_are_batches() -> None:
    """Any mapping gives arguments by name."""
    model = prepare(stack(), attrs.evolve(GPTQConfig(), show_progress=False))
    calibrate(model, [UserDict(x=values(1, 2, 4))])
