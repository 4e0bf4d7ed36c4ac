"""How GPTQ runs a model again: order, formats, where activations are kept, and when passes end."""

from __future__ import annotations

import copy
import gc
import inspect
import tempfile
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from gptq_models import Block, block_of, integer_at, quantized, require_same_codes, stack
from tico.quantization import GPTQConfig, convert, prepare
from tico_config import CalibrationError, ConfigError, MinMaxSpec
from tico_quantizers.calibration import _activation_store as activation_store
from tico_quantizers.calibration import after_call
from tico_quantizers.solvers._gptq import solve
from tico_quantizers.testing import refused, same_tensors, state_of, tensors_of
from tiny_models import TOKENS, tiny_llama, values


def config(**fields: object) -> GPTQConfig:
    """Return a config without a progress bar."""
    return GPTQConfig(show_progress=False, **fields)  # type: ignore[arg-type]


def bits_of(model: nn.Module, *batches: Tensor, **fields: object) -> dict[str, Tensor]:
    """Return the tensors that GPTQ leaves."""
    return tensors_of(quantized(model, *batches, config=config(**fields)))


@pytest.fixture
def everything_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let no tensor be too small for a file, and temporary files be in the folder that is returned."""
    monkeypatch.setattr(activation_store, "_SMALLEST", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_activations_on_disk_give_the_same_bits(everything_is_kept: Path) -> None:
    """In a file that has no name, neither while data are gathered nor afterwards."""
    expected = bits_of(tiny_llama(), TOKENS, TOKENS.flip(1))
    model = prepare(tiny_llama(), config(offload="disk"))
    for batch in (TOKENS, TOKENS.flip(1)):
        model(batch)
        assert not list(everything_is_kept.iterdir())
    files = open_files(everything_is_kept)
    assert files
    other = copy.deepcopy(model)
    other(TOKENS)
    assert same_tensors(tensors_of(convert(model)), expected)
    assert open_files(everything_is_kept) - files  # the copy goes on in a file of its own
    del model, other
    gc.collect()
    assert not open_files(everything_is_kept)


def open_files(folder: Path) -> set[str]:
    """Return the descriptors of this process's open files in `folder`, whether they have a name or not."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("only Linux tells which files are open")
    found = set()
    for link in descriptors.iterdir():
        try:
            if str(link.readlink()).startswith(str(folder)):
                found.add(link.name)
        except FileNotFoundError:  # that of the listing itself
            continue
    return found


@pytest.mark.usefixtures("everything_is_kept")
@pytest.mark.parametrize("offload", [None, "disk"])
def test_activations_in_bfloat16_are_hidden_states_only(offload: str | None) -> None:
    """What other arguments of blocks hold, such as masks and positions, keeps every bit."""
    model = prepare(tiny_llama(), config(activation_dtype="bfloat16", offload=offload))
    seen: list[tuple[Tensor, Tensor]] = []

    def note(block: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, tuple[Tensor, ...]]) -> None:
        seen.append((args[0].clone(), kwargs["position_embeddings"][0].clone()))

    for block in ("model.layers.0", "model.layers.1"):
        model.get_submodule(block).register_forward_pre_hook(note, with_kwargs=True)
    model(TOKENS)
    (first, positions), _ = seen
    seen.clear()
    convert(model)
    again, repeated = seen[0]
    assert torch.equal(again, first.bfloat16().float())
    assert torch.equal(repeated, positions)
    assert all(torch.equal(hidden, hidden.bfloat16().float()) for hidden, _ in seen)


def test_later_layers_of_a_block_see_the_quantized_earlier_ones() -> None:
    """In the true sequential order each layer is solved for what the integers before it give."""
    model, x = stack(2), values(1, 40, 8)
    found = quantized(model, x, config=config(bits=2, true_sequential=True))
    with torch.no_grad():
        hidden = integer_at(found, "0.one")(x).relu().double()
    expected = solve(block_of(model, "0").two.weight, hidden.T @ hidden, GPTQConfig(bits=2))
    require_same_codes(integer_at(found, "0.two").packed.integer_codes(), expected.codes)
    plain = quantized(model, x, config=config(bits=2))
    assert torch.equal(integer_at(plain, "0.one").packed.codes, integer_at(found, "0.one").packed.codes)
    assert not torch.equal(integer_at(plain, "0.two").packed.codes, integer_at(found, "0.two").packed.codes)


