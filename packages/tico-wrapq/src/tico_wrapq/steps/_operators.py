"""What is known of torch's functions: which of them are steps, and which only move values."""

from __future__ import annotations

import enum
from collections.abc import Hashable
from functools import lru_cache
from typing import Final, Protocol

import attrs


class Function(Protocol):
    """A function of torch."""

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call it."""

    def __hash__(self) -> int:
        """Return the same for the same function."""


class Effect(enum.Enum):
    """What a function does with the values that it is given."""

    COMPUTES = "a step: its result gets a point"
    MOVES = "its result holds values of its inputs"
    LOOKS_UP = "it makes data of anything that depends on an input"
    READS_NO_VALUES = "its result does not depend on the values that it is given"
    UNKNOWN = "it is in no table"


@attrs.frozen
class Operator:
    """A function of torch: the name of its steps, what it does, and whether it writes to its input."""

    name: str
    effect: Effect
    in_place: bool
    is_step: bool
    """Whether its result gets a point."""
    by_value: bool
    """Whether each value of its result follows from the values at the same place in its inputs."""
    may_be_named: bool
    """Whether a call of it has a name: it is a step, or may be one."""
    reads_first_alone: bool
    """Whether only the first argument's values reach the result; the second one says shape or format."""

    # Fields, since they are asked for at every call of a function in a forward pass.
    @classmethod
    def of(cls, name: str, *, in_place: bool) -> Operator:
        """Return what the tables say of the function `name`."""
        effect = _effect(name)
        is_step = effect in (Effect.COMPUTES, Effect.LOOKS_UP) and name not in LOOK_UPS
        return cls(
            name=name,
            effect=effect,
            in_place=in_place,
            is_step=is_step,
            may_be_named=is_step or effect is Effect.UNKNOWN,
            by_value=name in _BY_VALUE,
            reads_first_alone=name in _FIRST_ALONE,
        )


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ARITHMETIC: Final = _names("""
    add sub mul div pow neg abs maximum minimum reciprocal square sqrt rsqrt exp exp2 expm1 log log1p log2
    sin cos sinc erf lerp addcmul addcdiv hypot fmod remainder sign round floor ceil trunc frac clamp
    sinh cosh relu relu6 hardtanh leaky_relu prelu rrelu elu celu selu silu gelu mish tanh sigmoid hardsigmoid
    hardswish hardshrink softshrink softplus softsign tanhshrink threshold logsigmoid
""")
_STEPS: Final = _ARITHMETIC | _names("""
    dist cumsum cumprod logcumsumexp glu
    matmul bmm mm mv baddbmm addmm addbmm addmv einsum tensordot inner outer dot kron cdist
    softmax softmin log_softmax logsumexp
    mean sum nansum prod var std norm vector_norm normalize cosine_similarity
    index_add scatter_add scatter_reduce segment_reduce
    layer_norm rms_norm group_norm batch_norm instance_norm local_response_norm
    linalg_solve_triangular linalg_solve linalg_inv
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    interpolate upsample grid_sample lp_pool1d lp_pool2d fold solve_triangular
    view_as_real real imag angle
    cat stack hstack vstack dstack
""")
_LAYERS: Final = _names("""
    linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc
    grouped_mm _grouped_mm
""")
LEAVES: Final = _names("numpy array tolist dlpack")
"""What hands the values of a tensor to others than torch."""

