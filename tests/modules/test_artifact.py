"""Quantized models on disk: the same bits after loading, and nothing half done before or after."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import Tensor, nn
from transformers import Mamba2Config, Mamba2ForCausalLM

from artifact_folder import MANIFEST, contents, rewrite_with, shards, stored_tensors
from model_families import llava
from references import same_bits
from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico_config import ArtifactError, DType, UnsupportedError
from tico_modules import PackedWeight
from tico_observers import read_sealed, seal
from tico_quantizers import (
    QuantizedConv2d,
    QuantizedLinear,
    Run,
    load_quantized,
    model_fingerprint,
    report,
    runs_of,
    save_quantized,
)
from tico_quantizers.testing import refused, same_tensors, tensors_of
from tiny_models import TOKENS, Net, images, logits, net, tiny_llama, values

GPTQ = GPTQConfig(show_progress=False)
PTQ = PTQConfig(strict_wrap=False)
UINT4 = DType.uint(4)


def converted_net() -> nn.Module:
    """Return a net with integer layers and a batch norm in floating point."""
    model = prepare(net(), GPTQ)
    model(images(1))
    return convert(model)


def converted_llama(*configs: GPTQConfig | PTQConfig, tied: bool = False) -> nn.Module:
    """Return a LLaMA that one algorithm after the other has converted."""
    model: nn.Module = tiny_llama(tied=tied)
    for config in configs:
        prepare(model, config)
        logits(model)
        convert(model)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return a folder with a converted net."""
    save_quantized(converted_net(), tmp_path)
    return tmp_path


