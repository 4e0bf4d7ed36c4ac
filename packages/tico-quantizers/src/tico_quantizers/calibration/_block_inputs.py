"""What the layers of a model read, recorded such that its blocks can be run again one by one."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol, final

import attrs
import torch
from torch import nn

from tico_config import TokenWeights
from tico_modules import Edit, Offload, child_path, named_modules
from tico_observers import Statistic
from tico_quantizers.calibration._activation_store import ActivationStore
from tico_quantizers.calibration._block_calls import BlockCalls
from tico_quantizers.calibration._called_once import CalledOnce
from tico_quantizers.calibration._early_end import EarlyEnd
from tico_quantizers.calibration._forward_watch import Calibration, require_watched
from tico_quantizers.calibration._grouped_gram import GroupedGram
from tico_quantizers.calibration._input_grams import InputGrams
from tico_quantizers.calibration._layer_statistics import GRAM, read_gram, require_layers
from tico_quantizers.calibration._passes import Passes
from tico_quantizers.calibration._ranks import ALONE, Ranks
from tico_quantizers.calibration._reached_layers import ReachedLayers
from tico_quantizers.calibration._unreached import UNCALLED, UNREACHED, read_without_a_call
from tico_quantizers.layers import (
    Layer,
    as_layer,
    find_blocks,
    homes_in,
    less_read,
    peers_of,
    reads_rows,
    shape,
)


@attrs.frozen(kw_only=True)
class TokenRule:
    """How the tokens that a layer reads count.

    Attributes:
        weights: how much each of them counts, see `tico_config.GPTQConfig.token_weights`.
        least: an expert that reads fewer tokens has no Gram matrix, only their number.
    """

    weights: TokenWeights = "uniform"
    least: int = 0


@attrs.frozen(kw_only=True)
class BlockOptions:
    """How the blocks of a model are recorded and run again.

    Attributes:
        fixed: run all blocks before any is changed. Each runs once, on the outputs of the float blocks before
            it. Without it a block runs on the outputs of the changed blocks before it: once to learn from it,
            and once more when it is changed, to feed the next. The options below are for that case.
        compared: keep the outputs of the float blocks, for a `Finish` that compares with them. A model
            without blocks is then run again as one. Not with `paired`.
        paired: gather each input together with the one that the float model has in its place.
        true_sequential: change the layers of a block in the order in which they read, before the next ones
            are learned from.
        early_end: from the second forward pass of the user on, end a pass when there is nothing more to
            record. Where experts that read too little are rounded, no pass ends early.
        forward_dtype: compute in this dtype as far as it can be cast automatically.
        offload: keep what goes from block to block on disk, in this folder.
        narrow: keep it in bfloat16.
        skip_unreached: leave layers out that no data reach.
        all_experts: let experts in one parameter learn from all tokens, not from those alone that go to them.
        checkpoint: a folder for what is found of each block, so that an interrupted run can go on.
        gram_memory: how many bytes Gram matrices of the layers of a block may take. Where they would take
            more, the block is run again for other layers, which gives the same bits. None for no bound.
    """

    fixed: bool = False
    compared: bool = False
    paired: bool = False
    true_sequential: bool = False
    early_end: bool = False
    forward_dtype: torch.dtype | None = None
    offload: Path | None = None
    narrow: bool = False
    skip_unreached: bool = False
    all_experts: bool = False
    checkpoint: Path | None = None
    gram_memory: int | None = None

    @property
    def is_in_step(self) -> bool:
        """Whether the float model is run beside the changed one."""
        return self.paired or self.compared

    def on(self, offload: Offload | None) -> BlockOptions:
        """Return these options for a model that is larger than memory, if there is an `offload`."""
        if offload is None:
            return self
        place, checkpoint = self.offload or offload.folder, self.checkpoint or offload.folder
        ends = not (self.fixed or self.compared)
        return attrs.evolve(self, early_end=ends, offload=place, checkpoint=checkpoint)


class GramSource(Protocol):
    """Something that tells what layers have read."""

    def gram(self, path: str) -> GroupedGram | None:
        """Return what the layer at `path` has read; None if that is nothing."""


@final
class BlockInputs:
    """The calls of every block, and the Gram matrices of what layers read outside of their block.

    What layers read inside of blocks is gathered when the blocks are run again, by `run_blocks`. It leaves
    `notes` on layers for which that could not be done as it was asked for; tokens of those in `alike` then
    count alike. What layers have read elsewhere, in the float model, is `adopted`.

    Args:
        model: the model; its blocks are found from its structure.
        layers: the layers that matter, by path; `watch` may be told of fewer.
        options: how blocks are recorded and run again.
        reached: the count of the rows that layers have read, if somebody keeps it already.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        options: BlockOptions,
        reached: ReachedLayers | None = None,
    ) -> None:
        found = find_blocks(model, layers.values())
        if options.compared:
            found = found or (("", model),)
        self.options = options
        self.blocks = tuple(block for _, block in found)
        self.block_paths = tuple(path for path, _ in found)
        store = ActivationStore(offload=options.offload, narrow=options.narrow)
        self.calls = BlockCalls(self.blocks, store, whole=self.blocks == (model,))
        self.passes = Passes(model, store.another())
        self.early_end = EarlyEnd(self.calls, self.passes, is_off=not options.early_end)
        self.layers: Mapping[str, Layer] = {}
        self.rules: Mapping[str, TokenRule] = {}
        self.outside = self.strays = InputGrams({})
        self.called_once = CalledOnce([])
        self.notes: dict[str, str] = {}
        self.alike: set[str] = set()
        self.adopted: Mapping[str, GroupedGram] = {}
        self._reached = reached
        self._may_end_early = True
        self._block_of: dict[str, int | None] = {}
        self._peers = peers_of(model)
        self._calibration: Calibration | None = None

    @property
    def ranks(self) -> Ranks:
        """The processes that convert the model together."""
        return ALONE if self._calibration is None else self._calibration.ranks

    def record(self, calibration: Calibration) -> None:
        """Start to record the calls of the blocks."""
        self._calibration = calibration
        calibration.recorders = (*calibration.recorders, self.calls, self.passes)
        calibration.handles += self.calls.watch(calibration)
        calibration.handles += self.passes.watch(calibration)

    def watch(
        self,
        layers: Mapping[str, Layer],
        calibration: Calibration,
        rules: Mapping[str, TokenRule] | None = None,
    ) -> None:
        """Start to learn what `layers` read; for those without one of the `rules` all tokens count alike."""
        self.layers, self.rules = layers, rules or {}
        homes = homes_in(self.blocks)
        self._block_of = {path: homes.get(id(layer)) for path, layer in layers.items()}
        inside = {path: layer for path, layer in layers.items() if self._block_of[path] is not None}
        outside = {path: layer for path, layer in layers.items() if path not in inside}
        tokens, paired = calibration.tokens, self.options.paired
        self.outside = InputGrams(outside, self.token_weights(outside), tokens=tokens)
        self.strays = InputGrams(inside, self.token_weights(inside), tokens=tokens, asymmetric=paired)
        calibration.recorders = (*calibration.recorders, self.outside, self.strays)
        if self._reached is None:
            self._reached = ReachedLayers(layers)
            calibration.recorders = (*calibration.recorders, self._reached)
            calibration.handles += self._reached.watch(calibration)
        calibration.handles += self.outside.watch(calibration)
        calibration.handles += self.strays.watch(calibration, except_within=self.calls)
        if any(map(self._is_compared, inside)):  # only whole passes tell how many tokens each has read
            self._may_end_early = False
            self.early_end.is_off = True
        if not self.options.fixed:
            self._watch_ends(inside, outside, calibration)

    def only(self, paths: Collection[str]) -> BlockInputs:
        """Return what the layers at `paths` have read, without the others."""
        narrowed = copy.copy(self)
        narrowed.layers = {path: layer for path, layer in self.layers.items() if path in paths}
        return narrowed

    def adopt(self, statistics: Mapping[str, Statistic], paths: Collection[str] | None = None) -> None:
        """Go on as if the layers, or those at `paths`, had read also what `statistics` tell.

        Raises:
            CalibrationError: they tell nothing of a layer.
            ArtifactError: they are of other layers.
        """
        layers = {path: layer for path, layer in self.layers.items() if paths is None or path in paths}
        require_layers(statistics, layers, GRAM)
        read = {path: read_gram(path, layer, statistics) for path, layer in layers.items()}
        known = self.adopted
        self.adopted = {path: known[path].merge(read[path]) if path in known else read[path] for path in read}

    def of_float_model(self) -> BlockInputs:
        """Return what the layers that own data have reached read in the float model, all tokens alike."""
        rows = {} if self._reached is None else self._reached.rows
        found = self.only({path for path in self.layers if rows.get(path)})
        found.options, found.rules, found.adopted = BlockOptions(fixed=True), {}, {}
        return found

    def _is_compared(self, path: str) -> bool:
        """Whether it matters how many tokens the layer reads, compared with its peers in the same block."""
        number = self._block_of[path]
        within = "" if number is None or path not in self._peers else f"{self.block_paths[number]}."
        return bool(within) and self._least(path) > 0 and self._peers[path].startswith(within)

    def _watch_ends(
        self, inside: Mapping[str, Layer], outside: Mapping[str, Layer], calibration: Calibration
    ) -> None:
        """Watch what tells that a call of a block, or a pass, can end early."""
        own = [{path: self.layers[path] for path in self.paths_in(n)} for n in range(len(self.blocks))]
        self.called_once = CalledOnce(own)
        calibration.recorders = (*calibration.recorders, self.called_once)
        calibration.handles += self.called_once.watch(self.blocks, calibration)
        calibration.recorders = (*calibration.recorders, self.early_end)
        captured = (*self.blocks, *outside.values())
        calibration.handles += self.early_end.watch(captured, calibration, counts=_always)
        strays = tuple(inside.values())
        calibration.handles += self.early_end.watch(strays, calibration, counts=self._is_outside)

    def _is_outside(self) -> bool:
        return not self.calls.is_running

    def install(self, root: nn.Module, edit: Edit) -> None:
        """Let passes of `root` end early, if that is asked for, until `uninstall`."""
        if not self.early_end.is_off:
            self.early_end.install(root, edit)

    def ending_early(self, root: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which passes of `root` end early, if that changes nothing."""
        return self.early_end.on(root) if self._may_end_early else nullcontext()

    def uninstall(self, root: nn.Module, edit: Edit) -> None:
        """Let passes of `root` run to their end again, when `edit` is done."""
        self.early_end.uninstall(root, edit)

    def paths_in(self, number: int | None) -> tuple[str, ...]:
        """Return the layers of one block; of None, those that no block or more than one holds."""
        return tuple(path for path in self.layers if self._block_of[path] == number)

    def holds_all(self, number: int) -> bool:
        """Return whether every layer in block `number` is among those that are learned from."""
        own, path = set(self.paths_in(number)), self.block_paths[number]
        inside = named_modules(self.blocks[number])
        return all(child_path(path, name) in own for name, module in inside if as_layer(module) is not None)

    def token_weights(self, paths: Iterable[str]) -> dict[str, TokenWeights]:
        """Return what counts how much for each of `paths`."""
        return {
            path: "uniform" if path in self.alike else self.rules[path].weights
            for path in paths
            if path in self.rules
        }

    def begin_notes(self) -> None:
        """Forget the notes of an earlier run."""
        self.notes, self.alike = {}, set()

    def note(self, paths: Iterable[str], text: str) -> None:
        """Leave a note on layers, behind those that are there."""
        for path in paths:
            known = self.notes.get(path)
            self.notes[path] = text if known is None else f"{known}; {text}"

    def leave_unreached(self, edit: Edit) -> dict[str, str]:
        """Leave out layers that no data have reached, unless they are experts; return why, by path.

        Those whose weight is read without a call are always left out, others if the options say so.

        Raises:
            CalibrationError: with every one that the options do not leave out.
        """
        rows, rounded = self._rows(), {path for path in self.experts() if self._least(path)}
        missing = {
            path: layer for path, layer in self.layers.items() if path not in rounded and path not in rows
        }
        read = read_without_a_call(self.calls, self.passes, missing)
        if not self.options.skip_unreached or len(missing) == len(self.layers):
            require_watched(set(), tuple(path for path in missing if path not in read))
        kept = {path: layer for path, layer in self.layers.items() if path not in missing}
        edit.set_attribute(self, "layers", kept)
        return {path: UNCALLED if path in read else UNREACHED for path in missing}

    def _least(self, path: str) -> int:
        """Return how many tokens an expert has to read to have a Gram matrix."""
        return self.rules[path].least if path in self.rules else 0

    def _rows(self) -> Counter[str]:
        rows: Counter[str] = Counter() if self._reached is None else self._reached.rows.copy()
        rows.update({path: read.rows for path, read in self.adopted.items() if read.rows})
        return rows

    def experts(self) -> frozenset[str]:
        """Return the layers that read less than one of their peers in a list.

        Peers are of one shape, and convolutions only if nothing reached them: they may read fewer positions
        where an image is smaller. The blocks of a chain, of which each reads the one before, are no peers.
        """
        rows, lists = self._rows(), self._chains()
        chained = tuple(
            f"{self._peers[path]}."
            for path in self.block_paths
            if path in self._peers and path.rpartition(".")[0] in lists
        )
        peers = {
            path: f"{self._peers[path]} {shape(layer)}"
            for path, layer in self.layers.items()
            if path in self._peers and not self._peers[path].startswith(chained)
        }
        less = less_read(rows, peers)
        return frozenset(path for path in less if reads_rows(self.layers[path]) or not rows.get(path))

    def _chains(self) -> Collection[str]:
        """Return the lists whose blocks are a chain: all lists of blocks where no calls would show it."""
        if any(self.calls.accepted) or not self.adopted:
            return self.calls.lists(self.block_paths)
        return {path.rpartition(".")[0] for path in self.block_paths}

    def statistics(self, paths: tuple[str, ...], *sources: GramSource) -> dict[str, GroupedGram | int]:
        """Return what each of the layers at `paths` has read, as the `sources` tell.

        Of an expert that read too little this is only the number of tokens.

        Raises:
            CalibrationError: with every other one that has read nothing.
        """
        found: dict[str, GroupedGram] = {}
        for path in paths:
            for gram in (source.gram(path) for source in sources):
                if gram is not None:
                    found[path] = found[path].merge(gram) if path in found else gram
        rows = {path: found[path].rows if path in found else 0 for path in paths}
        experts = self.experts()
        starved = {
            path: count for path, count in rows.items() if path in experts and count < self._least(path)
        }
        read = {path for path, count in rows.items() if count}
        require_watched(read, tuple(path for path in rows if path not in starved))
        return found | starved


def _always() -> bool:
    return True