def test_layers_may_make_up_for_the_errors_of_earlier_ones() -> None:
    """Each layer is then solved for what it reads beside what the float model has in its place."""
    model, x = stack(), values(1, 40, 8)
    options = config(bits=2, observer=MinMaxSpec(), token_weights="uniform")
    found = quantized(model, x, config=attrs.evolve(options, asymmetric=0.25))
    true, hidden = x, x
    for path in ("0", "1"):
        weight = block_of(model, path).one.weight
        drift, rows = (true - hidden).double(), hidden.double()
        expected = solve(weight, rows.T @ rows, options, cross_gram=0.25 * drift.T @ rows)
        require_same_codes(integer_at(found, f"{path}.one").packed.integer_codes(), expected.codes)
        with torch.no_grad():
            true, hidden = block_of(model, path)(true), block_of(found, path)(hidden)
    plain = quantized(model, x, config=options)
    assert torch.equal(integer_at(plain, "0.one").packed.codes, integer_at(found, "0.one").packed.codes)
    assert not torch.equal(integer_at(plain, "1.one").packed.codes, integer_at(found, "1.one").packed.codes)


@pytest.mark.parametrize("fields", [{}, {"token_weights": "uniform"}])
def test_asymmetric_calibration_of_a_llama(fields: dict[str, object], tmp_path: Path) -> None:
    """It gives other codes than plain GPTQ, finite ones, and the same again from finished blocks."""
    plain, found = (bits_of(tiny_llama(), TOKENS, asymmetric=share, **fields) for share in (0.0, 0.5))
    assert not same_tensors(plain, found)
    for _ in range(2):
        again = bits_of(tiny_llama(), TOKENS, asymmetric=0.5, checkpoint_dir=str(tmp_path), **fields)
        assert same_tensors(again, found)


def test_asymmetric_calibration_has_one_order() -> None:
    """Not the true sequential one, in which the float layers of a block are gone when they are needed."""
    with refused(None, ConfigError, field="asymmetric"):
        config(asymmetric=0.25, true_sequential=True)


def test_passes_in_bfloat16_compute_in_it() -> None:
    """Layers then give bfloat16 where torch casts, also where the user's passes were in float32."""
    model = prepare(stack(2), config(forward_dtype="bfloat16"))
    seen: list[torch.dtype] = []
    handle = after_call(block_of(model, "1").two, lambda _, __, output: _note_dtype(seen, output))
    model(values(2, 30, 8))
    assert seen.pop() == torch.float32
    found = convert(model)
    handle.remove()
    assert set(seen[1:]) == {torch.bfloat16}
    assert found(values(2, 30, 8)).dtype == torch.float32


def _note_dtype(seen: list[torch.dtype], output: object) -> None:
    assert isinstance(output, Tensor)
    seen.append(output.dtype)


@pytest.mark.parametrize("use", ["passes", "generate"])
def test_passes_that_end_early_give_the_same_bits(use: str) -> None:
    """From the second pass on; `generate` works as ever, and its passes count in full."""
    found = []
    for early in (False, True):
        model = prepare(tiny_llama(), config(stop_after_capture=early))
        outputs = [model(TOKENS)]
        if use == "generate":
            assert isinstance(model, LlamaForCausalLM)
            tokens: object = model.generate(TOKENS, max_new_tokens=3, do_sample=False, pad_token_id=0)  # type: ignore[misc]
            assert isinstance(tokens, Tensor)
            assert tokens.shape == (2, 15)
        outputs.append(model(TOKENS.flip(1)))
        assert outputs[0].logits.shape == (2, 12, 40)
        assert (outputs[1] is None) == early
        found.append(tensors_of(convert(model)))
        assert model(TOKENS).logits.shape == (2, 12, 40)
    assert same_tensors(*found)


