"""ablate: a quantized model with parts of it in float."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from tico_config import ConfigError, Found, Problem, UnsupportedError
from tico_quantizers.evaluation._outputs import require_finished
from tico_quantizers.evaluation._selection import QuantizedPart, Selection
from tico_quantizers.evaluation._switchboard import Switchboard


@contextmanager
def ablate(
    model: nn.Module,
    select: str | Selection | Iterable[str | Selection] = "*",
    *,
    keep: bool = False,
    float_model: nn.Module | None = None,
) -> Iterator[tuple[QuantizedPart, ...]]:
    """Let parts of the quantized `model` be float while the context lasts; yield these parts.

    The model is itself: it is called, measured and compared as before. When the context ends, also by an
    exception, each part is what it was. No weight is copied, unless it has to go to another device.

    Args:
        model: what `convert` has returned.
        select: what is float: a path, a glob or ``re:`` pattern, a `Selection` by kind, role or blocks, or
            several of these. A path stands for all that is in the module there.
        keep: leave only what is selected quantized, and let everything else be float.
        float_model: the model before `convert`, needed where the weights of integer layers are to be float.
            If scales were moved first, that is what came of it, before the weights were rounded. Layers that
            share one weight are switched together.

    Raises:
        ConfigError: nothing is selected, or a pattern matches nothing.
        UnsupportedError: the model is not quantized, or a graph; or there is no float weight that codes stand
            for.
        LifecycleError: the model is prepared.
        CalibrationError: it is in training mode.

    >>> import torch
    >>> from tico_config import DType
    >>> from tico_modules import QuantizedLinear
    >>> layer = nn.Linear(4, 4)
    >>> integer = nn.Sequential(QuantizedLinear.from_float(layer, DType.uint(2))).eval()
    >>> x = torch.ones(1, 4)
    >>> with ablate(integer, "0", float_model=nn.Sequential(layer)) as parts:
    ...     bool(torch.equal(integer(x), layer(x))), [(part.path, part.kind) for part in parts]
    (True, [('0', 'weights')])
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedError(Problem(field="model", value=model, expected="an nn.Module"))
    require_finished("model", model)
    board = Switchboard(model, float_model)
    chosen = selected(board, select)
    off = tuple(part for part in board.parts if (part in chosen) is not keep)
    with board.off(off):
        yield off


def selected(
    board: Switchboard, select: str | Selection | Iterable[str | Selection]
) -> frozenset[QuantizedPart]:
    """Return the parts of a model that are meant.

    Raises:
        ConfigError: there are none, or a pattern matches nothing.
    """
    given: list[object] = [select]
    if isinstance(select, Iterable) and not isinstance(select, str):
        given = list(select)
    strange = [each for each in given if not isinstance(each, str | Selection)]
    if strange or not given:
        value = strange[0] if strange else Found("nothing")
        expected = "a path, a pattern or a Selection, or several"
        raise ConfigError(Problem(field="select", value=value, expected=expected))
    texts = [Selection(each) for each in given if isinstance(each, str)]
    selections = [each for each in given if isinstance(each, Selection)]
    return frozenset(part for each in (*texts, *selections) for part in each.of(board.parts, board.blocks))