@pytest.mark.parametrize("configs", [(GPTQ,), (PTQ,), (GPTQ, PTQ)], ids=["GPTQ", "PTQ", "GPTQ, PTQ"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_comes_back_bit_for_bit(
    configs: tuple[GPTQConfig | PTQConfig, ...], tied: bool, tmp_path: Path
) -> None:
    """From the folder alone: every tensor, the outputs, the attention and the report."""
    model = converted_llama(*configs, tied=tied)
    save_quantized(model, tmp_path)
    loaded = load_quantized(tmp_path)
    assert same_tensors(tensors_of(loaded), tensors_of(model))
    assert same_bits(logits(loaded), logits(model))
    assert report(loaded) == report(model)
    assert not any(module.training for module in loaded.modules())


def test_a_fresh_process_gives_the_same_bits(tmp_path: Path) -> None:
    """Nothing that the process knew is missing from the file."""
    model = converted_llama(GPTQ)
    save_quantized(model, tmp_path)
    program = (
        "import sys, torch; from tico_quantizers import load_quantized; from pathlib import Path;"
        "model = load_quantized(sys.argv[1]); tokens = torch.arange(24).view(2, 12) * 7 % 40;"
        "torch.set_num_threads(int(sys.argv[2]));"
        "torch.save(model(tokens).logits.detach(), Path(sys.argv[1]) / 'logits.pt')"
    )
    threads = str(torch.get_num_threads())
    subprocess.run([sys.executable, "-c", program, str(tmp_path), threads], check=True)
    assert same_bits(torch.load(tmp_path / "logits.pt", weights_only=True), logits(model).detach())


def test_the_attention_of_the_model_comes_back(tmp_path: Path) -> None:
    """The config of transformers does not say it; the file does."""
    model = converted_llama(GPTQ)
    set_attention: Callable[[str], object] = model.set_attn_implementation  # type: ignore[assignment]
    set_attention("eager")
    save_quantized(model, tmp_path)
    assert load_quantized(tmp_path).config._attn_implementation == "eager"  # type: ignore[union-attr]


def test_parts_with_attentions_of_their_own_keep_them(tmp_path: Path) -> None:
    """The tower may be eager where the language model is not; neither is asked for the other's."""
    model, batches = llava()
    set_attention: Callable[[object], object] = model.set_attn_implementation  # type: ignore[assignment]
    set_attention({"text_config": "eager", "vision_config": "sdpa"})
    prepare(model, GPTQ)
    for batch in batches:
        model(**batch)
    save_quantized(convert(model), tmp_path)
    loaded = load_quantized(tmp_path).config
    assert loaded.text_config._attn_implementation == "eager"  # type: ignore[union-attr]
    assert loaded.vision_config._attn_implementation == "sdpa"  # type: ignore[union-attr]


def test_config_with_infinity_comes_back(tmp_path: Path) -> None:
    """JSON has no infinity: transformers writes it as a word, which only its own reader knows."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 8, "state_size": 4}
    config = Mamba2Config.from_dict({"vocab_size": 40, "n_groups": 1, **sizes})
    assert math.inf in config.time_step_limit
    model: nn.Module = Mamba2ForCausalLM(config)
    prepare(model.eval(), GPTQ)
    model(TOKENS)
    save_quantized(convert(model), tmp_path)
    assert same_bits(logits(load_quantized(tmp_path)), logits(model))


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    """One parameter stays one parameter, and one packed weight one, on the disk and after loading."""
    model = converted_llama(GPTQ, tied=True)
    save_quantized(model, tmp_path)
    assert "lm_head.weight" not in stored_tensors(tmp_path)
    loaded = load_quantized(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight  # type: ignore[union-attr]
    shared = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    shared[0] = shared[1] = QuantizedLinear.from_float(nn.Linear(4, 4), UINT4)
    save_quantized(shared, tmp_path)
    block = nn.Linear(4, 4)
    again = load_quantized(tmp_path, nn.Sequential(block, block))
    assert isinstance(again, nn.Sequential)
    assert again[0] is again[1]


def test_packed_weights_that_modules_share_stay_shared(tmp_path: Path) -> None:
    """Casting or moving the model does not split them."""
    one = QuantizedLinear.from_float(nn.Linear(4, 4), UINT4)
    two = one.with_parts(one.parts)
    save_quantized(nn.Sequential(one, two), tmp_path)
    again = load_quantized(tmp_path, nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    assert isinstance(again, nn.Sequential)
    assert again[0].packed is again[1].packed


def test_a_model_of_your_own_comes_back(saved: Path) -> None:
    """Into a float model of the same architecture, whose own values do not matter."""
    model = converted_net()
    skeleton = Net()
    loaded = load_quantized(saved, skeleton)
    assert loaded is skeleton
    assert same_tensors(tensors_of(loaded), tensors_of(model))
    assert same_bits(loaded(images(2)), model(images(2)))
    assert isinstance(loaded.get_submodule("conv"), QuantizedConv2d)


def test_buffers_that_no_state_dict_holds_come_back(tmp_path: Path) -> None:
    """They are part of the function all the same."""
    model, skeleton = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    for each, value in ((model, 3.0), (skeleton, 0.0)):
        each.register_buffer("table", torch.full((2,), value), persistent=False)
    model[0] = QuantizedLinear.from_float(nn.Linear(4, 4), UINT4)
    save_quantized(model, tmp_path)
    loaded = load_quantized(tmp_path, skeleton)
    assert dict(loaded.named_buffers())["table"].tolist() == [3.0, 3.0]
    assert "table" not in loaded.state_dict()


def test_a_lone_layer_comes_back(tmp_path: Path) -> None:
    """The root itself is replaced, and the replacement returned."""
    layer = QuantizedLinear.from_float(nn.Linear(4, 3), UINT4)
    save_quantized(layer, tmp_path)
    loaded = load_quantized(tmp_path, nn.Linear(4, 3))
    assert same_tensors(tensors_of(loaded), tensors_of(layer))


def _renamed() -> nn.Module:
    model = net()
    model.other = model.head
    del model.head
    return model


def _wider() -> nn.Module:
    model = net()
    model.head[2] = nn.Linear(8, 5)
    return model


def _other_norm() -> nn.Module:
    model = net()
    model.norm = nn.BatchNorm2d(3, affine=False)
    return model


def _with_more() -> nn.Module:
    model = net()
    model.more = nn.LayerNorm(3)
    return model


WRONG: dict[str, Callable[[], nn.Module]] = {
    "a missing module": _renamed,
    "a layer of another width": _wider,
    "a norm without weights": _other_norm,
    "one more module": _with_more,
    "one that is quantized": converted_net,
    "another architecture": tiny_llama,
}


@pytest.mark.parametrize("case", WRONG)
def test_a_model_that_does_not_fit_is_refused(case: str, saved: Path) -> None:
    """It is left exactly as it was."""
    model = WRONG[case]()
    expected = {
        "a missing module": ("model", "head.0"),
        "a layer of another width": ("weight", f"{saved / MANIFEST}.modules.head.2.layout"),
        "a norm without weights": ("norm.bias", str(saved / MANIFEST)),
        "one more module": ("more.bias", str(saved / MANIFEST)),
        "one that is quantized": ("model", "conv"),
        "another architecture": ("model", "conv"),
    }
    field, module = expected[case]
    with refused(model, ArtifactError, field=field, module=module) as caught:
        load_quantized(saved, model)
    assert caught.value.expected


def test_without_a_model_the_file_must_have_a_config(saved: Path) -> None:
    """The error says what to pass."""
    with refused(None, ArtifactError, field="model", module=str(saved / MANIFEST)) as caught:
        load_quantized(saved)
    assert "load_quantized(directory, model)" in str(caught.value)


def test_a_float_model_is_not_saved(tmp_path: Path) -> None:
    """There is nothing quantized about it."""
    with refused(net(), UnsupportedError, field="model") as caught:
        save_quantized(net(), tmp_path / "new")
    assert caught.value.expected == "a model with integer modules"
    assert not (tmp_path / "new").exists()


def test_saving_changes_nothing_until_it_is_done(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails leaves the old file and nothing else."""
    before = contents(saved)

    def fail(*call: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_quantized(converted_net(), saved)
    assert contents(saved) == before


def test_the_same_model_gives_the_same_files(tmp_path: Path) -> None:
    """Byte for byte, also after it was loaded."""
    save_quantized(converted_llama(GPTQ), tmp_path / "one")
    save_quantized(load_quantized(tmp_path / "one"), tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_other_formats_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    """Float parts keep their format, grids are float32."""
    model = converted_llama(PTQ).to(dtype)
    save_quantized(model, tmp_path)
    loaded = load_quantized(tmp_path)
    assert same_bits(_logits(loaded), _logits(model))


def _logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return logits(model, TOKENS)


class _Words:
    """A tokenizer that writes one file."""

    def save_pretrained(self, save_directory: str) -> None:
        """Write it."""
        (Path(save_directory) / "tokenizer.json").write_text("words")


def test_a_tokenizer_is_written_beside(tmp_path: Path) -> None:
    """The one that is passed, or else the one in the folder that the model was loaded from."""
    origin, first, second = (tmp_path / name for name in ("origin", "first", "second"))
    origin.mkdir()
    (origin / "tokenizer.json").write_text("of the origin")
    model = converted_llama(GPTQ)
    model.name_or_path = str(origin)  # type: ignore[assignment]
    save_quantized(model, first)
    save_quantized(model, second, tokenizer=_Words())
    assert (first / "tokenizer.json").read_text() == "of the origin"
    assert (second / "tokenizer.json").read_text() == "words"


def test_how_the_model_generates_comes_back(tmp_path: Path) -> None:
    """The generation config is a part of the model that transformers keeps in a file of its own."""
    model = converted_llama(GPTQ)
    model.generation_config.max_new_tokens = 3  # type: ignore[union-attr]
    save_quantized(model, tmp_path)
    loaded = load_quantized(tmp_path)
    generate: Callable[[Tensor], Tensor] = loaded.generate  # type: ignore[assignment]
    assert generate(TOKENS[:1]).shape[1] == TOKENS.shape[1] + 3
    assert (tmp_path / "generation_config.json").exists()


def test_data_and_model_are_known_by_their_fingerprints() -> None:
    """Whatever the order of the calls; another value gives another one."""

    def run_on(*batches: Tensor) -> Run:
        model = prepare(net(), GPTQ)
        for batch in batches:
            model(batch)
        return runs_of(convert(model).get_submodule("conv"))[0]

    one, other = images(1), images(2)
    assert run_on(one, other).data == run_on(other, one).data != run_on(one).data
    changed = net()
    next(changed.parameters()).data[0] += 1
    assert run_on(one).model == model_fingerprint(net()) != model_fingerprint(changed)
    assert run_on(one, other).calls == 2


READERS = [
    (bits, signed, size) for bits in (2, 3, 4, 7, 8, 12, 16) for signed in (False, True) for size in (None, 8)
]


@pytest.mark.parametrize(("bits", "signed", "size"), READERS)
def test_numpy_reads_codes_by_what_the_folder_says(
    bits: int, signed: bool, size: int | None, tmp_path: Path
) -> None:
    """The lines in the file, run on its fields and tensors, give the weight without this library."""
    rounded = PackedWeight.round_to_nearest(
        values(0, 5, 19), DType(bits, signed), symmetric=signed, group_size=size
    )
    layer = QuantizedLinear.from_float(nn.Linear(19, 5), DType(bits, signed))
    save_quantized(nn.Sequential(layer.with_parts(attrs.evolve(layer.parts, packed=rounded))), tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())["manifest"]
    (file,) = shards(tmp_path)
    arrays = {name.removeprefix("0.packed."): array for name, array in load_file(file).items()}
    names = {"np": np} | manifest["modules"]["0"]["layout"]["packed"] | arrays
    names |= {name: arrays.get(name) for name in ("group_index", "offset")}
    exec("\n".join(manifest["packing"]["numpy"]), names)  # noqa: S102  # this is what the file is for
    read = torch.from_numpy(names["weight"]).to(torch.float32)
    assert torch.equal(read.reshape(5, 19), rounded.dequantize())


def test_shards_and_index_are_what_tools_of_safetensors_ask_for(saved: Path) -> None:
    """The framework in the header, and the file of every tensor in one index."""
    (file,) = shards(saved)
    with safe_open(file, framework="pt") as reader:
        assert reader.metadata()["format"] == "pt"
        names = set(reader.keys())
    (path,) = saved.glob("*.index.json")
    assert json.loads(path.read_text())["weight_map"] == dict.fromkeys(names, file.name)


def test_folder_of_the_release_before_is_read(saved: Path) -> None:
    """Its manifest says nothing of packing, its shards name no framework and hold no empty parameters."""
    old = {name: tensor for name, tensor in stored_tensors(saved).items() if not name.endswith(".like")}
    (shard,) = shards(saved)
    about = read_sealed(shard).about
    shard.unlink()
    before = seal(about, old)
    header = before._header.replace(b'"__metadata__":{"format":"pt",', b'"__metadata__":{')
    text = header[8:].rstrip(b" ")
    header = (len(text) + -len(text) % 8).to_bytes(8, "little") + text + b" " * (-len(text) % 8)
    body = b"".join(tensor.numpy().tobytes() for tensor in before.tensors.values())
    name = f"quantized-00001-of-00001-{before.seal[:16]}.safetensors"
    (saved / name).write_bytes(header + body)

    def change(manifest: dict[str, object]) -> None:
        manifest["version"] = 2
        manifest["shards"] = [{"name": name, "bytes": len(header + body), "seal": before.seal}]
        del manifest["packing"]

    rewrite_with(saved, change)
    assert same_tensors(tensors_of(load_quantized(saved, Net())), tensors_of(converted_net()))


WRAPPERS: dict[str, Callable[[nn.Module], object]] = {
    "compiled": torch.compile,
    "DataParallel": nn.DataParallel,
    "compiled and DataParallel": lambda model: torch.compile(nn.DataParallel(model)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch, as it imports its compiler
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_model_in_a_wrapper_is_saved_as_itself(wrapper: str, tmp_path: Path) -> None:
    """Under its own names, so that it can be loaded."""
    model = converted_net()
    wrapped = WRAPPERS[wrapper](model)
    assert isinstance(wrapped, nn.Module)
    save_quantized(wrapped, tmp_path)
    assert same_tensors(tensors_of(load_quantized(tmp_path, Net())), tensors_of(model))


def test_wrapper_inside_a_model_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    """Nobody could load it: the names inside are the wrapper's."""
    model = converted_net()
    model.head = nn.DataParallel(model.get_submodule("head"))
    with pytest.raises(UnsupportedError, match="`module` in its place"):
        save_quantized(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