def test_passes_end_where_nothing_more_is_to_be_learned() -> None:
    """At the first block where it tells what all others get; layers behind the blocks still get theirs."""
    calls: list[str] = []
    model = prepare(nn.Sequential(Block(), Block()).eval(), config(stop_after_capture=True))
    for path in ("0.one", "1.one"):
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.append(path))
    for seed in range(2):
        model(values(seed, 20, 8))
    assert calls == ["0.one", "1.one"]
    behind = prepare(stack(), config(stop_after_capture=True))
    results = [behind(values(seed, 20, 8)) for seed in range(2)]
    assert [result is None for result in results] == [False, True]
    expected = bits_of(stack(), values(0, 20, 8), values(1, 20, 8))
    assert same_tensors(tensors_of(convert(behind)), expected)


class Masked(nn.Module):
    """Blocks of which each gets a mask of its own, or all the same, or from the second batch on none."""

    def __init__(self, style: str) -> None:
        """Make the parts."""
        super().__init__()
        self.blocks, self.style, self.calls = nn.Sequential(Block(), Block(), Block()), style, 0
        for block in self.blocks:
            block.register_forward_pre_hook(self._mask, with_kwargs=True)

    @staticmethod
    def _mask(
        block: nn.Module, args: tuple[Tensor], kwargs: dict[str, Tensor | None]
    ) -> tuple[tuple[Tensor], dict[str, Tensor | None]]:
        mask = kwargs.pop("mask")
        return (args[0] if mask is None else args[0] * mask,), kwargs

    def forward(self, x: Tensor) -> Tensor:
        """Return the last hidden state."""
        self.calls += 1
        mask = (x > 0).float()
        for number, block in enumerate(self.blocks):
            own = mask * number if self.style == "own" else mask
            x = block(x, mask=None if self.style == "at first" and self.calls > 1 else own)
        return x


@pytest.mark.parametrize("style", ["own", "shared", "at first"])
def test_what_blocks_get_besides_hidden_states_decides_where_passes_end(style: str) -> None:
    """The codes are those of whole passes, whether the first block's arguments tell the others' or not."""
    found = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Masked(style).eval()
    for early in (False, True):
        model = prepare(made, config(stop_after_capture=early), inplace=False)
        ended = [model(values(seed, 20, 8)) is None for seed in range(3)]
        assert ended == ([False, True, True] if early else [False] * 3)
        found.append(tensors_of(convert(model)))
    assert same_tensors(*found)


def test_ending_early_leaves_nothing_behind() -> None:
    """Neither a refused `prepare`, nor a failed `convert`, nor a good one; a copy has its own."""
    model = tiny_llama()
    signature = inspect.signature(model.forward)
    with refused(model, ConfigError, field="group_size", module="model.layers.0.self_attn.q_proj"):
        prepare(model, config(stop_after_capture=True, group_size=7))
    prepared = prepare(model, config(stop_after_capture=True))
    assert inspect.signature(prepared.forward) == signature
    with refused(prepared, CalibrationError, module="model.layers.0.self_attn.q_proj"):
        convert(prepared)
    other = copy.deepcopy(prepared)
    other(TOKENS)
    assert other(TOKENS) is None
    assert prepared(TOKENS) is not None  # its own first pass
    done = convert(prepared)
    assert not {"forward", "generate"} & vars(done).keys()
    assert done(TOKENS) is not None
    assert other(TOKENS) is None


def test_a_hook_of_the_users_that_raises_is_not_taken_for_the_end() -> None:
    """The error arrives, the pass does not count, and the next one does."""
    model = prepare(stack(), config(stop_after_capture=True))
    model(values(1, 20, 8))
    before = state_of(model)
    handle = model.get_submodule("0.two").register_forward_hook(_fail)
    with pytest.raises(KeyboardInterrupt):
        model(values(2, 20, 8))
    handle.remove()
    assert state_of(model) == before
    model(values(3, 20, 8))
    expected = bits_of(stack(), values(1, 20, 8), values(3, 20, 8))
    assert same_tensors(tensors_of(convert(model)), expected)


def _fail(*call: object) -> None:
    raise KeyboardInterrupt