LOOK_UPS: Final = _names("embedding embedding_bag packed_weight")
_MOVES: Final = _names("""
    get getitem setitem view view_as reshape reshape_as flatten unflatten ravel permute transpose swapaxes
    swapdims t adjoint movedim moveaxis squeeze unsqueeze expand expand_as broadcast_to repeat
    repeat_interleave tile split split_with_sizes chunk tensor_split unbind narrow select index_select gather
    take take_along_dim index where masked_fill masked_select masked_scatter fill zero fill_diagonal copy
    index_copy index_put scatter index_fill flip fliplr flipud roll rot90 clone detach contiguous alias
    to type type_as float double half bfloat16 cpu cuda requires_grad pin_memory _to_copy lift_fresh
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout pad constant_pad_nd unfold
    pixel_shuffle pixel_unshuffle channel_shuffle max_pool1d max_pool2d max_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d max_unpool1d max_unpool2d max_unpool3d
    view_as_complex complex polar conj resolve_conj
    amax amin aminmax argmax argmin argsort max min topk sort msort kthvalue median mode unique
    tril triu diag diagonal diag_embed as_strided nan_to_num meshgrid block_diag
    atleast_1d atleast_2d atleast_3d slice_scatter select_scatter diagonal_scatter column_stack row_stack
    activation_grid
""")
_READS_NO_VALUES: Final = _names("""
    zeros_like ones_like empty_like full_like rand_like randn_like randint_like
    new_zeros new_ones new_empty new_full new_tensor
    size stride dim ndimension numel nelement is_floating_point
""")
_BY_VALUE: Final = _ARITHMETIC | _names("""
    where masked_fill fill copy clone detach contiguous alias to type type_as float double half bfloat16 cpu
    cuda pin_memory requires_grad _to_copy nan_to_num dropout alpha_dropout expand expand_as broadcast_to
    activation_grid
""")
_FIRST_ALONE: Final = frozenset({"to", "type_as", "view_as", "reshape_as", "expand_as"})
_ALIASES: Final = {
    "multiply": "mul",
    "subtract": "sub",
    "divide": "div",
    "true_divide": "div",
    "truediv": "div",
    "floor_divide": "div",
    "floordiv": "div",
    "mod": "remainder",
    "negative": "neg",
    "absolute": "abs",
    "clip": "clamp",
    "clamp_min": "clamp",
    "clamp_max": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "chain_matmul": "matmul",
    "linalg_vector_norm": "norm",
    "linalg_norm": "norm",
    "special_expit": "sigmoid",
    "log_sigmoid": "logsigmoid",
    "linalg_solve_triangular": "solve_triangular",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "_safe_softmax": "softmax",
}
_REVERSED: Final = frozenset({"add", "sub", "mul", "div", "truediv", "pow", "matmul", "mod", "floordiv"})


@lru_cache(maxsize=4096)
def operator_of(function: Hashable) -> Operator:
    """Return what is known of `function`, by its name: methods, operators and functions are alike.

    >>> import torch
    >>> operator_of(torch.Tensor.__rsub__).name, operator_of(torch.Tensor.mul_).in_place
    ('sub', True)
    """
    name: object = getattr(function, "__name__", None)
    return operator_named(name.partition(".")[0] if isinstance(name, str) else str(function))


@lru_cache(maxsize=4096)
def operator_named(spelled: str) -> Operator:
    """Return what is known of the function that the text or torch calls `spelled`."""
    plain = spelled.strip("_") if spelled.startswith("__") else spelled.rstrip("_")
    in_place = spelled == "__setitem__" or (spelled.endswith("_") and not spelled.startswith("__"))
    if spelled.startswith("__"):
        in_place = in_place or (plain[:1] == "i" and plain[1:] in _REVERSED)
        plain = plain[1:] if plain[:1] in ("r", "i") and plain[1:] in _REVERSED else plain
    name = _ALIASES.get(plain, plain)
    return Operator.of(name, in_place=in_place)


def _effect(name: str) -> Effect:
    if name in _STEPS or name == ATTENTION:
        return Effect.COMPUTES
    if name in _LAYERS or name in LOOK_UPS:
        return Effect.LOOKS_UP
    if name in _READS_NO_VALUES:
        return Effect.READS_NO_VALUES
    return Effect.MOVES if name in _MOVES else Effect.UNKNOWN


ATTENTION: Final = "scaled_dot_product_attention"
