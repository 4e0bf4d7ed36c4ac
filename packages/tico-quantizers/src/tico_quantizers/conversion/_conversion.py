"""Layers replaced by integer ones, one after the other."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import final

import attrs
from torch import nn

from tico_config import Found, Problem, UnsupportedError
from tico_modules import (
    SQNR,
    Edit,
    LayerReport,
    Progress,
    QuantizedExperts,
    Report,
    named_modules,
    weight_sqnr,
)
from tico_quantizers.conversion._opened_experts import close_experts
from tico_quantizers.layers import Layer, QuantizedWeight, matrix, shape, with_weight
from tico_quantizers.protocol import Converted

_LOG = logging.getLogger("tico_quantizers")


@final
class Conversion:
    """The integer layers that have taken the places of `layers` so far, and the lines of the report.

    Args:
        model: the root of the model.
        layers: the layers to replace, by path.
        edit: makes every change, and can undo them.
        progress: is told of every layer, as the log is; None tells nobody, of what is only planned.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, Layer], edit: Edit, progress: Progress | None
    ) -> None:
        self.root = model
        self._layers = layers
        self._lines: dict[str, LayerReport] = {}
        self._modules: list[nn.Module] = []
        self._told: set[str] = set()
        self._edit = edit
        self._progress = progress

    def put(self, weight: QuantizedWeight) -> None:
        """Put an integer layer with these codes at the path that the line of the report has.

        Raises:
            UnsupportedError: there is no layer to replace, or one of another shape.
        """
        layer = self.layer_for(weight)
        line = _with_sqnr(weight, layer)
        new = with_weight(layer, weight.packed)
        self.root = self._edit.replace(self.root, layer, new)
        self._modules.append(new)
        self.note(line)

    def layer_for(self, weight: QuantizedWeight) -> Layer:
        """Return the layer that `weight` is to replace.

        Raises:
            UnsupportedError: it is no weight, or there is no layer of its path and shape.
        """
        if not isinstance(weight, QuantizedWeight):
            raise UnsupportedError(Problem(field="quantize", value=weight, expected="a QuantizedWeight"))
        path = weight.line.path
        layer = self._layers.get(path)
        if layer is None:
            expected = f"one of {', '.join(map(repr, list(self._layers)[:3]))}, …"
            sentence = f"a line of the report has the path {path!r}, where there is no layer to quantize"
            raise UnsupportedError(
                Problem(field="line.path", value=path, expected=expected, sentence=sentence)
            )
        if weight.packed.shape != shape(layer):
            raise UnsupportedError(
                Problem(
                    module=path,
                    field="packed",
                    value=Found(f"one of shape {weight.packed.shape}"),
                    expected=f"a weight of shape {shape(layer)}",
                )
            )
        return layer

    def put_all(self, weights: Iterable[QuantizedWeight]) -> None:
        """Put all of `weights`, in order."""
        for weight in weights:
            self.put(weight)

    def keep(self, module: nn.Module) -> None:
        """Count `module`, which was changed where it stands, as one that the conversion has left."""
        self._modules.append(module)

    def note(self, line: LayerReport) -> None:
        """Add a line to the report, and tell of it."""
        self._lines[line.path] = line
        self.tell(line)

    def tell(self, line: LayerReport) -> None:
        """Tell whoever follows the progress of a line of the report, if it was not told yet."""
        if self._progress is None or line.path in self._told:
            return
        self._told.add(line.path)
        loss = dict(line.figures).get("loss")
        told = "" if loss is None else f"loss {loss:.4g}, "
        self._progress.step(f"{line.path}: {told}{line.seconds:.2f} s")
        _LOG.info("%s: %s%.2f s", line.path, told, line.seconds)

    def notes(self) -> dict[str, str]:
        """Return what the report says of layers besides their figures, by path."""
        return {path: line.reason for path, line in self._lines.items() if line.reason}

    def close_experts(self) -> nn.Module:
        """Put integer modules in the place of opened experts, and return the root of the model."""
        closed = close_experts(self.root, self._edit)
        self.root = closed.root
        self._modules = [module for module in self._modules if id(module) not in closed.layers]
        self._modules += closed.experts
        return self.root

    def converted(self, left: Mapping[str, LayerReport]) -> Converted:
        """Return the result, with a line for each module, those in `left` included, in the model's order."""
        lines = {**left, **self._lines}
        lines |= {line.path: line for line in self._lines_of_experts(lines)}
        ordered = tuple(lines[path] for path, _ in named_modules(self.root) if path in lines)
        return Converted(root=self.root, modules=tuple(self._modules), report=Report(layers=ordered))

    def _lines_of_experts(self, lines: Mapping[str, LayerReport]) -> Iterator[LayerReport]:
        """Yield a line for each module of experts that was closed, besides those of its experts."""
        closed = {id(module) for module in self._modules}
        for path, module in named_modules(self.root):
            if isinstance(module, QuantizedExperts) and id(module) in closed:
                below = (lines[place].algorithm for place in lines if _is_below(place, path))
                known = LayerReport(path=path, module=type(module).__name__, algorithm=next(below, ""))
                yield attrs.evolve(lines.get(path, known), weight=", ".join(module.labels))


def _is_below(path: str, parent: str) -> bool:
    return path.startswith(f"{parent}." if parent else "")


def _with_sqnr(weight: QuantizedWeight, layer: Layer) -> LayerReport:
    """Return the line of `weight` with how far its codes are from what `layer` has."""
    sqnr = weight_sqnr(matrix(layer), weight.packed)
    figures = () if sqnr is None else ((SQNR, sqnr),)
    return attrs.evolve(weight.line, figures=(*weight.line.figures, *figures))
