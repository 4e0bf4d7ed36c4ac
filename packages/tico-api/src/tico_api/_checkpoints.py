"""quantize_checkpoint: from the folder of a float model to that of a quantized one."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tico_api._facade import BUILT_IN, prepare
from tico_api._joint_run import joint_batches, require_one_folder
from tico_api._stages import (
    Stages,
    batch_digests,
    clear,
    config_text,
    finished_text,
    source_digest,
    stage_keys,
)
from tico_config import BaseConfig, ConfigError, DiskFullError, Found, Problem, UnsupportedError
from tico_modules import Offload, Tokenizer, map_checkpoint, save_quantized
from tico_observers import locked_folder
from tico_quantizers import Registry
from tico_quantizers.calibration import Batch, Ranks
from tico_quantizers.lifecycle import calibrate, convert_together

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # which builds of torch without it lack

_UNFINISHED: Final = ".unfinished"
_MANIFEST: Final = "quantized.json"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def quantize_checkpoint(  # noqa: PLR0913  # each is a choice of the user
    source_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    quant_config: BaseConfig | Sequence[BaseConfig],
    batches: Iterable[Batch],
    *,
    tokenizer: Tokenizer | None = None,
    shard_bytes: int = 5_000_000_000,
    trust_remote_code: bool = False,
    registry: Registry | None = None,
    group: ProcessGroup | None = None,
) -> Path:
    """Quantize the causal language model in `source_dir` without loading it; return the path of the manifest.

    The result is what `prepare`, `calibrate`, `convert` and `save_quantized` give, bit for bit.
    Memory holds one block at a time: parameters are mapped from the shards, and what is finished is moved to
    files at once. The disk of `out_dir` needs room for the quantized model three times, for the activations
    between two blocks, and, where floats are scaled (SmoothQuant, AWQ), for the scaled floats twice.

    An interrupted run, even one that was killed, goes on when it is called again with the same arguments. It
    does not repeat a finished config, a block that GPTQ has finished, or a block that AWQ or the search of
    SmoothQuant (``alpha="auto"``) has learned from. It does repeat the passes over `batches`; for PTQ and
    SmoothQuant these are nearly all of the work, one pass of the model each. Until the last file is written,
    nothing in `out_dir` looks like a model.

    Args:
        source_dir: a float checkpoint in the layout of transformers, see `map_checkpoint`.
        out_dir: is made, or holds what an interrupted run has left.
        quant_config: says which algorithm, and how; of several, each works on what the one before it leaves.
        batches: as for `calibrate`; empty for an algorithm that needs no data, such as HQQ. They are read
            once for their fingerprint, and once for each config; an iterator is made a list.
        tokenizer: as for `save_quantized`; by default that of `source_dir` is copied.
        shard_bytes: as for `save_quantized`.
        trust_remote_code: run code of the checkpoint, where its config names some.
        registry: as for `prepare`.
        group: processes of `torch.distributed` that each have their own part of the data, or none of it. All
            of them have to call this, with one `out_dir` that all see; the first one writes what is finished,
            and the others read it. The files are those of one process with the batches of all, in the order
            of the ranks. The same or another number of ranks can go on with an unfinished run. The group's
            time limit has to be longer than a rank needs for its data, and the first one to write a model.

    Raises:
        ConfigError: a config does not fit the model, there is none, `out_dir` holds something else, or the
            ranks of `group` do not all see it.
        LifecycleError: ranks were given different checkpoints or configs, or one of them fails, ends, or lags
            behind the group's time limit. What is finished is kept.
        UnsupportedError: an algorithm needs the model as a graph (PT2E), the model cannot be handled, or the
            algorithm is for one process alone.
        ArtifactError: the checkpoint is damaged.
        CalibrationError: `batches` reach no layer, or not all; or two ranks were given the same batch.
        MissingExtraError: transformers is not installed.
        DiskFullError: the disk is full; with what is kept. The run can go on later.
        OSError: a file cannot be read or written, for another reason.
    """
    source, out, ranks = Path(source_dir), Path(out_dir), Ranks(group)
    with _full_disk_told(out), ranks.guard():
        ranks.require_present()
        configs = _configs(quant_config)
        known = BUILT_IN.with_installed() if registry is None else registry
        _require_modules(configs, known)
        data = list(batches) if isinstance(batches, Iterator) else batches
        with _unfinished(source, out, ranks) as folder:
            offload = Offload(folder)
            model = map_checkpoint(source, offload, trust_remote_code=trust_remote_code)
            own = batch_digests(data)
            texts = [config_text(each, known) for each in configs]
            origin = source_digest(source, model)
            told = joint_batches(origin, texts, own, ranks)
            stages = Stages(folder, model, stage_keys(origin, texts, told))
            for number in range(_finished(out, stages, ranks), len(configs)):
                if number:
                    model, offload = stages.load(number)
                model = prepare(model, configs[number], registry=known, offload=offload)
                if own or not told:  # of several ranks one may have no data
                    calibrate(model, data)
                model = convert_together(model, ranks)
                gc.collect()  # what has calibrated it, whose parts refer to each other
                ranks.first("a finished config", partial(stages.keep, number, model))
                del model
                gc.collect()
            save = partial(_save, stages, out, tokenizer=tokenizer, shard_bytes=shard_bytes)
            ranks.first("the quantized model", save)
        ranks.gather("the end", None)
    return out / _MANIFEST


def _finished(out: Path, stages: Stages, ranks: Ranks) -> int:
    """Return how many configs need not be run again, as the first of the ranks has found.

    Raises:
        ConfigError: `out` holds a whole model of other arguments.
    """

    def look() -> int:
        if not _is_whole(out):
            return stages.finished
        _require_own(out, is_own=stages.finished == stages.count or _mark(out, stages.key).exists())
        return stages.count

    return ranks.first("what is finished", look)


def _save(stages: Stages, out: Path, *, tokenizer: Tokenizer | None, shard_bytes: int) -> None:
    """Write the model that the last config has left, unless that was done."""
    if not _is_whole(out):
        model, _ = stages.load(stages.count)
        save_quantized(model, out, tokenizer=tokenizer, shard_bytes=shard_bytes)


def _configs(given: object) -> tuple[BaseConfig, ...]:
    configs = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    wrong = [each for each in configs if not isinstance(each, BaseConfig)]
    if wrong or not configs:
        value = wrong[0] if wrong else Found("none")
        remedy = "pass for example GPTQConfig()"
        expected = "a config, or a list of them"
        raise ConfigError(Problem(field="quant_config", value=value, expected=expected, remedy=remedy))
    return tuple(each for each in configs if isinstance(each, BaseConfig))


def _require_modules(configs: Iterable[BaseConfig], registry: Registry) -> None:
    """Refuse algorithms that make a graph of the whole model.

    Raises:
        UnsupportedError: naming each of them.
    """
    names = [type(each).__name__ for each in configs if not registry.quantizer(each).works_in_place]
    problems = [
        Problem(
            field="quant_config",
            value=Found(name),
            expected="configs of algorithms that work block by block",
            sentence=f"{name} makes a graph of the whole model, which then has to fit into memory",
            remedy="load the model, and call prepare and convert",
        )
        for name in names
    ]
    if problems:
        raise UnsupportedError(*problems)


@contextmanager
def _full_disk_told(out: Path) -> Iterator[None]:
    """Say of a full disk what is kept, and how to go on.

    Raises:
        DiskFullError: a file could not be written for want of room.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(
            Problem(
                module=str(out),
                field="out_dir",
                value=Found("a full disk"),
                expected="a folder on a disk with room for what is written on the way",
                sentence=f"the disk is full; {finished_text(out / _UNFINISHED)}",
                remedy="make room, and call it again with the same arguments",
            )
        ) from error


