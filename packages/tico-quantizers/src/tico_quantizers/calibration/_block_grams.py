"""Gram matrices of what layers read, block by block, so that not all of them are held at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from tico_quantizers.calibration._block_calls import BlockCalls
from tico_quantizers.calibration._forward_watch import Calibration
from tico_quantizers.calibration._grouped_gram import GroupedGram
from tico_quantizers.calibration._input_grams import InputGrams
from tico_quantizers.layers import Layer, homes_in


class BlockGrams:
    """What some layers of a float model read.

    Blocks are run again one by one for the layers inside; what layers read outside of blocks is taken
    from the user's own passes.
    """

    def __init__(self, blocks: tuple[nn.Module, ...]) -> None:
        self.calls = BlockCalls(blocks)
        self._homes = homes_in(blocks)
        self._inside: list[dict[str, Layer]] = [{} for _ in blocks]
        self._elsewhere: dict[str, Layer] = {}
        self._outside = self._strays = InputGrams({})

    def watch(self, layers: Mapping[str, Layer], calibration: Calibration) -> None:
        """Start to watch `layers` with `calibration`, which has to record the calls of blocks by itself."""
        for path, layer in layers.items():
            home = self._homes.get(id(layer))
            (self._elsewhere if home is None else self._inside[home])[path] = layer
        inside = {path: layer for path, layer in layers.items() if path not in self._elsewhere}
        self._outside, self._strays = InputGrams(self._elsewhere), InputGrams(inside)
        calibration.recorders = (*calibration.recorders, self._outside, self._strays)
        calibration.handles += self._outside.watch(calibration)
        calibration.handles += self._strays.watch(calibration, except_within=self.calls)

    def by_block(self) -> Iterator[dict[str, GroupedGram]]:
        """Yield what was read, by path: for each block its layers, then the others.

        The model must stay as it is until the last.
        """
        outputs: dict[tuple[int, int], Tensor] = {}
        last = len(self._inside) - 1
        for number, layers in enumerate(self._inside):
            wanted = self.calls.wanted_by_next(number) if number < last else frozenset()
            grams = InputGrams(layers, disposable=True)
            outputs = self._run(number, grams, outputs, wanted)
            yield _by_path(layers, grams, self._strays)
        yield _by_path(self._elsewhere, self._outside)

    def _run(
        self,
        number: int,
        grams: InputGrams,
        outputs: Mapping[tuple[int, int], Tensor],
        wanted: frozenset[tuple[int, int]],
    ) -> dict[tuple[int, int], Tensor]:
        """Run a block again on the `outputs` of the one before; return those that the next one wants."""
        collector = Calibration(grams)
        collector.in_forward = True
        handles = grams.watch(collector)
        found: dict[tuple[int, int], Tensor] = {}
        try:
            for tensors in self.calls.run(number, outputs, keep=bool(wanted)):
                collector.accept()
                found |= {key: tensor for key, tensor in tensors.items() if key in wanted}
        finally:
            for handle in handles:
                handle.remove()
        return found


def _by_path(paths: Mapping[str, Layer], *sources: InputGrams) -> dict[str, GroupedGram]:
    found: dict[str, GroupedGram] = {}
    for path in paths:
        for gram in (source.gram(path) for source in sources):
            if gram is not None:
                found[path] = found[path].merge(gram) if path in found else gram
    return found
