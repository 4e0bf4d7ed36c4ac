"""What a tensor has to be before anything is computed from it."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from tico_config import CalibrationError, Found, NumericsError, Problem, UnsupportedError

OnNonfinite: TypeAlias = Literal["error", "ignore"]
"""What to do with NaN and infinity: refuse the tensor, or leave them out and count them."""

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_float_tensor(x: object, name: str) -> Tensor:
    """Return `x` if it is a dense floating-point tensor with data.

    Raises:
        UnsupportedError: it is something else; the error names `name`.

    >>> require_float_tensor(torch.zeros(3), "act_in").shape
    torch.Size([3])
    """
    if isinstance(x, FakeTensor):
        found = Found("a tensor of a trace, which has no data")
        raise UnsupportedError(
            Problem(
                module=name,
                field="x",
                value=found,
                expected="a dense tensor with data",
                sentence=f"x is {found}",
            )
        )
    return require_float_format(x, name)


def require_float_format(x: object, name: str) -> Tensor:
    """Return `x` if it is a dense floating-point tensor, one of a trace included.

    Raises:
        UnsupportedError: it is something else; the error names `name`.
    """
    if not isinstance(x, Tensor):
        sentence = f"x is a {type(x).__name__} and no tensor"
        raise UnsupportedError(
            Problem(module=name, field="x", value=x, expected="a tensor", sentence=sentence)
        )
    if x.dtype not in _FLOATS:
        expected = "a tensor of float16, bfloat16, float32 or float64"
        sentence = f"x is {x.dtype}, and not {expected}"
        raise UnsupportedError(
            Problem(module=name, field="dtype", value=x.dtype, expected=expected, sentence=sentence)
        )
    if x.layout is not torch.strided or x.is_quantized or x.is_nested or x.is_meta:
        found = Found(f"one of layout {x.layout} on {x.device}")
        raise UnsupportedError(
            Problem(
                module=name,
                field="x",
                value=found,
                expected="a dense tensor with data",
                sentence=f"x is {found}, and no dense tensor with data",
            )
        )
    return x


def require_float_kind(dtype: object, name: str) -> None:
    """Refuse anything but a floating-point format of torch.

    Raises:
        UnsupportedError: the error names `name`.
    """
    if dtype not in _FLOATS:
        expected = "float16, bfloat16, float32 or float64"
        sentence = f"values are of {expected}, not of {dtype!r}"
        raise UnsupportedError(
            Problem(module=name, field="dtype", value=dtype, expected=expected, sentence=sentence)
        )


def require_integers(codes: object, field: str, name: str) -> None:
    """Refuse anything but a dense tensor of integers with data.

    Raises:
        UnsupportedError: the error names `name` and `field`.
    """
    if isinstance(codes, Tensor):
        whole = not (codes.is_floating_point() or codes.is_complex() or codes.dtype is torch.bool)
        if whole and codes.layout is torch.strided and not codes.is_quantized and not codes.is_meta:
            return
    found = Found(f"{codes.dtype} on {codes.device}" if isinstance(codes, Tensor) else type(codes).__name__)
    sentence = f"{field} are integers in a dense tensor, not {found}"
    raise UnsupportedError(
        Problem(module=name, field=field, value=found, expected="a tensor of integers", sentence=sentence)
    )


def require_finite(x: Tensor, name: str, what: str = "x") -> None:
    """Refuse NaN and infinity.

    Raises:
        NumericsError: with how many there are and the index of the first.

    >>> require_finite(torch.zeros(3), "act_in")
    """
    if math.isfinite(x.detach().sum().item()):
        return  # nothing else makes a sum finite; this takes a tenth of the time
    bad = torch.nonzero(~torch.isfinite(x))
    if len(bad):
        found = Found(f"{len(bad)} that are not, the first at {tuple(bad[0].tolist())}")
        sentence = f"{what} holds NaN or infinity {len(bad)} times, first at {tuple(bad[0].tolist())}"
        raise NumericsError(
            Problem(
                module=name, field=what, value=found, expected="finite in every element", sentence=sentence
            )
        )


def require_choice(on_nonfinite: str) -> None:
    """Refuse anything but the two ways to treat NaN and infinity.

    Raises:
        CalibrationError: naming both.
    """
    if on_nonfinite not in ("error", "ignore"):
        problem = Problem(field="on_nonfinite", value=on_nonfinite, expected="'error' or 'ignore'")
        raise CalibrationError(problem)


def have_numbers(*tensors: Tensor) -> bool:
    """Tell whether the numbers of all `tensors` can be read here and now.

    They are on the CPU, and nothing traces, compiles or transforms the function that reads them.

    >>> have_numbers(torch.zeros(3)), have_numbers(torch.zeros(3, device="meta"))
    (True, False)
    """
    if torch.compiler.is_compiling():
        return False
    for each in tensors:  # a loop, since this is done in every call of a layer
        if type(each) is not Tensor or not each.is_cpu:
            return False
    # Inside a transform of torch.func, such as vmap, what looks like one number may stand for several.
    return not is_scripted() and torch._C._functorch.peek_interpreter_stack() is None


def is_scripted() -> bool:
    """Tell whether `torch.jit.trace` is running.

    >>> is_scripted()
    False
    """
    scripted: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # torch's lists
    return scripted


def arithmetic_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype to compute in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
