"""analyze, with the quantizers of this library and of installed packages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from tico_api._facade import BUILT_IN
from tico_config import GPTQConfig
from tico_quantizers import Registry, analysis
from tico_quantizers.analysis import CANDIDATES, Analysis, Budget
from tico_quantizers.calibration import Batch, TokenMask


def analyze(  # noqa: PLR0913  # what an analysis depends on, by name
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    budget: Budget,
    base: GPTQConfig | None = None,
    candidates: Sequence[Mapping[str, object]] = CANDIDATES,
    together: Sequence[str] = (),
    heldout: Iterable[Batch] | None = None,
    mask: TokenMask | None = None,
    points: int = 9,
    show_progress: bool = True,
    registry: Registry | None = None,
) -> Analysis:
    """Return a config that gives each layer the bits that cost least within `budget`, and the alternatives.

    It works in four steps:

    1. One calibration gathers the inputs of every layer in the float model.
    2. From these GPTQ solves for every layer at every candidate, and gives the loss of the layer's output.
    3. Losses of different layers cannot be compared. So the divergence of the model's output is measured with
       the layers of one block, then with those of one role (all ``q_proj``), at the smallest candidate and
       everything else in float. A factor for each block and one for each role make the losses add up to these
       divergences (iterative proportional fitting).
    4. An integer program finds the choice with the least sum of losses, for the budget and for `points` sizes
       from the smallest to the largest. The model is measured at each of these sizes.

    It takes one solution by GPTQ for each candidate and, for each held-out sample, 1 + blocks + roles passes
    of the model, then up to 2 + `points`. A budget of error takes up to 8 passes more, and converts the model
    with the config that is found, until the measured error is within it. Memory holds the float model twice,
    each candidate, and the Gram matrices of all layers.

    Args:
        model: a float model; afterwards it is as it was.
        batches: what to calibrate on, as for `calibrate`.
        budget: the most that the choice may take: bits on average, bytes, or measured error.
        base: the config of each layer, but for the bits; by default GPTQ in groups of 64. Its overrides still
            hold, and layers that they leave out stay float. Settings that need the data (`token_weights`,
            `true_sequential`, `asymmetric`) are in the config that is returned, but do not enter the losses.
        candidates: what a layer may get, each as fields that an override of `GPTQConfig` can set.
        together: paths, globs or ``re:`` patterns. Layers of one parent that match the same pattern get the
            same candidate, such as ``"*.[qkv]_proj"`` for a runtime that keeps them in one matrix. Experts
            that share a parameter always do.
        heldout: what to measure on, as `batches`. By default every fourth sample of `batches`, which
            calibration then does not read; a single sample is used for both.
        mask: which tokens are real, as for `calibrate`.
        points: how many sizes the curve has, 2 or more.
        show_progress: show bars on standard error, if that is a terminal and the extra `progress` is there.
        registry: which quantizer serves which config.

    Raises:
        ConfigError: an argument is wrong, the candidates do not fit the model, or none is within the budget;
            the error says what would be.
        CalibrationError: there are no batches, or the model gives no tensor of floats.
        UnsupportedError: a part of the model cannot be handled.
        LifecycleError: the model is prepared.
        MissingExtraError: SciPy is not installed, which comes with ``tico-api[analyze]``.

    >>> import torch
    >>> from tico_quantizers.analysis import Budget
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    >>> data = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    >>> found = analyze(model, [data[None]], budget=Budget(bits=4.2), show_progress=False)
    >>> found.chosen.bits <= 4.2, found.config.bits
    (True, 4)
    """
    chosen = BUILT_IN.with_installed() if registry is None else registry
    return analysis.analyze(
        model,
        batches,
        budget=budget,
        base=base,
        candidates=candidates,
        together=together,
        heldout=heldout,
        mask=mask,
        points=points,
        show_progress=show_progress,
        registry=chosen,
    )
