"""A float model of transformers whose parameters are mapped from the files of its checkpoint."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from tico_config import ArtifactError, Found, MissingExtraError, Problem, UnsupportedError
from tico_modules._files.companions import CONFIG_NAME, GENERATION_NAME, read_json
from tico_modules._files.float_shards import map_shards
from tico_modules._files.saved_model import as_path
from tico_modules._tree.offload import Offload

_FLOATS: Final = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_REMOTE: Final = "auto_map"


def map_checkpoint(
    directory: str | os.PathLike[str], offload: Offload | None = None, *, trust_remote_code: bool = False
) -> nn.Module:
    """Return the causal language model in the folder `directory`, in evaluation mode.

    It is what ``AutoModelForCausalLM.from_pretrained(directory)`` gives, but takes no memory: parameters are
    mapped from the shards in their own dtype. They can be read only, and replaced; writing to one of them in
    place ends the process. What transformers computes while it loads, such as the parameter that holds all
    experts of a layer, is made one by one and moved to `offload`. Nothing is downloaded.

    Args:
        directory: has ``config.json`` and shards of safetensors.
        offload: where to move what does not stand in the files as it is; by default a temporary folder.
        trust_remote_code: run code in the folder, where the config names it.

    Raises:
        ArtifactError: a file is missing or damaged, a tensor is missing or of another shape or dtype than
            the config asks for; with all that is wrong of a kind.
        UnsupportedError: the checkpoint is quantized already, transformers has no causal language model for
            its config, or that is in the folder and `trust_remote_code` is not set.
        MissingExtraError: transformers is not installed.
        OSError: a file cannot be read, or the disk is full.
    """
    folder = as_path(directory)
    saved = _config_in(folder)
    _require_float(folder, saved)
    kind, config = _class_for(folder, saved, trust_remote_code=trust_remote_code)
    place = Offload(tempfile.gettempdir()) if offload is None else offload
    tensors = map_shards(folder, place)
    _require_dtypes(folder, tensors, getattr(config, "dtype", None))
    with _moving_to(place):
        model, findings = kind.from_pretrained(
            None, config=config, state_dict=tensors, output_loading_info=True, ignore_mismatched_sizes=True
        )
    _require_whole(folder, findings)
    place.move(model)
    _name_after(model, folder)
    return model.eval()


def _config_in(folder: Path) -> Mapping[str, object]:
    path = folder / CONFIG_NAME
    try:
        found = read_json(path)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        value = Found("a damaged one" if path.exists() else "none")
        expected, remedy = "the config of a transformers model", "pass the folder of a float checkpoint"
        raise ArtifactError(
            Problem(module=str(path), field="file", value=value, expected=expected, remedy=remedy)
        )
    return found


def _require_float(folder: Path, saved: Mapping[str, object]) -> None:
    quantization = saved.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise UnsupportedError(
            Problem(
                module=str(folder / CONFIG_NAME),
                field="quantization_config",
                value=Found(f"one of the method {method!r}"),
                expected="none, as of a float checkpoint",
                sentence=f"the checkpoint is quantized already, by the method {method!r}",
                remedy="pass the float checkpoint that it was made from",
            )
        )


class _Loaded(Protocol):
    """A class of models of transformers."""

    def from_pretrained(
        self,
        name: None,
        /,
        *,
        config: object,
        state_dict: Mapping[str, Tensor],
        output_loading_info: bool,
        ignore_mismatched_sizes: bool,
    ) -> tuple[nn.Module, Mapping[str, Iterable[object]]]:
        """Return the model with the tensors, and what was missing and so on."""


def _class_for(
    folder: Path, saved: Mapping[str, object], *, trust_remote_code: bool
) -> tuple[_Loaded, object]:
    """Return the class of the model, and its config.

    Raises:
        UnsupportedError: there is none, or it is in the folder and not trusted.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        remedy = "pip install 'tico-api[hf]'"
        expected, found = "the package transformers to be installed", Found("no such package")
        raise MissingExtraError(Problem(expected=expected, value=found, remedy=remedy)) from None
    try:
        config: object = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        with torch.device("meta"):
            empty: nn.Module = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # each class checks its config in its own way
        raise _class_error(folder, saved, error, trusted=trust_remote_code) from error
    return type(empty), config  # type: ignore[return-value]  # what transformers returns is untyped


