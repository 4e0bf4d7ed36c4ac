"""What `inplace` means, and what a copy of a prepared model is."""

from __future__ import annotations

import copy

import pytest
from torch import nn

from tico_config import UnsupportedError
from tico_quantizers.lifecycle import convert, prepare
from tico_quantizers.testing._model_state import same_tensors, tensors_of, unchanged
from tico_quantizers.testing._promises.suite import PromiseSuite


class CopyPromises(PromiseSuite):
    """The promises about the object that is passed in, and about copies of it."""

    def test_inplace_returns_the_very_object(self) -> None:
        """What was passed in works afterwards; where that can't be, the error says so and nothing changes."""
        model, example = self.model(), (self.batches()[0],)
        if self.works_in_place():
            assert prepare(model, self.config, example, registry=self.serves()) is model
        else:
            with unchanged(model), pytest.raises(UnsupportedError) as caught:
                prepare(model, self.config, example, registry=self.serves())
            assert caught.value.field == "inplace"
            model = prepare(model, self.config, example, inplace=False, registry=self.serves())
        model(self.batches()[0])
        assert convert(model) is model

    def test_work_on_a_copy_leaves_the_argument_untouched(self) -> None:
        """Not while the copy is prepared, calibrated or converted; and no memory is shared."""
        model, batch = self.model(), self.batches()[0]
        with unchanged(model):
            prepared = prepare(model, self.config, (batch,), inplace=False, registry=self.serves())
            prepared(batch)
            converted = convert(prepared)
        assert converted is not model
        assert _memory(model).isdisjoint(_memory(converted))

    def test_convert_on_a_copy_leaves_the_model_prepared(self) -> None:
        """One calibrated model is converted many times, learns on, and shares no memory with a copy."""
        one, two, _ = self.batches()
        model = self.calibrated(self.model(), [one])
        with unchanged(model):
            copies = [convert(model, inplace=False) for _ in range(2)]
        assert _memory(model).isdisjoint(_memory(copies[0]))
        expected = tensors_of(self.quantized(batches=[one]))
        assert all(same_tensors(tensors_of(each), expected) for each in copies)
        model(two)
        assert same_tensors(tensors_of(convert(model)), tensors_of(self.quantized(batches=[one, two])))

    def test_place_makes_no_difference(self) -> None:
        """Preparing and converting copies, or only one of the two, gives the bits that in place gives."""
        batch = self.batches()[0]
        prepared = prepare(self.model(), self.config, (batch,), inplace=False, registry=self.serves())
        prepared(batch)
        expected = tensors_of(self.quantized())
        for inplace in (False, True):
            assert same_tensors(tensors_of(convert(prepared, inplace=inplace)), expected)

    def test_deepcopy_of_a_prepared_model_calibrates_alone(self) -> None:
        """What one of the two sees, the other does not."""
        one, two, three = self.batches()
        model = self.calibrated(self.model(), [one])
        other = copy.deepcopy(model)
        other(10 * two)
        model(three)
        for found, data in ((other, [one, 10 * two]), (model, [one, three])):
            assert same_tensors(tensors_of(convert(found)), tensors_of(self.quantized(batches=data)))


def _memory(model: nn.Module) -> set[int]:
    tensors = (*model.parameters(), *model.buffers())
    return {tensor.data_ptr() for tensor in tensors if tensor.numel()}
