"""Interrupted conversions go on where they were, bit for bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gptq_models import quantized, stack
from tico.quantization import GPTQConfig, convert, prepare
from tico_config import ArtifactError
from tico_quantizers import report
from tico_quantizers.algorithms.gptq import _layer
from tico_quantizers.solvers import solve_by
from tico_quantizers.testing import refused, same_tensors, tensors_of
from tiny_models import TOKENS, tiny_llama, values

X = values(1, 40, 8)


def config(folder: Path, **fields: object) -> GPTQConfig:
    """Return a config with a folder to keep finished blocks in."""
    return GPTQConfig(show_progress=False, checkpoint_dir=str(folder), **fields)  # type: ignore[arg-type]


def prepared(folder: Path, **fields: object) -> nn.Module:
    """Return a calibrated model."""
    return calibrated(stack(4), X, config(folder, **fields))


def calibrated(model: nn.Module, x: Tensor, config: GPTQConfig) -> nn.Module:
    """Return a prepared model that has seen `x`."""
    model = prepare(model, config)
    with torch.no_grad():
        model(x)
    return model


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of columns of the layers that the solver is called for."""
    found: list[int] = []

    def counted(weights: Sequence[Tensor], *args: object, **kwargs: object) -> object:
        found.extend(weight.shape[1] for weight in weights)
        if len(found) == 6:
            raise KeyboardInterrupt
        return solve_by(weights, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(_layer, "solve_by", counted)
    return found


@pytest.mark.parametrize("fields", [{}, {"true_sequential": True}, {"group_size": 4, "static_groups": False}])
def test_an_interrupted_conversion_goes_on(
    tmp_path: Path, solved: list[int], fields: dict[str, object]
) -> None:
    """Only unfinished blocks are solved for again; codes and report are those of a conversion in one go."""
    model = prepared(tmp_path, **fields)
    with pytest.raises(KeyboardInterrupt):
        convert(model)  # in the third of four blocks, whose first layer was done
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    found = convert(model)
    assert len(solved) == 6 + 5
    whole = quantized(stack(4), X, config=GPTQConfig(show_progress=False, **fields))  # type: ignore[arg-type]
    assert same_tensors(tensors_of(found), tensors_of(whole))
    assert report(found).layers == report(whole).layers


def test_another_process_goes_on_after_a_kill(tmp_path: Path) -> None:
    """Killed without notice in the middle; what it has finished is used."""
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from test_gptq_checkpoint import _layer, prepared, solve_by
        from tico.quantization import convert
        calls = []
        def killed(*args, **kwargs):
            calls.append(1)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return solve_by(*args, **kwargs)
        _layer.solve_by = killed
        convert(prepared(Path({str(tmp_path)!r})))
    """)
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]
    path = f"import sys; sys.path[:0] = {folders!r}\n"
    killed = subprocess.run([sys.executable, "-c", path + script], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    (done,) = tmp_path.rglob("*.safetensors")
    written = done.stat().st_mtime_ns
    found = convert(prepared(tmp_path))
    assert same_tensors(tensors_of(found), tensors_of(quantized(stack(4), X)))
    assert done.stat().st_mtime_ns == written


def test_other_work_starts_anew(tmp_path: Path) -> None:
    """Another config, other data or weights have a folder of their own; how things are kept does not."""
    changed = stack(4)
    with torch.no_grad():
        changed.get_parameter("0.one.weight")[0, 0] += 1
    convert(prepared(tmp_path))
    for count, model in enumerate(
        [
            prepared(tmp_path, bits=3),
            calibrated(stack(4), X * 2, config(tmp_path)),
            calibrated(changed, X, config(tmp_path)),
            prepared(tmp_path, forward_dtype="bfloat16"),
        ],
        start=2,
    ):
        convert(model)
        assert len(list(tmp_path.iterdir())) == count
    convert(prepared(tmp_path, offload="disk", stop_after_capture=True))
    assert len(list(tmp_path.iterdir())) == 5


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """The error names it, the model is as it was, and goes on once the file is removed."""
    model = prepared(tmp_path)
    convert(model, inplace=False)
    path = sorted(tmp_path.rglob("*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with refused(model, ArtifactError, field="file", module=str(path)):
        convert(model)
    path.unlink()
    assert same_tensors(tensors_of(convert(model)), tensors_of(quantized(stack(4), X)))


def test_a_llama_goes_on(tmp_path: Path, solved: list[int]) -> None:
    """Its blocks are given masks, positions and a cache besides hidden states."""
    model = prepare(tiny_llama(), config(tmp_path))
    model(TOKENS)
    with pytest.raises(KeyboardInterrupt):
        convert(model)
    del solved[:]
    again = prepare(tiny_llama(), config(tmp_path))
    again(TOKENS)
    solved += [0] * 10
    expected = tensors_of(quantized(tiny_llama(), TOKENS))
    assert same_tensors(tensors_of(convert(again)), expected)
