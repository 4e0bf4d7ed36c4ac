"""Saved models that were damaged, forged, swapped or cut off: nothing loads wrongly, nothing is lost."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn

from artifact_folder import MANIFEST, contents, rewrite, rewrite_with, shards
from tico_config import ArtifactError, ConfigError, DType
from tico_observers import read_sealed, write_sealed
from tico_quantizers import QuantizedLinear, load_quantized, save_quantized
from tico_quantizers.testing import same_tensors, tensors_of, unchanged


def skeleton() -> nn.Sequential:
    """Return a float model of the architecture that is saved here."""
    return nn.Sequential(nn.Linear(24, 16), nn.LayerNorm(16), nn.Linear(16, 4))


def quantized(seed: int = 0) -> nn.Sequential:
    """Return a model with integer layers whose values depend on `seed`."""
    model = skeleton()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    for index in (0, 2):
        model[index] = QuantizedLinear.from_float(model[index], DType.uint(4))  # type: ignore[arg-type]
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return a folder with a model in several shards."""
    save_quantized(quantized(), tmp_path, shard_bytes=300)
    assert len(shards(tmp_path)) > 2
    return tmp_path


def load(folder: Path) -> nn.Module:
    """Load into a new float model."""
    return load_quantized(folder, skeleton())


def refusal(folder: Path) -> ArtifactError:
    """Return the error that loading gives, after which the model has to be as it was."""
    model = skeleton()
    with unchanged(model), pytest.raises(ArtifactError) as caught:
        load_quantized(folder, model)
    return caught.value


def test_shards_come_back_as_one_model(saved: Path) -> None:
    """And their names, sizes and bytes depend on the content only."""
    assert same_tensors(tensors_of(load(saved)), tensors_of(quantized()))
    before = contents(saved)
    save_quantized(quantized(), saved, shard_bytes=300)
    assert contents(saved) == before


def test_shards_stay_below_the_limit(tmp_path: Path) -> None:
    """Unless one tensor alone is above it."""
    save_quantized(quantized(), tmp_path, shard_bytes=300)
    for path in shards(tmp_path):
        tensors = read_sealed(path).tensors
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 300


@pytest.mark.parametrize("limit", [0, -1, True, 1.5])
def test_a_limit_that_is_no_number_of_bytes_is_refused(limit: int, tmp_path: Path) -> None:
    """Before anything is written."""
    with pytest.raises(ConfigError) as caught:
        save_quantized(quantized(), tmp_path, shard_bytes=limit)
    assert caught.value.field == "shard_bytes"
    assert not contents(tmp_path)


def test_any_safetensors_tool_reads_the_shards(saved: Path) -> None:
    """They are plain files of that layout."""
    from safetensors.torch import load_file

    for path in shards(saved):
        assert same_tensors(dict(read_sealed(path).tensors), load_file(path))


def test_every_flipped_byte_of_the_manifest_and_of_the_headers_is_refused(saved: Path) -> None:
    """One after the other."""
    for path in (saved / MANIFEST, *shards(saved)):
        whole = path.read_bytes()
        is_manifest = path.name == MANIFEST
        for position in range(len(whole) if is_manifest else 8 + int.from_bytes(whole[:8], "little")):
            changed = bytearray(whole)
            changed[position] ^= 1 << position % 8
            path.write_bytes(changed)
            with pytest.raises(ArtifactError):
                load(saved) if is_manifest else read_sealed(path)
        path.write_bytes(whole)
    load(saved)


def test_flipped_bits_of_the_tensors_are_refused(saved: Path) -> None:
    """A thousand of them, anywhere."""
    choose = random.Random(0)  # noqa: S311  # the same positions every time
    files = {path: path.read_bytes() for path in shards(saved)}
    for _ in range(1000):
        path, whole = choose.choice(list(files.items()))
        changed = bytearray(whole)
        start = 8 + int.from_bytes(whole[:8], "little")
        changed[choose.randrange(start, len(whole))] ^= 1 << choose.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(ArtifactError):
            read_sealed(path)
        path.write_bytes(whole)


def test_files_cut_short_or_grown_are_refused(saved: Path) -> None:
    """At every length of the manifest and of a shard, with the model unchanged."""
    for path in (saved / MANIFEST, shards(saved)[0]):
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(ArtifactError):
                load(saved)
        path.write_bytes(whole + b"\0")
        refusal(saved)
        path.write_bytes(whole)


def _forget(folder: Path) -> None:
    shards(folder)[1].unlink()


