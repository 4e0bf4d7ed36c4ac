"""Converted models in the hands of transformers: loaded, saved, rounded, spread and recognized by it."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    DynamicCache,
    GenerationConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    LlamaPreTrainedModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.quantizers.base import HfQuantizer
from transformers.trainer_utils import validate_quantization_for_training

from artifact_folder import MANIFEST, contents
from references import same_bits
from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    KVCacheConfig,
    PTQConfig,
    SmoothQuantConfig,
    convert,
    load_quantized,
    prepare,
    report,
    save_quantized,
)
from tico.quantization.config import BaseConfig, DType, affine, no_quant
from tico.quantization.integrations import register, round_on_load
from tico_config import ArtifactError, ConfigError, UnsupportedError
from tico_quantizers.testing import same_tensors, tensors_of
from tiny_models import TOKENS, logits, tiny_llama

G = GPTQConfig(group_size=8, show_progress=False)
W4 = PTQConfig(activation=no_quant(), weight=affine(DType.uint(4)))
CONVERSIONS: dict[str, tuple[BaseConfig, ...]] = {
    "G": (G,),
    "A": (PTQConfig(),),
    "AWQ": (AWQConfig(group_size=8, show_progress=False),),
    "SmoothQuant, GPTQ": (SmoothQuantConfig(), GPTQConfig(show_progress=False)),
    "KV": (KVCacheConfig(residual_length=2, group_size=2),),
    "GPTQ, PTQ": (GPTQConfig(show_progress=False), PTQConfig()),
}
every_conversion = pytest.mark.parametrize("name", CONVERSIONS)


class Loader(Protocol):
    """What `from_pretrained` is."""

    def __call__(self, folder: Path, /, **settings: object) -> object:
        """Return the model in `folder`."""


class Saver(Protocol):
    """What `save_pretrained` is."""

    def __call__(self, folder: Path, /, **settings: object) -> object:
        """Write the model to `folder`."""


class Generator(Protocol):
    """What `generate` is."""

    def __call__(self, tokens: Tensor, *, generation_config: object) -> Tensor:
        """Return `tokens` and those that follow."""


def converted(name: str, model: nn.Module | None = None) -> PreTrainedModel:
    """Return a model, by default a LLaMA with a tied head, after the conversions called `name`."""
    root = tiny_llama(tied=True) if model is None else model
    for config in CONVERSIONS[name]:
        prepare(root, config, kwargs={"input_ids": TOKENS})
        logits(root)
        convert(root)
    assert isinstance(root, PreTrainedModel)
    return root


def tiny_qwen3() -> Qwen3ForCausalLM:
    """Return a random Qwen3 of two layers, always the same one."""
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    nn.Module.eval(model)
    return model


def tiny_bert() -> BertForSequenceClassification:
    """Return a random BERT classifier of two layers, always the same one."""
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
    nn.Module.eval(model)
    return model


def causal(folder: Path, **settings: object) -> PreTrainedModel:
    """Return the causal language model that transformers loads from `folder`."""
    load: Loader = AutoModelForCausalLM.from_pretrained  # type: ignore[assignment]  # of a class of its own
    model = load(folder, **settings)
    assert isinstance(model, PreTrainedModel)
    return model


def save(model: PreTrainedModel, folder: Path, **settings: object) -> None:
    """Let transformers save `model`."""
    call: Saver = model.save_pretrained  # type: ignore[assignment]  # which lists its settings
    call(folder, **settings)


@every_conversion
def test_from_pretrained_gives_the_bits_of_load_quantized(name: str, tmp_path: Path) -> None:
    """Outputs, every tensor with its dtype, the ties and the report; and nothing is missing or left over."""
    model = converted(name)
    save_quantized(model, tmp_path)
    load: Loader = AutoModelForCausalLM.from_pretrained  # type: ignore[assignment]  # of a class of its own
    match load(tmp_path, output_loading_info=True):
        case (PreTrainedModel() as loaded, dict() as found):
            pass
        case other:
            pytest.fail(f"{other} is no model with what was found")
    ours = load_quantized(tmp_path)
    assert {key: value for key, value in found.items() if value} == {}
    assert same_bits(logits(loaded), logits(model))
    assert same_tensors(tensors_of(loaded), tensors_of(ours))
    assert report(loaded) == report(ours)
    assert not any(module.training for module in loaded.modules())
    assert vars(loaded).keys() == vars(ours).keys() | {"_use_kernels", "_weight_conversions"}


@every_conversion
def test_save_pretrained_writes_what_from_pretrained_reads(name: str, tmp_path: Path) -> None:
    """In several shards, from a converted model and from a loaded one; the files are save_quantized's."""
    model = converted(name)
    save(model, tmp_path / "one", max_shard_size="1KB")
    loaded = causal(tmp_path / "one")
    assert len([*(tmp_path / "one").glob("*.safetensors")]) > 2
    assert same_bits(logits(loaded), logits(model))
    save(loaded, tmp_path / "two")
    assert same_bits(logits(causal(tmp_path / "two")), logits(model))
    save_quantized(model, tmp_path / "ours")
    files = [contents(tmp_path / each) for each in ("two", "ours")]
    assert files[0].keys() == files[1].keys()
    # The manifest keeps the whole config, to which loading adds what the model is.
    assert {name for name in files[0] if files[0][name] != files[1][name]} == {MANIFEST}


