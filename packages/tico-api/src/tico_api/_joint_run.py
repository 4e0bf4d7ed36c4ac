"""Processes that quantize a checkpoint together: one folder, one source, and data of its own for each."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tico_config import ConfigError, Found, Problem
from tico_modules import library_versions
from tico_quantizers.calibration import Ranks, require_apart, require_same

_DIFFERENCES: Final[Mapping[str, str]] = {
    "source": "were given different checkpoints",
    "configs": "were given different configs",
    "versions": "have different versions of the libraries",
}


def require_one_folder(folder: Path, ranks: Ranks) -> None:
    """Refuse ranks whose `folder` is not that of the first one.

    Raises:
        ConfigError: naming the ranks that do not see what the first one writes.
        OSError: the first one cannot write.
    """
    if ranks.count == 1:
        return
    probe = folder / f"probe-{secrets.token_hex(8)}"

    def written() -> str:
        probe.touch()
        return probe.name

    try:
        name = ranks.first("which file the first rank has written", written)
        seen = ranks.gather("whether they see it", (folder / name).exists())
    finally:
        probe.unlink(missing_ok=True)
    blind = [str(rank) for rank, sees in enumerate(seen) if not sees]
    if blind:
        who = f"rank {blind[0]} does" if len(blind) == 1 else f"ranks {', '.join(blind)} do"
        sentence = f"{who} not see what rank 0 writes"
        expected = "one folder of a file system that all ranks share"
        remedy = "pass the path of such a folder on all ranks"
        value = Found(f"{folder.parent}, of which {sentence}")
        raise ConfigError(Problem(field="out_dir", value=value, expected=expected, remedy=remedy))


def joint_batches(source: str, configs: Sequence[str], batches: Sequence[str], ranks: Ranks) -> list[str]:
    """Return the digests of the batches of all ranks, in their order.

    Raises:
        LifecycleError: the ranks were given different checkpoints or configs.
        CalibrationError: two of them were given the same batch.
    """
    about = {"source": source, "configs": "; ".join(configs), "versions": repr(library_versions())}
    require_same(ranks.gather("what they begin with", about), _DIFFERENCES)
    told = ranks.gather("their batches", list(batches))
    require_apart(told)
    return [each for of_rank in told for each in of_rank]