@contextmanager
def _unfinished(source: Path, out: Path, ranks: Ranks) -> Iterator[Path]:
    """Give the folder in `out` for what is needed until the model is whole.

    The first of the ranks makes and removes it; the others only look whether it is theirs, too.

    Raises:
        ConfigError: `out` holds something else, or other ranks do not see it.
    """
    folder = out / _UNFINISHED
    with _made(source, out, folder) if ranks.number == 0 else nullcontext():
        require_one_folder(folder, ranks)
        yield folder


@contextmanager
def _made(source: Path, out: Path, folder: Path) -> Iterator[None]:
    """Make `folder` in `out`, and remove it once the model is whole.

    Where nothing was found before a failure, `out` is as it was.

    Raises:
        ConfigError: `out` holds something else.
    """
    _require_free(source, out)
    is_new = not out.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder):
        _require_free(source, out)
        try:
            yield
        except BaseException:
            with suppress(OSError):  # it holds what a next run goes on from
                folder.rmdir()
                if is_new:
                    out.rmdir()
            raise
        # Until all is removed, a mark tells whose model it is, should that be interrupted.
        for path in folder.glob("*.safetensors"):
            _mark(out, path.stem.rpartition("-")[2]).touch()
        clear(folder)
        folder.rmdir()
        for path in out.glob(_mark(out, "*").name):
            path.unlink()


def _mark(out: Path, key: str) -> Path:
    return out / f".finished-{key}"


def _require_free(source: Path, out: Path) -> None:
    """Refuse a folder that holds a model, or anything that no interrupted run has left."""
    ours = (out / _UNFINISHED).is_dir() or any(out.glob(_mark(out, "*").name))
    if out.exists() and not ours and (not out.is_dir() or any(out.iterdir())):
        if out.is_dir() and source.exists() and out.samefile(source):
            found = "the folder of the source"
        elif _is_whole(out):
            found = "a folder with a quantized model"
        else:
            found = "a folder with other files" if out.is_dir() else "a file"
        raise _taken(found, out)


def _is_whole(out: Path) -> bool:
    """Whether `out` holds a quantized model: its manifest is written last."""
    return (out / _MANIFEST).exists()


def _require_own(out: Path, *, is_own: bool) -> None:
    """Refuse a whole model of a run with other arguments, which was interrupted before it could clear up.

    Raises:
        ConfigError: it is none of a run with these.
    """
    if not is_own:
        raise _taken("a folder with a quantized model of other arguments", out)


def _taken(found: str, out: Path) -> ConfigError:
    return ConfigError(
        Problem(
            field="out_dir",
            value=Found(f"{found}, {out}"),
            expected="a folder that is not there yet, or one of an interrupted run",
            remedy="pass the path of a new folder, or remove what is there",
        )
    )