@pytest.mark.parametrize("make", [tiny_qwen3, tiny_bert], ids=["Qwen3", "BERT"])
@pytest.mark.parametrize("name", ["G", "A"])
def test_other_families_come_back(name: str, make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    """Each through the class that was saved."""
    model = converted(name, make())
    save(model, tmp_path)
    load: Callable[[Path], nn.Module] = type(model).from_pretrained
    assert same_bits(logits(load(tmp_path)), logits(model))


@pytest.mark.parametrize("name", ["G", "A"])
def test_dtype_that_is_asked_for_is_that_of_to(name: str, tmp_path: Path) -> None:
    """The float part is cast, codes and grids are not."""
    save(converted(name), tmp_path)
    ours = load_quantized(tmp_path).to(torch.bfloat16)
    loaded = causal(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert same_bits(logits(loaded), logits(ours))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_of_the_saved_model_comes_back(attention: str, tmp_path: Path) -> None:
    """Unless the caller asks for another one."""
    save(converted("G", tiny_llama(attention=attention)), tmp_path)
    assert causal(tmp_path).config._attn_implementation == attention
    assert causal(tmp_path, attn_implementation="eager").config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["G", "A"])
def test_base_of_a_saved_model_is_loaded_alone(name: str, tmp_path: Path) -> None:
    """As the model without its head, which is left in the file."""
    model = converted(name)
    save(model, tmp_path)
    load: Callable[[Path], nn.Module] = AutoModel.from_pretrained
    base, original = load(tmp_path), model.get_submodule("model")
    assert type(base) is LlamaModel
    assert same_bits(base(TOKENS).last_hidden_state, original(TOKENS).last_hidden_state)
    assert isinstance(base, PreTrainedModel)
    save(base, tmp_path / "base")
    assert same_bits(load(tmp_path / "base")(TOKENS).last_hidden_state, base(TOKENS).last_hidden_state)


def test_base_of_a_model_with_a_quantized_cache_is_float(tmp_path: Path) -> None:
    """The cache is that of the model which was converted; its base makes one of floats."""
    model = converted("KV")
    save(model, tmp_path)
    load: Callable[[Path], nn.Module] = AutoModel.from_pretrained
    base = load(tmp_path)(TOKENS)
    assert same_bits(base.last_hidden_state, model.get_submodule("model")(TOKENS).last_hidden_state)
    assert type(base.past_key_values) is DynamicCache


def test_head_that_was_not_saved_is_refused(tmp_path: Path) -> None:
    """Instead of being made of random numbers."""
    save(converted("G"), tmp_path)
    load: Callable[[Path], nn.Module] = LlamaForSequenceClassification.from_pretrained
    with pytest.raises(ArtifactError, match=r"score\.weight"):
        load(tmp_path)


LAYERS = {f"model.layers.{index}": "cpu" for index in range(2)}
REST = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
MAPS: dict[str, object] = {
    "cpu": "cpu",
    "auto": "auto",
    "one layer on the disk": REST | LAYERS | {"model.layers.1": "disk"},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["G", "A"])
def test_codes_on_the_disk_are_read_when_they_are_needed(name: str, tmp_path: Path) -> None:
    """Codes are buffers, which accelerate leaves in memory unless it is told to take them too."""
    model = converted(name)
    save(model, tmp_path / "saved")
    places = {"device_map": MAPS["one layer on the disk"], "offload_folder": tmp_path / "offload"}
    loaded = causal(tmp_path / "saved", offload_buffers=True, **places)
    assert same_bits(logits(loaded), logits(model))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("where", MAPS)
@pytest.mark.parametrize("name", ["G", "A"])
def test_device_map_changes_no_bit(name: str, where: str, tmp_path: Path) -> None:
    """On one device, chosen by accelerate, and with a layer that is read when it is called."""
    model = converted(name)
    save(model, tmp_path / "saved")
    loaded = causal(tmp_path / "saved", device_map=MAPS[where], offload_folder=tmp_path / "offload")
    assert same_bits(logits(loaded), logits(model))


def test_layer_that_must_stay_whole_stays_whole(tmp_path: Path) -> None:
    """What stands in for a decoder layer is not divided among devices either."""
    save(converted("A"), tmp_path)
    loaded = causal(tmp_path)
    assert type(loaded.get_submodule("model.layers.0")).__name__ in (loaded._no_split_modules or ())


def test_float_model_is_rounded_while_it_is_loaded(tmp_path: Path) -> None:
    """By a config that needs no data: what prepare and convert make of the float model."""
    save(tiny_llama(tied=True), tmp_path / "float")
    loaded = causal(tmp_path / "float", quantization_config=round_on_load(W4))
    expected = convert(prepare(tiny_llama(tied=True), W4))
    assert same_bits(logits(loaded), logits(expected))
    assert report(loaded) == report(expected)
    save(loaded, tmp_path / "rounded")
    assert same_bits(logits(causal(tmp_path / "rounded")), logits(expected))


@pytest.mark.parametrize("config", [G, PTQConfig()], ids=["GPTQ", "PTQ with activations"])
def test_config_that_needs_data_is_refused_at_once(config: BaseConfig) -> None:
    """Before any model is loaded."""
    with pytest.raises(ConfigError, match="needs no data"):
        round_on_load(config)


def test_float_model_without_a_config_to_round_by_is_refused(tmp_path: Path) -> None:
    """With the function that makes one."""
    save(tiny_llama(), tmp_path)
    with pytest.raises(ConfigError, match="round_on_load"):
        causal(tmp_path, quantization_config={"quant_method": "tico"})


@pytest.mark.parametrize("name", ["G", "A"])
def test_models_say_that_they_are_quantized(name: str, tmp_path: Path) -> None:
    """Converted ones, loaded ones, and their configs, which name the conversions."""
    model = converted(name)
    save(model, tmp_path)
    for each in (model, causal(tmp_path), load_quantized(tmp_path)):
        assert isinstance(each, PreTrainedModel)
        assert each.is_quantized
        assert isinstance(each.hf_quantizer, HfQuantizer)
        assert each.hf_quantizer.is_trainable
        described = each.config.quantization_config.to_dict()
        kinds = [run["config"]["kind"] for run in described["conversions"]]
        assert described["quant_method"] == "tico"
        assert kinds == [type(config).__name__ for config in CONVERSIONS[name]]
    assert AutoConfig.from_pretrained(tmp_path).quantization_config["quant_method"] == "tico"


def test_float_model_with_the_same_config_stays_float(tmp_path: Path) -> None:
    """The config becomes the converted model's own, in every module that holds it."""
    control = tiny_llama()
    model = type(control)(control.config)
    converted("A", nn.Module.eval(model))
    assert not hasattr(control.config, "quantization_config")
    assert not hasattr(control, "hf_quantizer")
    assert model.config is model.model.config
    assert model.config is not control.config


@pytest.mark.parametrize("name", ["G", "A"])
def test_trainer_refuses_to_train_integers(name: str) -> None:
    """With the words that it has for every quantized model without adapters."""
    with pytest.raises(ValueError, match="purely quantized"):
        validate_quantization_for_training(converted(name))  # type: ignore[no-untyped-call]


def _generated(model: PreTrainedModel) -> Tensor:
    generate: Generator = model.generate  # type: ignore[assignment]
    greedy = GenerationConfig(max_new_tokens=4, do_sample=False, pad_token_id=0)  # type: ignore[no-untyped-call]
    return generate(TOKENS, generation_config=greedy)


def _pickled(model: PreTrainedModel) -> PreTrainedModel:
    copied = pickle.loads(pickle.dumps(model))  # noqa: S301  # of this process
    assert isinstance(copied, PreTrainedModel)
    return copied


@pytest.mark.parametrize("name", ["G", "A"])
def test_loaded_model_is_copied_pickled_and_generates(name: str, tmp_path: Path) -> None:
    """Recording of hidden states included, which is made of closures in a float model."""
    model = converted(name)
    save(model, tmp_path)
    loaded = causal(tmp_path)
    for each in (copy.deepcopy(loaded), _pickled(loaded), _pickled(model)):
        assert same_bits(logits(each), logits(model))
        assert len(each(TOKENS, output_hidden_states=True).hidden_states) == 3
    assert torch.equal(_generated(loaded), _generated(model))


SPAWNED = """
import sys, torch
loaded = torch.load(sys.argv[1], weights_only=False)
torch.save(loaded(torch.arange(24).view(2, 12) * 7 % 40).logits.detach(), sys.argv[2])
"""


@pytest.mark.parametrize("name", ["G", "A"])
def test_pickled_loaded_model_runs_in_another_process(name: str, tmp_path: Path) -> None:
    """As a worker of a DataLoader or a server is started."""
    model = converted(name)
    save(model, tmp_path / "saved")
    torch.save(load_quantized(tmp_path / "saved"), tmp_path / "model.pt")
    files = [str(tmp_path / each) for each in ("model.pt", "out.pt")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", SPAWNED, *files], check=True)
    assert same_bits(torch.load(tmp_path / "out.pt", weights_only=True), logits(model).detach())


class Own(LlamaPreTrainedModel):  # type: ignore[no-untyped-call]
    """A model of somebody's own around a backbone that was loaded."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        """Take the backbone, and let transformers initialize the rest."""
        super().__init__(backbone.config)
        self.backbone = backbone
        self.score = nn.Linear(16, 2)
        self.post_init()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", ["G", "A"])
def test_backbone_of_a_model_of_ones_own_keeps_its_values(name: str, tmp_path: Path) -> None:
    """Transformers initializes what lacks its mark."""
    model = converted(name)
    save_quantized(model, tmp_path)
    backbone = load_quantized(tmp_path)
    assert isinstance(backbone, PreTrainedModel)
    Own(backbone)
    assert same_bits(logits(backbone), logits(model))


@pytest.mark.parametrize("name", ["G", "A"])
def test_ties_are_those_that_are_there(name: str) -> None:
    """What transformers does about ties changes nothing, whichever ends are integers."""
    model = converted(name)
    before = logits(model)
    model.tie_weights()
    model.init_weights()  # type: ignore[no-untyped-call]
    assert same_bits(logits(model), before)
    assert model.get_input_embeddings() is model.get_submodule("model.embed_tokens")


def test_integer_embedding_is_not_resized() -> None:
    """Transformers refuses it with the class that it found, and the model stays as it was."""
    model = converted("A")
    before = logits(model)
    resize: Callable[[int], object] = model.resize_token_embeddings
    with pytest.raises(TypeError, match="QuantizedEmbedding"):
        resize(44)
    assert same_bits(logits(model), before)


REFUSED: dict[str, tuple[object, str]] = {
    "push_to_hub": (True, r"model\.push_to_hub"),
    "variant": ("fp16", "a folder of its own"),
    "distributed_checkpoint": (True, "on one process"),
    "state_dict": ({}, "the state dict of the model itself"),
}


@pytest.mark.parametrize("argument", REFUSED)
def test_saving_what_a_folder_of_integers_lacks_is_refused(argument: str, tmp_path: Path) -> None:
    """With the way out, and before anything is written."""
    value, words = REFUSED[argument]
    with pytest.raises(UnsupportedError, match=words):
        save(converted("G"), tmp_path / "new", **{argument: value})
    assert not (tmp_path / "new").exists()


def test_saving_takes_the_models_own_state_dict_and_the_main_process_only(tmp_path: Path) -> None:
    """As the Trainer passes them."""
    model = converted("G")
    save(model, tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()
    save(model, tmp_path / "main", state_dict=model.state_dict())
    assert same_bits(logits(causal(tmp_path / "main")), logits(model))
    with pytest.raises(ConfigError, match="max_shard_size"):
        save(model, tmp_path / "odd", max_shard_size="many")


def test_float_models_are_saved_as_ever(tmp_path: Path) -> None:
    """By transformers itself."""
    model = tiny_llama()
    save(model, tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert same_bits(logits(causal(tmp_path)), logits(model))


def test_files_of_another_model_are_refused(tmp_path: Path) -> None:
    """An index that names other files than the manifest, and bits that were changed."""
    save(converted("G"), tmp_path / "one")
    save(converted("A"), tmp_path / "two")
    for folder, other in (("one", "two"), ("two", "one")):
        index = tmp_path / folder / "quantized.safetensors.index.json"
        kept = index.read_bytes()
        for shard in (tmp_path / other).glob("*.safetensors"):
            (tmp_path / folder / shard.name).write_bytes(shard.read_bytes())
        index.write_bytes((tmp_path / other / index.name).read_bytes())
        with pytest.raises(ArtifactError, match="index"):
            causal(tmp_path / folder)
        index.write_bytes(kept)


def test_links_are_followed_as_in_a_cache_of_downloads(tmp_path: Path) -> None:
    """Where load_quantized takes regular files only."""
    model = converted("G")
    save(model, tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert same_bits(logits(causal(tmp_path / "snapshot")), logits(model))
    with pytest.raises(ArtifactError, match="regular file"):
        load_quantized(tmp_path / "snapshot")


UNREGISTERED = """
import sys
import transformers
try:
    transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
except ValueError as error:
    print(error)
"""


def test_folder_says_what_to_import_where_nothing_is_registered(tmp_path: Path) -> None:
    """Transformers would make a float model with random weights; the config keeps it from that."""
    save(converted("G"), tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", UNREGISTERED, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "`import tico.quantization.integrations` before from_pretrained" in done.stdout
    assert "tico-api[hf]" in done.stdout


def test_registering_twice_changes_nothing() -> None:
    """A second import of a second library may do it."""
    before = PreTrainedModel.save_pretrained
    assert "transformers" in register()
    assert PreTrainedModel.save_pretrained is before


def test_config_is_json(tmp_path: Path) -> None:
    """Other tools read the config of the model and find the conversions in it."""
    save(converted("G"), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["quantization_config"]["conversions"][0]["config"]["bits"] == 4
    assert values["architectures"] == ["LlamaForCausalLM"]
