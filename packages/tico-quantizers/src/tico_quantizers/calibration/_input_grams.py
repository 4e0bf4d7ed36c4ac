"""Gram matrices of the inputs of layers: one for each distinct input tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import attrs
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from tico_config import CalibrationError, Found, Problem, TicoError, TokenWeights
from tico_modules import Edit
from tico_quantizers.calibration._block_calls import BlockCalls
from tico_quantizers.calibration._forward_watch import Calibration, Recorder
from tico_quantizers.calibration._grouped_gram import GroupedGram
from tico_quantizers.calibration._hooks import before_call
from tico_quantizers.calibration._real_tokens import RealTokens
from tico_quantizers.calibration._row_numbers import RowNumbers, RowWatch
from tico_quantizers.calibration._snapshots import same_bits, version
from tico_quantizers.layers import (
    IntegerLayer,
    Layer,
    columns,
    feature_axis,
    groups,
    input_rows,
    input_tensor,
    output_added,
    reads_rows,
)


@attrs.define(eq=False)
class LayerInput:
    """An input of the pass that goes on, its `added` as `input_rows` takes it, and who has read it.

    `weights` are how much each of its rows counts; None counts all alike. `real` says which rows are no
    padding, or is None if all are: of shape (…) for an input (…, columns), and (samples, tokens) for that of
    a convolution. `twin` is the input that the float model has in its place, or None if it is the same.
    `numbers` are the tokens that its rows belong to.
    """

    original: Tensor
    layer: Layer
    kept: Tensor
    readers: list[str]
    added: tuple[int, ...] | None
    weights: Tensor | None = None
    real: Tensor | None = None
    twin: Tensor | None = None
    version: int | None = None
    numbers: RowNumbers = "all"

    def is_still(self, x: Tensor) -> bool:
        """Return whether `x` is the tensor that was read, and nothing has written to it since."""
        if self.original is not x:
            return False
        return same_bits(self.kept, x) if self.version is None else self.version == version(x)

    def rows(self, *, drifted: bool = False) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the rows (groups, rows, columns) that it has for the layer, without padding, and weights.

        If `drifted`, they are twice as long: the twin's less its own, then its own.
        """
        parts = input_rows(self.layer, self.kept, self.added)
        if drifted:
            twin = self.kept if self.twin is None else self.twin
            pairs = zip(parts, input_rows(self.layer, twin, self.added), strict=True)
            parts = (torch.cat([others - rows, rows], -1) for rows, others in pairs)
        weights = None if self.weights is None else self.weights.reshape(-1)
        for index, rows in enumerate(parts):
            real = self._real_of(index, rows.shape[1])
            if real is None:
                yield rows, weights
            else:
                yield rows[:, real], None if weights is None else weights[real]

    def pair_with(self, other: LayerInput) -> bool:
        """Take what `other` has of each token for what the float model has; return whether that is known."""
        match self.numbers, other.numbers:
            case Tensor() as own, Tensor() as others:
                self.twin = _rows_in_place(self.kept, own, other.kept, others)
                return True
            case "all", "all" if self.kept.shape == other.kept.shape:
                self.twin = other.kept
                return True
            case _:
                return False

    def features(self) -> Tensor:
        """Return the input without padding, its features in the last axis."""
        x = self.kept.movedim(feature_axis(self.layer), -1) if self.kept.ndim else self.kept
        return x if self.real is None else x[self.real]

    def _real_of(self, index: int, rows: int) -> Tensor | None:
        """Return which of the `rows` of a part are real; a convolution's parts are samples."""
        if self.real is None or reads_rows(self.layer):
            return None if self.real is None else self.real.reshape(-1)
        return self.real[index] if self.real.shape[1] == rows else None


@attrs.frozen(eq=False)
class ToldInput:
    """What is to be known of a `LayerInput` on other ranks; `readers` are its layers."""

    kept: Tensor
    readers: tuple[str, ...]
    added: tuple[int, ...] | None
    weights: Tensor | None
    real: Tensor | None
    twin: Tensor | None

    @classmethod
    def of(cls, item: LayerInput) -> Self:
        """Return that of `item`."""
        return cls(item.kept, tuple(item.readers), item.added, item.weights, item.real, item.twin)

    def input(self, layers: Mapping[str, Layer]) -> LayerInput:
        """Return the input of `layers`, by path."""
        return LayerInput(
            original=self.kept,
            layer=layers[self.readers[0]],
            kept=self.kept,
            readers=list(self.readers),
            added=self.added,
            weights=self.weights,
            real=self.real,
            twin=self.twin,
        )


