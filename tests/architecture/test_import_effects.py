"""What importing the packages costs, loads and changes."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from public_api import loaded_by

IMPORT_TIME: Final = """
from time import process_time
start = process_time()
import tico_config
print(process_time() - start)
"""

# torch changes some of these itself when it is imported; what comes after it may not.
IMPORT_CHANGES: Final = """
import faulthandler, gc, locale, logging, os, random, signal, sys, warnings
import torch

def loggers():
    found = {"": logging.root} | logging.root.manager.loggerDict
    used = {name: each for name, each in found.items() if isinstance(each, logging.Logger)}
    states = {name: (each.level, list(each.handlers)) for name, each in used.items()}
    return {name: state for name, state in states.items() if any(state)}

def state():
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "gradient mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly detection": torch.is_anomaly_enabled(),
        "random state of torch": torch.get_rng_state().tolist(),
        "random state of Python": random.getstate(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "deterministic debug mode": torch.get_deterministic_debug_mode(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "TF32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "cuDNN": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "oneDNN": torch.backends.mkldnn.enabled,
        "quantized engine": torch.backends.quantized.engine,
        "flush denormal": float(torch.tensor(1e-40) * 1),
        "print options": vars(torch._tensor_str.PRINT_OPTS).copy(),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "loggers": loggers(),
        "environment variables": dict(os.environ),
        "search path": (list(sys.path), list(sys.meta_path), list(sys.path_hooks)),
        "interpreter hooks": (sys.excepthook, sys.displayhook, sys.gettrace(), sys.getprofile()),
        "recursion limit": sys.getrecursionlimit(),
        "garbage collector": (gc.isenabled(), gc.get_threshold()),
        "locale": locale.setlocale(locale.LC_ALL),
        "signals": {each: signal.getsignal(each) for each in signal.valid_signals()},
        "fault handler": faulthandler.is_enabled(),
    }

before = state()
import tico.quantization, tico.quantization.config
after = state()
print(*(name for name in before if before[name] != after[name]), sep=", ", end="")
"""


def test_config_loads_no_torch() -> None:
    """Configs can be made, read and checked where torch is not even installed."""
    assert "torch" not in loaded_by("tico_config")


def test_config_imports_in_a_fifth_of_a_second() -> None:
    """A command line tool that reads a config need not wait for it."""
    # One of many is enough, as only a machine busy with other work makes one slower than the code is.
    assert any(float(_output(IMPORT_TIME)) < 0.2 for _ in range(25))


def test_facade_loads_no_extra() -> None:
    """Extras are imported where they are used."""
    # torch itself loads some of them where they are installed.
    loaded = loaded_by("tico.quantization") - loaded_by("torch")
    assert (
        loaded & {"hypothesis", "numpy", "pytest", "safetensors", "scipy", "torchao", "tqdm", "transformers"}
        == set()
    )


def test_import_changes_nothing_global() -> None:
    """Other code in the process does not notice that the packages were imported."""
    assert _output(IMPORT_CHANGES) == ""


def _output(script: str) -> str:
    """Return what `script` prints in a fresh interpreter."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