def _link(folder: Path) -> None:
    shard = shards(folder)[1]
    shard.rename(folder / "elsewhere")
    shard.symlink_to(folder / "elsewhere")


def _link_manifest(folder: Path) -> None:
    (folder / MANIFEST).rename(folder / "elsewhere")
    (folder / MANIFEST).symlink_to(folder / "elsewhere")


def _swap(folder: Path) -> None:
    one, other = shards(folder)[:2]
    one.rename(folder / "third")
    other.rename(one)
    (folder / "third").rename(other)


def _make_folder(folder: Path) -> None:
    shard = shards(folder)[0]
    shard.unlink()
    shard.mkdir()


def _put_another(folder: Path) -> None:
    """Put a sealed file of the same size and of other values in the place of a shard."""
    shard = shards(folder)[0]
    sealed = read_sealed(shard)
    size = shard.stat().st_size
    write_sealed(shard, sealed.about, {name: tensor + 1 for name, tensor in sealed.tensors.items()})
    assert shard.stat().st_size == size


FOLDERS: dict[str, Callable[[Path], None]] = {
    "a shard is missing": _forget,
    "a shard is a link": _link,
    "the manifest is a link": _link_manifest,
    "two shards are swapped": _swap,
    "a shard is a folder": _make_folder,
    "a shard is another one": _put_another,
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_is_not_whole_is_refused(case: str, saved: Path) -> None:
    """The model is left as it was, and the error names the file."""
    FOLDERS[case](saved)
    assert str(saved) in str(refusal(saved).module)


MANIFESTS: dict[str, tuple[tuple[str | int, ...], object]] = {
    "kind": (("modules", "0", "kind"), "os.system"),
    "layout": (("modules", "0", "layout"), 3),
    "runs": (("modules", "0", "runs"), [7]),
    "more": (("more",), None),
    "aliases": (("aliases",), []),
    "x": (("aliases", "x"), "no such tensor"),
    "bytes": (("shards", 0, "bytes"), -1),
    "seal": (("shards", 0, "seal"), 3),
    "manifest": (("version",), 1),
    "transformers": (("transformers",), "LlamaForCausalLM"),
}


@pytest.mark.parametrize("field", MANIFESTS)
def test_a_manifest_that_says_something_else_is_refused(field: str, saved: Path) -> None:
    """What is sealed is checked as well: a file may come from anybody."""
    rewrite(saved, *MANIFESTS[field])
    assert refusal(saved).field == field


@pytest.mark.parametrize(
    "name",
    [
        "../quantized-00001-of-00001-0123456789abcdef.safetensors",
        "/etc/passwd",
        "",
        ".",
        "quantized-00001-of-00001-0123456789abcdef.safetensors\0",
        "C:\\quantized-00001-of-00001-0123456789abcdef.safetensors",
        "sub/quantized-00001-of-00001-0123456789abcdef.safetensors",
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: str, saved: Path) -> None:
    """Before any file but the manifest was looked at."""
    rewrite(saved, ("shards", 0, "name"), name)
    assert refusal(saved).field == "name"


def test_a_newer_version_is_named(saved: Path) -> None:
    """The error says where the file comes from."""
    rewrite(saved, ("version",), 4)
    assert "a newer release" in str(refusal(saved))


def test_runs_that_are_none_are_refused(saved: Path) -> None:
    """Each of their values has a type."""
    run: dict[str, object] = {
        "report": [],
        "config": None,
        "model": "",
        "data": "",
        "calls": 0,
        "versions": {},
    }
    rewrite(saved, ("runs",), [run])
    load(saved)
    changes = {"report": 3, "config": "text", "model": 3, "data": None, "calls": -1, "versions": {"torch": 2}}
    for name, value in changes.items():
        rewrite(saved, ("runs",), [run | {name: value}])
        refusal(saved)


def test_tensors_that_do_not_fit_are_refused(saved: Path) -> None:
    """Other dtypes, other shapes, in a folder whose seals all fit."""
    for wrong in (torch.zeros(16, 24), torch.zeros(16, 11, dtype=torch.uint8)):
        folder = saved / "forged"
        model = quantized()
        model[0].packed.codes = wrong  # type: ignore[union-attr]
        save_quantized(model, folder)
        assert refusal(folder).field == "codes"


def test_nothing_is_unpickled_or_imported_by_name(saved: Path) -> None:
    """As the interpreter itself reports; the second time, when torch has imported what it wants."""
    script = """
import sys, torch
from torch import nn
from tico_quantizers import load_quantized
def load():
    load_quantized(sys.argv[1], nn.Sequential(nn.Linear(24, 16), nn.LayerNorm(16), nn.Linear(16, 4)))
load()
seen = []
sys.addaudithook(lambda event, args: seen.append(event))
load()
print(sorted({"pickle.find_class", "exec", "compile", "import"} & {*seen}))
"""
    command = [sys.executable, "-c", script, str(saved)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "[]"


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    """A README of somebody's own too; only what an earlier save has left goes."""
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "notes.safetensors").write_bytes(b"mine as well")
    save_quantized(quantized(0), tmp_path, shard_bytes=300)
    old = {path.name for path in shards(tmp_path)}
    save_quantized(quantized(1), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert (tmp_path / "notes.safetensors").read_bytes() == b"mine as well"
    assert {path.name for path in shards(tmp_path)} & old == {"notes.safetensors"}
    assert same_tensors(tensors_of(load(tmp_path)), tensors_of(quantized(1)))


def test_a_writer_that_fails_leaves_the_old_model(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every one of its steps; what it has left over goes with the next save."""
    from tico_modules._files import artifact

    for step in ("describe_model", "write_shards", "write_beside", "write_model_card", "remove_others"):
        with monkeypatch.context() as patch:

            def fail(*call: object, step: str = step) -> None:
                raise OSError(step)

            patch.setattr(artifact, step, fail)
            with pytest.raises(OSError, match=step):
                save_quantized(quantized(1), saved)
        expected = quantized(1 if step == "remove_others" else 0)
        assert same_tensors(tensors_of(load(saved)), tensors_of(expected))
    save_quantized(quantized(0), saved, shard_bytes=300)
    assert len(shards(saved)) == len(json.loads((saved / MANIFEST).read_text())["manifest"]["shards"])


KILL = """
import os, random, signal, sys, time
import torch
from torch import nn
from tico_config import DType
from tico_quantizers import QuantizedLinear, load_quantized, save_quantized

folder, rounds = sys.argv[1], int(sys.argv[2])
def model(value):
    made = nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)])
    for index in range(4):
        made[index].weight.data.fill_(value)
        made[index].bias.data.fill_(value)
        made[index] = QuantizedLinear.from_float(made[index], DType.uint(8))
    return made
models = [model(1.0), model(2.0)]
started = time.perf_counter()
for each in models:
    save_quantized(each, folder, shard_bytes=5000)
once = (time.perf_counter() - started) / 2
choose = random.Random(0)
found = set()
for number in range(rounds):
    child = os.fork()
    if not child:
        while True:
            for each in models if number % 2 else reversed(models):
                save_quantized(each, folder, shard_bytes=5000)
    time.sleep(choose.uniform(0, 6 * once))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    loaded = load_quantized(folder, nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)]))
    values = {float(value) for layer in loaded for value in (layer.bias[0], layer.dequantize()[0, 0])}
    assert len(values) == 1, values
    found |= values
