"""A converted model written in the format of a runtime, and run by it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal, TypeAlias

from torch import nn

from tico_config import ConfigError, Found, MissingExtraError, Problem, UnsupportedError
from tico_export._built_in import BUILT_IN
from tico_export._result import ExportResult
from tico_export._verification import Comparison
from tico_export._verification import verify as verify_export
from tico_export.protocol import AnyExporter, Example, ExporterRegistry, ExportTarget
from tico_export.source import Source, overflow_problems
from tico_modules import Progress

Verify: TypeAlias = Literal["require"] | bool

_NAMED: Final = 3  # in a note


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    target: ExportTarget,
    *,
    args: tuple[object, ...] | None = None,
    kwargs: Mapping[str, object] | None = None,
    dynamic_shapes: object = None,
    verify: Verify = True,
    registry: ExporterRegistry | None = None,
) -> ExportResult:
    """Write a converted model to `path` in the format `target`, and have what reads the format check it.

    Everything that the format cannot hold is refused before anything is written, all at once. A failed export
    leaves the model and the folder as they were, and the same model gives the same bytes in every process.

    Args:
        model: what `convert` returned, in evaluation mode.
        path: a file or folder that does not exist yet, in a folder that does.
        target: the format with its options.
        args: positional example inputs.
        kwargs: example inputs by name. Graph formats are traced with the example inputs, and every export is
            verified on them.
        dynamic_shapes: which of their axes vary, as `torch.export.export` takes it, for graph formats.
        verify: True has the format's runtime load the export, run it on the example inputs, and compared with
            the model by its reference back end; where the runtime is not installed or runs no such export, or
            there are no example inputs, the result says "not verified" and why. ``"require"`` makes that an
            error; False leaves it out.
        registry: which exporter serves which target; by default the built-in ones and those of installed
            packages in the entry-point group ``tico.exporters``.

    Returns:
        What was written, and the figures of the comparison.

    Raises:
        UnsupportedError: the model is not converted, the target is none, or the format cannot hold the model.
        LifecycleError: the model is in training mode.
        ConfigError: the path exists, example inputs are missing, or `verify` is none of the three.
        MissingExtraError: a package is not installed that writes the format, or that has to verify it.
        ArtifactError: the runtime gives something else than the model, beyond the bound of the format.
        OSError: nothing can be written there.
    """
    _require_verify(verify)
    place = _require_place(path)
    exporter = _exporter(target, registry)
    example = _example(args, kwargs, dynamic_shapes)
    _require_example(target, example, verify)
    source = Source.read(model)
    problems = [*overflow_problems(source), *exporter.every_problem(source)]
    if problems:
        raise UnsupportedError(*problems)
    with (
        TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as folder,
        Progress(f"export to {target.name}", total=2, unit="step") as bar,
    ):
        written = Path(folder) / place.name
        bar.tell("writing")
        exporter.write(source, example, written)
        bar.step("verifying")
        consumer, compared = _verified(exporter, source, example, written, verify)
        size = sum(each.stat().st_size for each in Path(folder).rglob("*") if each.is_file())
        _move(Path(folder), place)
    figures: dict[str, object] = {} if compared is None else _fields(compared)
    compared_notes = () if compared is None else compared.notes
    return ExportResult(
        path=place,
        target=target.name,
        verified=compared is not None,
        consumer=consumer,
        bytes=size,
        content_bytes=source.content_bytes,
        notes=(*exporter.notes(source), *_float_notes(source), *compared_notes),
        **figures,  # type: ignore[arg-type]  # the fields of `Comparison`, which are its own
    )


def _float_notes(source: Source) -> Iterator[str]:
    """Say which weights are left in float, the first of them by name."""
    names = source.float_weights
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"weights left in float: {', '.join(names[:_NAMED])}{more}"


def _fields(compared: Comparison) -> dict[str, object]:
    names = ("sqnr", "bound", "max_difference", "equal_share", "kl", "perplexities")
    return {name: getattr(compared, name) for name in names}


def _require_verify(verify: object) -> None:
    if not (isinstance(verify, bool) or verify == "require"):
        raise ConfigError(Problem(field="verify", value=verify, expected='True, False or "require"'))


def _require_place(path: str | os.PathLike[str]) -> Path:
    place = Path(path).absolute()
    if place.exists() or place.is_symlink():
        remedy = "remove it, or choose another path"
        raise ConfigError(
            Problem(field="path", value=str(place), expected="one that does not exist yet", remedy=remedy)
        )
    if not place.parent.is_dir():
        expected, remedy = "one in a folder that exists", "make the folder first"
        raise ConfigError(Problem(field="path", value=str(place), expected=expected, remedy=remedy))
    return place


def _exporter(target: object, registry: ExporterRegistry | None) -> AnyExporter:
    if not isinstance(target, ExportTarget):
        is_type = isinstance(target, type) and issubclass(target, ExportTarget)
        remedy = f"write {target.__name__}()" if is_type and isinstance(target, type) else None
        raise UnsupportedError(
            Problem(field="target", value=target, expected="an ExportTarget", remedy=remedy)
        )
    chosen = ExporterRegistry(BUILT_IN).with_installed() if registry is None else registry
    return chosen.exporter(target)


def _example(args: object, kwargs: Mapping[str, object] | None, dynamic_shapes: object) -> Example | None:
    if args is not None and not isinstance(args, tuple):
        remedy = "write args=(x,) for one input"
        raise ConfigError(
            Problem(field="args", value=Found(type(args).__name__), expected="a tuple", remedy=remedy)
        )
    if not args and not kwargs:
        return None
    return Example(args=args or (), kwargs=dict(kwargs or {}), dynamic_shapes=dynamic_shapes)


def _require_example(target: ExportTarget, example: Example | None, verify: Verify) -> None:
    if example is None and (target.needs_example or verify == "require"):
        why = "writing a graph needs them" if target.needs_example else "verify='require' needs them"
        sentence = f"there are no example inputs, and {why}"
        remedy = "pass args=(...) or kwargs={...}"
        found, expected = Found("none"), "example inputs"
        raise ConfigError(
            Problem(field="args", value=found, expected=expected, sentence=sentence, remedy=remedy)
        )


def _verified(
    exporter: AnyExporter, source: Source, example: Example | None, written: Path, verify: Verify
) -> tuple[str, Comparison | None]:
    """Return who has run the export, or why nobody has, and what came of it."""
    if verify is False:
        return "not verified: verify=False", None
    if example is None:
        return "not verified: there are no example inputs", None
    try:
        consumer = exporter.consumer(source)
    except (MissingExtraError, UnsupportedError) as error:
        if verify == "require":
            raise
        return f"not verified: {error}", None
    return consumer.name, verify_export(source.model, example, consumer, written)


def _move(folder: Path, place: Path) -> None:
    """Move what was written to its place, the export itself last."""
    made = sorted(folder.iterdir(), key=lambda each: each.name == place.name)
    taken = [each.name for each in made if (place.parent / each.name).exists()]
    if taken:
        expected, found = "no files of these names", Found(", ".join(taken))
        raise ConfigError(Problem(field="path", value=found, expected=expected, remedy="choose another path"))
    moved: list[Path] = []
    try:
        for each in made:
            moved.append(each.rename(place.parent / each.name))  # noqa: PERF401  # for undoing
    except OSError:
        for done in moved:
            shutil.rmtree(done) if done.is_dir() else done.unlink()
        raise