def _class_error(
    folder: Path, saved: Mapping[str, object], error: Exception, *, trusted: bool
) -> UnsupportedError:
    reason = " ".join(str(error).split())[:200]
    remote = _REMOTE in saved and not trusted
    sentence = f"transformers makes no causal language model of it ({reason})"
    if remote:
        sentence = "its model is code in the folder, which is not run unless that is asked for"
    return UnsupportedError(
        Problem(
            module=str(folder / CONFIG_NAME),
            field=_REMOTE if remote else "config",
            value=Found(f"one of the type {saved.get('model_type')!r}"),
            expected="the config of a causal language model of transformers",
            sentence=sentence,
            remedy="read that code, then pass trust_remote_code=True" if remote else None,
        )
    )


def _require_dtypes(folder: Path, tensors: Mapping[str, Tensor], dtype: object) -> None:
    """Refuse tensors of no float dtype, and a checkpoint that is for the most part of another than `dtype`.

    What the config names is what transformers casts to, and a few tensors of another dtype are usual.

    Raises:
        ArtifactError: with every such tensor.
    """
    sizes: Counter[torch.dtype] = Counter()
    problems = []
    for name, tensor in tensors.items():
        sizes[tensor.dtype] += tensor.nbytes
        if tensor.ndim >= 2 and tensor.dtype not in _FLOATS:
            expected = "a float of 16, 32 or 64 bits"
            problems.append(
                Problem(module=str(folder), field=name, value=_named(tensor.dtype), expected=expected)
            )
    most = max(sizes, key=lambda each: sizes[each], default=None)
    if not problems and isinstance(dtype, torch.dtype) and most is not dtype:
        expected = f"{_name(dtype)}, as {CONFIG_NAME} says"
        remedy = f"let {CONFIG_NAME} name the dtype of the files, or save the model again"
        problems.append(
            Problem(module=str(folder), field="dtype", value=_named(most), expected=expected, remedy=remedy)
        )
    if problems:
        raise ArtifactError(*problems)


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _named(dtype: object) -> Found:
    return Found(_name(dtype))


@contextmanager
def _moving_to(offload: Offload) -> Iterator[None]:
    """Move every parameter that this thread gives a module to `offload` while the context lasts.

    Raises:
        OSError: the disk is full, whatever transformers makes of that.
    """
    thread = threading.get_ident()
    failures: list[OSError] = []

    def move(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if threading.get_ident() == thread:
            try:
                offload.move(parameter)
            except OSError as error:
                failures.append(error)
                raise

    handle = register_module_parameter_registration_hook(move)
    try:
        yield
    finally:
        handle.remove()
        if failures:
            raise failures[0]


def _require_whole(folder: Path, findings: Mapping[str, Iterable[object]]) -> None:
    """Refuse a checkpoint that lacks tensors of its model, or has them in other shapes.

    Raises:
        ArtifactError: with every such tensor.
    """
    problems = [
        Problem(
            module=str(folder),
            field=str(name),
            value=Found("no such tensor"),
            expected=f"one in the shards, as {CONFIG_NAME} says",
            remedy="copy or download the checkpoint again",
        )
        for name in sorted(map(str, findings["missing_keys"]))
    ]
    for name, found, expected in _triples(findings["mismatched_keys"]):
        wanted = f"of shape {expected}, as {CONFIG_NAME} says"
        problems.append(
            Problem(module=str(folder), field=name, value=Found(f"one of shape {found}"), expected=wanted)
        )
    problems += [
        Problem(module=str(folder), field="conversion", value=Found(str(each)), expected="none")
        for each in findings.get("error_msgs", ())
    ]
    if problems:
        raise ArtifactError(*problems)


def _triples(mismatched: Iterable[object]) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    for each in mismatched:
        match each:
            case (str(name), torch.Size() as found, torch.Size() as expected):
                yield name, tuple(found), tuple(expected)
            case _:
                raise TypeError(each)


class _Settings(Protocol):
    def __call__(self, folder: str, file: str, *, local_files_only: bool, _from_model_config: bool) -> object:
        """Return the generation settings in a file of `folder`."""


def _name_after(model: nn.Module, folder: Path) -> None:
    """Give `model` what ``from_pretrained`` gives it besides tensors: its name and generation settings."""
    from transformers import GenerationConfig

    for named in (model, getattr(model, "config", model)):
        setattr(named, "name_or_path", str(folder))  # noqa: B010
    if hasattr(model, "generation_config"):
        read: _Settings = getattr(GenerationConfig, "from_pretrained")  # noqa: B009
        own = (folder / GENERATION_NAME).is_file()
        file, options = (GENERATION_NAME, {}) if own else (CONFIG_NAME, {"_from_model_config": True})
        settings = read(str(folder), file, local_files_only=True, **options)
        setattr(model, "generation_config", settings)  # noqa: B010