save_quantized(models[0], folder, shard_bytes=5000)
print(sorted(found), sum(path.endswith(".tmp") or path.startswith(".") for path in os.listdir(folder)))
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="the writers are forked")
def test_killed_writers_leave_one_model_or_the_other(tmp_path: Path) -> None:
    """A hundred of them, at random moments; the next save removes what they have left."""
    command = [sys.executable, "-W", "ignore", "-c", KILL, str(tmp_path), "100"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[1.0, 2.0] 0"


def test_the_manifest_says_where_the_model_comes_from(tmp_path: Path) -> None:
    """Config, data, model and versions of every conversion."""
    from tico.quantization import GPTQConfig, convert, prepare
    from tico_config import from_json
    from tico_quantizers import model_fingerprint

    model = skeleton().eval()
    config, before = GPTQConfig(bits=3, show_progress=False), model_fingerprint(model)
    prepare(model, config)
    model(torch.ones(2, 24))
    save_quantized(convert(model), tmp_path)
    (run,) = json.loads((tmp_path / MANIFEST).read_text())["manifest"]["runs"]
    assert from_json(json.dumps(run["config"])) == config
    assert run["model"] == before
    assert run["calls"] == 1
    assert run["versions"]["torch"] == version("torch")
    assert "GPTQConfig" in (tmp_path / "README.md").read_text()


def test_forged_values_stay_within_the_manifest(saved: Path) -> None:
    """A tensor that two shards hold is refused, as is one that no shard holds."""

    def twice(manifest: dict[str, object]) -> None:
        listed = manifest["shards"]
        assert isinstance(listed, list)
        listed.append(listed[0])

    rewrite_with(saved, twice)
    assert refusal(saved).field == "file"
