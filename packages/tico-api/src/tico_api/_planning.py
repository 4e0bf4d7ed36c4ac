"""plan, with the quantizers of this library and of installed packages."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tico_api._facade import BUILT_IN
from tico_config import BaseConfig
from tico_quantizers import Registry, lifecycle
from tico_quantizers.planning import Plan


def plan(
    model: nn.Module, config: BaseConfig | Sequence[BaseConfig], *, registry: Registry | None = None
) -> Plan:
    """Return what `prepare` and `convert` will do to `model`, module by module, before there are data.

    No values are read or copied, so the model may be on the meta device. Each module has the line that
    `report` will have, the rule that decided, the bytes before and after, and the reason if it stays float.
    What only data show, such as the layers that SmoothQuant pairs or the steps of a forward, is listed as
    undecided.

    Args:
        model: a float model, or one that another algorithm has converted; it is left alone.
        config: says which algorithm, and how; or several, each for what the one before it leaves.
        registry: which quantizer serves which config; by default those of this library and of installed
            packages.

    Raises:
        ConfigError: the config does not fit the model: an override matches nothing, groups do not divide
            columns, or `target` does not take what is asked for; with all that is wrong at once.
        UnsupportedError: a part of the model cannot be handled, or the algorithm has no plan, as PT2E, which
            needs example inputs.
        LifecycleError: the model is prepared.

    >>> import torch
    >>> from tico_config import GPTQConfig
    >>> with torch.device("meta"):
    ...     model = nn.Sequential(nn.Linear(4096, 4096), nn.LayerNorm(4096))
    >>> made = plan(model, GPTQConfig(group_size=128))
    >>> [(line.path, line.bits, line.bytes_before, line.bytes_after) for line in made.lines]
    [('0', 4, 67125248, 9453568), ('1', None, 32768, 32768)]
    """
    found = BUILT_IN.with_installed() if registry is None else registry
    return lifecycle.plan(model, config, registry=found)
