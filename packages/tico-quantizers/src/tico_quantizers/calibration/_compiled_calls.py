"""Calls of a model that torch.compile runs, from which nothing can be learned."""

from __future__ import annotations

import sys

import torch

from tico_config import Found, Problem, UnsupportedError

_COMPILER = "torch._dynamo"


def require_eager_call() -> None:
    """Refuse a forward pass that torch.compile runs: what it computes is not what calibration watches.

    Raises:
        UnsupportedError: with the way out.
    """
    if torch.compiler.is_dynamo_compiling():
        raise RuntimeError("calibration")  # the compiler gives up here, and calls the model as it is
    # torch has no public way to ask whether a compiled function is running. The question stands here and not
    # in a function of its own, which the compiler would trace by itself.
    if _COMPILER in sys.modules and callable(torch._C._dynamo.eval_frame.get_eval_frame_callback()):
        raise UnsupportedError(
            Problem(
                field="model",
                value=Found("a call that torch.compile runs"),
                expected="a call of the prepared model itself",
                sentence="it is compiled, and calibration sees nothing of what a compiled model does",
                remedy="calibrate the model that prepare returned, and compile what convert returns",
            )
        )