class InputGrams(Recorder):
    """Gram matrices of what the layers read, shared by layers that read the same tensors.

    There is one for each set of layers that read the same tensors. Layers that always read the same tensor
    (query, key and value projections) thus share one matrix, whatever the model looks like, if they have the
    same `token_weights`. Rows that `tokens` name as padding are left out. With `asymmetric` the matrices are
    those of rows twice as long, which `LayerInput.rows` gives.

    Attributes:
        numbering: what tells which tokens layers read, for `pair_with`.
        unpaired: layers of which `pair_with` did not know what the float model has in the place of an input.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        token_weights: Mapping[str, TokenWeights] | None = None,
        *,
        tokens: RealTokens | None = None,
        disposable: bool = False,
        asymmetric: bool = False,
        numbering: RowWatch | None = None,
    ) -> None:
        self.layers = layers
        self.token_weights = token_weights or {}
        self.tokens = tokens or RealTokens()
        self.latest: dict[str, LayerInput] = {}
        self.numbering = numbering
        self.unpaired: set[str] = set()
        self._disposable = disposable
        self._asymmetric = asymmetric
        self._grams: dict[frozenset[str], GroupedGram] = {}
        self._digested: dict[frozenset[str], GroupedGram] | None = None
        self._inputs: list[LayerInput] = []
        self._kept: list[ToldInput] = []
        self._dropped: set[str] = set()

    def watch(
        self, calibration: Calibration, *, except_within: BlockCalls | None = None
    ) -> list[RemovableHandle]:
        """Set a hook on every layer that keeps its inputs while `calibration` watches.

        Those that it reads while a block of `except_within` runs are left out.
        """
        handles: list[RemovableHandle] = []
        for path, layer in self.layers.items():
            read = partial(self._read, calibration, except_within, path)
            handles.append(before_call(layer, read, calibration))
        return handles

    def _read(
        self,
        calibration: Calibration,
        except_within: BlockCalls | None,
        path: str,
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> None:
        calibration.require_own_pass()
        if except_within is None or not except_within.is_running:
            x, layer = input_tensor(path, args, kwargs), self.layers[path]
            self.note(path, layer, x, output_added(layer, x, args, kwargs))
            calibration.accept_unless_in_forward()

    def note(self, path: str, layer: Layer, x: Tensor, added: tuple[int, ...] | None = None) -> None:
        """Keep the input `x` of the layer at `path` until the pass ends."""
        for known in self._inputs:
            unread = path not in known.readers and self._same_rows(known, path, layer)
            if unread and known.is_still(x):
                known.readers.append(path)
                self.latest[path] = known
                return
        # A copy: the model may write to the tensor before the pass ends.
        new = LayerInput(x, layer, x.detach().clone(), [path], added, version=version(x))
        new.real = self.tokens.rows(x) if reads_rows(layer) else self.tokens.places(x)
        new.weights = self._given_weights(path, new)
        if self.numbering is not None and reads_rows(layer):
            new.numbers = self.numbering.numbers(layer, x)
        self.latest[path] = new
        self._inputs.append(new)

    def _same_rows(self, known: LayerInput, path: str, layer: Layer) -> bool:
        """Whether both make the same rows of the same input: linear layers without a grid of their own do."""
        plain = all(
            reads_rows(reader) and (not isinstance(reader, IntegerLayer) or reader.act_in is None)
            for reader in (known.layer, layer)
        )
        return plain and self.token_weights.get(known.readers[0]) == self.token_weights.get(path)

    def _given_weights(self, path: str, reading: LayerInput) -> Tensor | None:
        """Return what the config says of the first real tokens of the sequences (..., tokens, columns)."""
        given, x = self.token_weights.get(path), reading.original
        if not isinstance(given, tuple) or not reads_rows(reading.layer) or x.ndim < 3:
            return None
        counted = torch.ones(x.shape[:-1], dtype=torch.int64, device=x.device)
        counted = counted if reading.real is None else reading.real.to(torch.int64)
        place = (counted.cumsum(-1) - 1).clamp(0, len(given))
        return torch.tensor((*given, 1.0), dtype=torch.float32, device=x.device)[place]

    def pair_with(self, others: InputGrams) -> None:
        """Take the inputs of the pass that goes on in `others` for what the float model has in their place.

        Where a layer reads some of the tokens, as an expert does, those that it does not read in both models
        have no drift.
        """
        theirs, own = others.read_by(), self.read_by()
        for path, inputs in own.items():
            found = theirs.get(path, [])
            if len(found) == len(inputs):
                told = [item.pair_with(other) for item, other in zip(inputs, found, strict=True)]
                known = all(told)
            else:  # no token reaches an expert in the float model
                known = not found and all(isinstance(item.numbers, Tensor) for item in inputs)
            if not known:
                self.unpaired.add(path)

    def read_by(self) -> dict[str, list[LayerInput]]:
        """Return the inputs of the pass that goes on by the path of each layer that has read them."""
        found: dict[str, list[LayerInput]] = {}
        for item in self._inputs:
            for path in item.readers:
                found.setdefault(path, []).append(item)
        return found

    def sharing(self) -> list[frozenset[str]]:
        """Return who has read each input of the pass that goes on."""
        return [frozenset(item.readers) for item in self._inputs]

    def drop_unfinished(self) -> None:
        """Forget the inputs of a pass that did not end."""
        self._inputs = []
        self.latest = {}
        self._digested = None

    def digest(self) -> None:
        """Compute the matrices with the inputs of the pass that has ended, beside those that count.

        Disposable ones, which are thrown away if this fails, are changed in place.
        """
        digested = dict(self._grams)
        for item in self._inputs:
            self._observe(item, digested, in_place=self._disposable)
        self._digested = digested

    def _observe(self, item: LayerInput, grams: dict[frozenset[str], GroupedGram], *, in_place: bool) -> None:
        """Add the rows of `item` to those of its readers in `grams`."""
        readers = frozenset(item.readers)
        gram = grams.get(readers) or self._unread(item)
        try:
            for rows, weights in item.rows(drifted=self._asymmetric):
                gram = gram.observe(rows, weights, in_place=in_place)
            grams[readers] = gram.observe_features(item.features())
        except TicoError as error:
            raise located(error, item.readers[0]) from None

    def _unread(self, item: LayerInput) -> GroupedGram:
        """Return what has seen nothing yet of inputs like `item`."""
        width = columns(item.layer) * (2 if self._asymmetric else 1)
        return GroupedGram.empty(groups=groups(item.layer), columns=width)

    def accept(self) -> None:
        """Count what was digested."""
        if self._digested is None:
            self.digest()
        self._grams = self._digested or {}
        # The matrices of several ranks are those of one only if the rows are multiplied in its order.
        if _has_ranks() and not self._disposable:
            self._kept += [ToldInput.of(item) for item in self._inputs]
        else:
            self._dropped.update(*(item.readers for item in self._inputs))
        self._inputs = []
        self.latest = {}
        self._digested = None

    def tell(self) -> list[ToldInput]:
        """Return the inputs.

        Raises:
            CalibrationError: they were read before it was known that there are several ranks.
        """
        if self._dropped:
            raise CalibrationError(_read_too_early(sorted(self._dropped)))
        return self._kept

    def hear(self, told: Sequence[object], edit: Edit) -> None:
        """Have read what all ranks have, in their order."""
        grams: dict[frozenset[str], GroupedGram] = {}
        for items in told:
            for item in items if isinstance(items, list) else []:
                self._observe(item.input(self.layers), grams, in_place=True)
        edit.set_attribute(self, "_grams", grams)

    def matrices(self) -> Iterator[tuple[str, list[Tensor]]]:
        """Yield the paths of those who read an input, as one text, with its matrices."""
        for readers, gram in self._grams.items():
            yield " ".join(sorted(readers)), [part.matrix() for part in gram.parts if part.rows]

    def gram(self, path: str) -> GroupedGram | None:
        """Return the statistic of everything that the layer at `path` has read; None if that is nothing."""
        total: GroupedGram | None = None
        for readers in sorted(self._grams, key=sorted):
            if path in readers:
                gram = self._grams[readers]
                total = gram if total is None else total.merge(gram)
        return total


def _has_ranks() -> bool:
    """Whether there are other processes to convert the model with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _read_too_early(paths: Sequence[str]) -> Problem:
    several = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return Problem(
        module=paths[0],
        field="group",
        value=Found("data that came before the process group"),
        expected="a process group that is there before the calibration",
        sentence=f"it{several} read data before torch.distributed was initialized, and what it read was not"
        " kept for other ranks",
        remedy="call torch.distributed.init_process_group before data are run through the prepared model",
    )


def _rows_in_place(x: Tensor, numbers: Tensor, others: Tensor, other_numbers: Tensor) -> Tensor:
    """Return `x` with each row that has one of `numbers` replaced by that of `others` which has it, too."""
    order = other_numbers.argsort()
    place = torch.searchsorted(other_numbers[order], numbers).clamp(max=max(len(order) - 1, 0))
    if not len(order):
        return x
    both = other_numbers[order][place] == numbers
    rows = x.reshape(len(numbers), -1).clone()
    rows[both] = others.reshape(len(order), -1)[order[place[both]]].to(rows.dtype)
    return rows.view(x.shape)


def located(error: TicoError, path: str) -> TicoError:
    """Return `error` with the path of the module that it is about."""
    first, *others = (attrs.evolve(problem, module=path) for problem in error.problems)
    return type(error)(first, *others)
