"""The complete state of a model and of the process, to show that a call that failed changed nothing."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tico_config import TicoError

E = TypeVar("E", bound=TicoError)

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


@attrs.frozen
class TensorState:
    """A parameter or buffer: which object it is, and every byte of it."""

    identity: int
    requires_grad: bool
    dtype: torch.dtype
    shape: torch.Size
    content: Tensor = attrs.field(eq=attrs.cmp_using(eq=torch.equal))

    @classmethod
    def of(cls, tensor: Tensor) -> TensorState:
        """Return the state of a tensor; one without data has no bytes."""
        if tensor.is_meta or is_lazy(tensor):
            return cls(id(tensor), tensor.requires_grad, tensor.dtype, torch.Size(), torch.empty(0))
        flat = tensor.detach().contiguous().reshape(-1).clone()
        return cls(id(tensor), tensor.requires_grad, tensor.dtype, tensor.shape, flat.view(torch.uint8))


@attrs.frozen
class ModuleState:
    """A module: which object it is, its mode, attributes and hooks, and its own tensors."""

    identity: int
    training: bool
    attributes: tuple[str, ...]
    hooks: dict[str, list[tuple[int, int]]]
    tensors: dict[str, TensorState]

    @classmethod
    def of(cls, module: nn.Module) -> ModuleState:
        """Return the state of a module without its children."""
        hooks = {name: [(key, id(hook)) for key, hook in getattr(module, name).items()] for name in _HOOKS}
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        tensors = {name: TensorState.of(tensor) for name, tensor in own}
        return cls(id(module), module.training, tuple(vars(module)), hooks, tensors)


@attrs.frozen
class ProcessState:
    """What a library must leave alone in the process it runs in."""

    settings: dict[str, object]
    random_state: Tensor = attrs.field(eq=attrs.cmp_using(eq=torch.equal))

    @classmethod
    def now(cls) -> ProcessState:
        """Return the state at this moment."""
        return cls(process_settings() | {"random numbers": random.getstate()}, torch.get_rng_state())


def process_settings() -> dict[str, object]:
    """Return the switches of torch and Python that hold for the whole process."""
    return {
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradient mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "TF32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "cuDNN": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "oneDNN": torch.backends.mkldnn.enabled,
        "warnings": list(warnings.filters),
    }


def modules_by_path(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module at each of its paths."""
    return dict(model.named_modules(remove_duplicate=False))


def state_of(model: nn.Module) -> dict[str, ModuleState]:
    """Return the state of every module of a model by its path."""
    return {path: ModuleState.of(module) for path, module in modules_by_path(model).items()}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of every parameter and buffer, to compare results bit for bit."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: tensor.detach().clone() for name, tensor in named}


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Tell whether both hold the same names with the same bits."""
    return one.keys() == other.keys() and all(
        TensorState.of(one[name]).content.equal(TensorState.of(other[name]).content)
        and one[name].dtype == other[name].dtype
        for name in one
    )


@contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """Assert that the block leaves the models and the process exactly as they were."""
    process, states = ProcessState.now(), [state_of(model) for model in models]
    yield
    assert ProcessState.now() == process
    for model, before in zip(models, states, strict=True):
        after = state_of(model)
        assert after.keys() == before.keys()
        changed = [path for path, state in after.items() if state != before[path]]
        assert changed == []


@contextmanager
def refused(
    model: nn.Module | None, error: type[E], *, field: str | None = None, module: str | None = None
) -> Iterator[pytest.ExceptionInfo[E]]:
    """Assert that the block raises exactly `error` about `field` and `module`, and changes nothing.

    Without a model, that nothing global changes.
    """
    models = () if model is None else (model,)
    with unchanged(*models), pytest.raises(error) as caught:
        yield caught
    assert type(caught.value) is error
    assert (caught.value.field, caught.value.module) == (field, module)
