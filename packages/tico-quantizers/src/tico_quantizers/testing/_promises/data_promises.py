"""How the result depends on the data: on the rows, and on nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tico_quantizers.lifecycle import convert
from tico_quantizers.testing._model_state import same_tensors, tensors_of
from tico_quantizers.testing._models import values
from tico_quantizers.testing._promises.suite import PromiseSuite

_PARALLEL = 4 * 32_768
"""Numbers in a tensor that torch splits between threads: it does so from 32768 on."""


class DataPromises(PromiseSuite):
    """The promises about threads, splits, padding and short floats."""

    def test_number_of_threads_changes_no_bit(self) -> None:
        """One thread and two give the same result for a tensor that torch splits between them."""
        batch = self.batches()[0]
        copies = -(-_PARALLEL // batch.numel())
        large = torch.cat([batch * (1 + index / copies) for index in range(copies)])
        found = []
        for count in (1, 2):
            with _threads(count):
                found.append(tensors_of(self.quantized(batches=[large])))
        assert same_tensors(*found)

    def test_split_into_batches_changes_no_bit(self) -> None:
        """The same samples give the same result in one batch or several."""
        several = self.batches()
        joined = torch.cat(several)
        if not torch.equal(self.model()(joined), torch.cat([self.model()(batch) for batch in several])):
            pytest.skip("the model itself gives other bits")
        found = [self.quantized(batches=batches) for batches in ([joined], several)]
        assert same_tensors(*map(tensors_of, found))

    def test_padding_changes_no_bit(self) -> None:
        """What an attention mask hides counts nowhere, whatever the padding holds."""
        x = values(0, 2, 4, 8)
        padded = torch.cat([x, 50 * values(1, 2, 3, 8)], 1)
        found = [self._masked(tokens) for tokens in (x, padded)]
        assert same_tensors(*found)

    def _masked(self, x: Tensor) -> dict[str, Tensor]:
        mask = torch.zeros(x.shape[:2], dtype=torch.int64)
        mask[:, :4] = 1
        model = self.prepared(self.masked_model(), x, attention_mask=mask)
        model(x, attention_mask=mask)
        return tensors_of(convert(model))

    def test_bfloat16_stays_bfloat16(self) -> None:
        """A model in bfloat16 keeps its format and computes about what it did."""
        batch = self.batches()[0].bfloat16()
        expected = self.model().bfloat16()(batch)
        self.require_near(self.quantized(self.model().bfloat16(), [batch])(batch), expected)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
