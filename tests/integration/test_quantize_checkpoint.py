"""From folder to folder: the files of the path in memory, whatever interrupts the run."""

from __future__ import annotations

import errno
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from tico.quantization import (
    AWQConfig,
    BlockTuneConfig,
    GPTQConfig,
    HQQConfig,
    Offload,
    PT2EConfig,
    PTQConfig,
    SmoothQuantConfig,
    calibrate,
    convert,
    load_quantized,
    map_checkpoint,
    prepare,
    quantize_checkpoint,
    save_quantized,
)
from tico_api import _checkpoints
from tico_config import (
    ArtifactError,
    BaseConfig,
    CalibrationError,
    ConfigError,
    DiskFullError,
    TicoError,
    UnsupportedError,
    to_json,
)
from tico_quantizers.algorithms.gptq import _layer
from tico_quantizers.solvers import solve_by
from tico_quantizers.testing import same_tensors, tensors_of
from tiny_models import TOKENS, tiny_llama

P = ParamSpec("P")
R = TypeVar("R")
GPTQ = GPTQConfig(show_progress=False)
SUPPORT = Path(__file__).parents[1] / "support"
BATCHES = [TOKENS, (TOKENS + 1) % 40]


@pytest.fixture(autouse=True, scope="module")
def imported_is_kept() -> Iterator[None]:
    """Spare garbage collections the modules that are imported, which take most of their time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return the folder of a float model in several shards."""
    tiny_llama().save_pretrained(tmp_path / "source", max_shard_size="4KB")
    return tmp_path / "source"


def files(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """Return the content of each file of a folder."""
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def in_memory(source: Path, out: Path, *configs: BaseConfig, shard_bytes: int = 10**9) -> dict[str, bytes]:
    """Return the files of the model that is quantized in memory."""
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(source)
    for config in configs:
        convert(calibrate(prepare(model, config), BATCHES))
    save_quantized(model, out, shard_bytes=shard_bytes)
    return files(out)


def test_a_list_gives_the_files_of_the_path_in_memory(source: Path, tmp_path: Path) -> None:
    """Every file is the same to the byte, and nothing else is left."""
    configs = (SmoothQuantConfig(), GPTQ, PTQConfig())
    quantize_checkpoint(source, tmp_path / "out", configs, BATCHES)
    assert files(tmp_path / "out") == in_memory(source, tmp_path / "expected", *configs)


def test_learned_rounding_gives_the_files_of_the_path_in_memory(source: Path, tmp_path: Path) -> None:
    """What the float blocks give is kept beside what the changed ones do, with one block in memory."""
    config = BlockTuneConfig(steps=8, show_progress=False)
    quantize_checkpoint(source, tmp_path / "out", config, BATCHES)
    assert files(tmp_path / "out") == in_memory(source, tmp_path / "expected", config)


def test_an_algorithm_without_data_needs_no_batches(source: Path, tmp_path: Path) -> None:
    """Its codes are those that it finds in memory; one that learns from data refuses to have none."""
    config = HQQConfig(show_progress=False)
    quantize_checkpoint(source, tmp_path / "out", config, [])
    model = convert(prepare(AutoModelForCausalLM.from_pretrained(source), config))
    assert same_tensors(tensors_of(load_quantized(tmp_path / "out")), tensors_of(model))
    with pytest.raises(CalibrationError, match="at least one batch"):
        quantize_checkpoint(source, tmp_path / "other", GPTQ, [])


def test_an_interrupted_run_goes_on(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finished block is not solved for again, and the files are those of one run."""
    calls: list[int] = []

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 6:  # in the second of two blocks, whose layers read four different inputs
            raise KeyboardInterrupt
        return solve_by(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(_layer, "solve_by", counted)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, tmp_path / "out", GPTQ, BATCHES)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".unfinished"]
    quantize_checkpoint(source, tmp_path / "out", GPTQ, BATCHES)
    assert len(calls) == 6 + 4
    assert files(tmp_path / "out") == in_memory(source, tmp_path / "expected", GPTQ)


def tiny_mixtral() -> PreTrainedModel:
    """Return a random mixture of experts, each layer's in one parameter."""
    config = MixtralConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MixtralForCausalLM(config)


def tied_bfloat16_llama() -> PreTrainedModel:
    """Return a random LLaMA whose head is its embedding."""
    model = tiny_llama(tied=True)
    torch.nn.Module.to(model, torch.bfloat16)
    return model


@pytest.mark.parametrize(
    "make",
    [tiny_mixtral, tied_bfloat16_llama],
    ids=["experts", "bfloat16, tied"],
)
def test_other_models_give_the_files_of_the_path_in_memory(
    tmp_path: Path, make: Callable[[], PreTrainedModel]
) -> None:
    """Experts that transformers joins to one parameter; a head that is tied to a table in another shard."""
    make().save_pretrained(tmp_path / "source", max_shard_size="2KB")
    configs = (SmoothQuantConfig(), GPTQ, PTQConfig())
    quantize_checkpoint(tmp_path / "source", tmp_path / "out", configs, BATCHES, shard_bytes=2000)
    expected = in_memory(tmp_path / "source", tmp_path / "expected", *configs, shard_bytes=2000)
    assert files(tmp_path / "out") == expected


def test_no_config_is_run_again_once_it_is_finished(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was interrupted while it saved the model only saves it when it is called again."""

    def interrupted(*args: object, **kwargs: object) -> Path:
        raise KeyboardInterrupt

    configs = (SmoothQuantConfig(), PTQConfig())
    with monkeypatch.context() as patch:
        patch.setattr(_checkpoints, "save_quantized", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quantize_checkpoint(source, tmp_path / "out", configs, iter(BATCHES))
    monkeypatch.setattr(_checkpoints, "prepare", interrupted)
    quantize_checkpoint(source, tmp_path / "out", configs, BATCHES)
    assert files(tmp_path / "out") == in_memory(source, tmp_path / "expected", *configs)


def test_a_model_of_other_arguments_is_not_taken_for_ones_own(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a run was interrupted while it cleared up, the same call ends it, and another one is refused."""

    def interrupted(folder: Path, kept: object = ()) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_checkpoints, "clear", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quantize_checkpoint(source, tmp_path / "out", GPTQ, BATCHES)
    written = files(tmp_path / "out", "[!.]*")
    with pytest.raises(ConfigError, match="a quantized model of other arguments"):
        quantize_checkpoint(source, tmp_path / "out", GPTQ, BATCHES[:1])
    quantize_checkpoint(source, tmp_path / "out", GPTQ, BATCHES)
    assert files(tmp_path / "out") == written


def until_full(left: int, write: Callable[P, R]) -> Callable[P, R]:
    """Return `write`, which finds the disk full after so many calls."""
    calls = iter(range(left))

    def written(*args: P.args, **kwargs: P.kwargs) -> R:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*args, **kwargs)

    return written


@pytest.mark.parametrize(
    ("config", "name", "before", "kept"),
    [
        (GPTQ, "fsync", 1, "nothing was finished yet"),  # the first block
        (
            GPTQ,
            "fsync",
            5,
            r"kept .* configs \(0\) and blocks of the next one \(2\)",
        ),  # the layers outside of blocks
        (GPTQ, "fsync", 9, r"kept .* configs \(1\) and blocks of the next one \(0\)"),  # a shard
        (PTQConfig(), "posix_fallocate", 1, "nothing was finished yet"),  # what is moved out of memory
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere room is not asked for beforehand")
def test_a_full_disk_is_told_with_what_is_kept(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: BaseConfig,
    name: str,
    before: int,
    kept: str,
) -> None:
    """It is one error, nothing looks like a model, and with room again the run goes on."""
    with monkeypatch.context() as patch:
        patch.setattr(os, name, until_full(before - 1, getattr(os, name)))
        with pytest.raises(DiskFullError, match=f"the disk is full; {kept}.*make room, and call it again"):
            quantize_checkpoint(source, tmp_path / "out", config, BATCHES, shard_bytes=2000)
    assert not (tmp_path / "out" / "quantized.json").exists()
    quantize_checkpoint(source, tmp_path / "out", config, BATCHES, shard_bytes=2000)
    assert files(tmp_path / "out") == in_memory(source, tmp_path / "expected", config, shard_bytes=2000)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits and tells it")
def test_a_model_three_times_as_large_as_memory(tmp_path: Path) -> None:
    """SmoothQuant, GPTQ and PTQ take no more than a third of its bytes, beside the interpreter."""
    for name, layers in (("small", 2), ("source", 8)):
        config = LlamaConfig(
            vocab_size=40,
            hidden_size=512,
            intermediate_size=512,
            num_hidden_layers=layers,
            num_attention_heads=4,
        )
        LlamaForCausalLM(config).save_pretrained(tmp_path / name, max_shard_size="16MB")
    folders = [str(tmp_path / name) for name in ("small", "source", "out")]
    command = [sys.executable, str(SUPPORT / "limited_runs.py"), *folders]
    # What glibc keeps of freed memory is not measured: large tensors go back at once, from one arena.
    tight = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | tight)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "quantized.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
def test_a_run_that_is_killed_at_any_step_goes_on(source: Path, tmp_path: Path) -> None:
    """However often it is killed, the files are those of one run; a model that is there is whole."""
    lists = (SmoothQuantConfig(), GPTQ, PTQConfig()), (AWQConfig(group_size=None, show_progress=False),)
    texts, out = [json.dumps(list(map(to_json, configs))) for configs in lists], tmp_path / "out"
    command = [sys.executable, str(SUPPORT / "interrupted_runs.py"), str(source), str(out), *texts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert min(map(int, done.stdout.split())) > 5
    for number, configs in enumerate(lists):
        expected = in_memory(source, tmp_path / f"expected {number}", *configs, shard_bytes=2000)
        assert files(out / str(number)) == expected


def test_parameters_are_mapped(source: Path, tmp_path: Path) -> None:
    """Each parameter that is no trifle is in the pages of a file."""
    offload = Offload(tmp_path)
    model = map_checkpoint(source, offload)
    expected: torch.nn.Module = AutoModelForCausalLM.from_pretrained(source)
    for name, parameter in model.named_parameters():
        assert offload.holds(parameter), name
        assert torch.equal(parameter, expected.get_parameter(name)), name


def lose_a_shard(source: Path) -> None:
    """Remove a shard."""
    min(source.glob("*.safetensors")).unlink()


def cut_a_shard(source: Path) -> None:
    """Take the last bytes of a shard away."""
    path = min(source.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-4])


def rename(field: str, value: object) -> Callable[[Path], None]:
    """Return what writes another value into the config."""

    def change(source: Path) -> None:
        config = json.loads((source / "config.json").read_bytes())
        (source / "config.json").write_text(json.dumps(config | {field: value}))

    return change


@pytest.mark.parametrize(
    ("harm", "error", "said"),
    [
        (lose_a_shard, ArtifactError, "no such file"),
        (cut_a_shard, ArtifactError, "a file whose"),
        (rename("intermediate_size", 28), ArtifactError, "one of shape"),
        (rename("num_hidden_layers", 3), ArtifactError, "no such tensor"),
        (rename("dtype", "bfloat16"), ArtifactError, "bfloat16"),
        (rename("quantization_config", {"quant_method": "gptq"}), UnsupportedError, "quantized already"),
        (rename("model_type", "nothing"), UnsupportedError, "no causal language model"),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    source: Path, tmp_path: Path, harm: Callable[[Path], None], error: type[TicoError], said: str
) -> None:
    """One error says what is wrong, and no model is there."""
    harm(source)
    with pytest.raises(error, match=said):
        quantize_checkpoint(source, tmp_path / "out", GPTQ, BATCHES)
    assert not (tmp_path / "out").exists()


def test_what_cannot_work_is_refused_first(source: Path, tmp_path: Path) -> None:
    """A graph of the whole model, a text for a config, a folder that holds something."""
    with pytest.raises(UnsupportedError, match="graph of the whole model"):
        quantize_checkpoint(source, tmp_path / "out", PT2EConfig(), BATCHES)
    with pytest.raises(ConfigError, match=r"quant_config must be .*, got 'gptq'"):
        quantize_checkpoint(source, tmp_path / "out", "gptq", BATCHES)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="out_dir"):
        quantize_checkpoint(source, source, GPTQ, BATCHES)
    assert not (tmp_path / "out").exists()
