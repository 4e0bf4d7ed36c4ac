"""What the room `tuning` is made of: tensors lent to modules, factors, descents, blocks run again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from tico_config import CalibrationError, DType, NumericsError, SuperBlock, UnsupportedError
from tico_modules import Edit, PackedWeight, Parts, QuantizedConv2d, QuantizedExperts, QuantizedLinear
from tico_quantizers.testing import ResidualBlock, seeded, values
from tico_quantizers.tuning import (
    Adam,
    Factor,
    Loan,
    Schedule,
    Split,
    TreeState,
    descend,
    lent,
    recomputed,
    scales_of,
)


def linear(group_size: int | None = 4) -> QuantizedLinear:
    """Return an integer layer of 4 rows and 8 columns."""
    return QuantizedLinear.from_float(seeded(lambda: nn.Linear(8, 4)), DType.uint(4), group_size=group_size)


def reordered() -> QuantizedLinear:
    """Return an integer layer whose groups are no runs of columns."""
    layer = linear()
    packed = PackedWeight.from_codes(
        layer.packed.integer_codes(),
        layer.packed.scale,
        layer.packed.zero_point,
        dtype=layer.packed.dtype,
        shape=(4, 8),
        group_size=4,
        group_index=torch.tensor([0, 1, 1, 0, 0, 1, 0, 1]),
    )
    return QuantizedLinear(Parts(packed=packed))


LAYERS = {"groups": linear, "rows": lambda: linear(None), "group index": reordered}


class TestLent:
    """Tensors that modules compute with for a while."""

    def test_module_computes_with_the_tensor(self) -> None:
        """And with its own afterwards, which is the very object that it was."""
        layer, x = seeded(lambda: nn.Linear(3, 2)), values(0, 4, 3)
        own, other = layer.weight, values(1, 2, 3)
        before = layer(x)
        with lent([Loan(module=layer, name="weight", tensor=other)]):
            assert torch.equal(layer(x), nn.functional.linear(x, other, layer.bias))
        assert layer.weight is own
        assert torch.equal(layer(x), before)

    def test_exception_ends_the_loan(self) -> None:
        """What a module held comes back after an exception, too."""
        layer = linear()
        own = layer.packed.scale
        loan = Loan(module=layer.packed, name="scale", tensor=2 * own)
        with pytest.raises(KeyboardInterrupt), lent([loan]):
            raise KeyboardInterrupt
        assert layer.packed.scale is own

    def test_name_that_is_not_there_is_refused(self) -> None:
        """And nothing is lent."""
        layer = seeded(lambda: nn.Linear(3, 2))
        own = layer.weight
        loans = [Loan(module=layer, name=name, tensor=own + 1) for name in ("weight", "wait")]
        with pytest.raises(UnsupportedError, match="wait"), lent(loans):
            pass
        assert layer.weight is own

    @pytest.mark.parametrize("kind", LAYERS)
    def test_derivative_by_a_scale_is_that_of_the_definition(self, kind: str) -> None:
        """With W = (codes - zero point) * scale it is the sum of (code - zero point) * dL/dW of a group.

        All numbers are small integers, so that no sum is rounded.
        """
        layer = LAYERS[kind]()
        packed, slope = layer.packed, torch.arange(32.0).view(4, 8) - 16
        factor = Factor.of("", packed, "scale")
        scale = factor.start.clone().requires_grad_()
        with lent([Loan(module=packed, name="scale", tensor=scale)]):
            (found,) = torch.autograd.grad((layer.dequantize() * slope).sum(), scale)
        products = (packed.integer_codes() - packed.spread_groups(packed.zero_point)) * slope
        numbers = torch.arange(packed.scale.shape[1], dtype=torch.float32).expand_as(packed.scale)
        groups = packed.spread_groups(numbers).expand(4, 8)
        expected = torch.stack(
            [(products * (groups == number)).sum(1) for number in range(packed.scale.shape[1])], 1
        )
        assert torch.equal(found, expected)

    def test_convolution_has_derivatives_by_its_scales(self) -> None:
        """One for each output channel."""
        layer = QuantizedConv2d.from_float(seeded(lambda: nn.Conv2d(2, 3, 3)), DType.uint(4))
        (factor,), _ = scales_of(layer)
        with lent([factor.loan()]):
            (slope,) = torch.autograd.grad(layer(values(0, 1, 2, 4, 4)).square().sum(), factor.logarithm)
        assert bool((slope != 0).all())


class TestFactor:
    """A tensor times factors."""

    def test_factors_of_one_change_no_bit(self) -> None:
        """Where all logarithms are 0, the value is the tensor of the module."""
        for dtype in (torch.float32, torch.bfloat16):
            norm = seeded(lambda: nn.LayerNorm(64)).to(dtype)
            norm.weight.data = values(0, 64).to(dtype)
            assert torch.equal(Factor.of("", norm, "weight").value(), norm.weight)

    def test_offset_is_multiplied_with_the_tensor(self) -> None:
        """A weight of 0.5 to which a module adds 1 is 3 - 1 where the factor is 2."""
        norm = nn.LayerNorm(4)
        norm.weight.data.fill_(0.5)
        factor = Factor.of("", norm, "weight", offset=1.0)
        assert torch.equal(factor.value(), norm.weight)
        factor.logarithm.data.fill_(math.log(2))
        # The logarithm of 2 is rounded, and so is what becomes of it.
        assert factor.value().tolist() == pytest.approx([2.0] * 4, abs=2**-21)

    @pytest.mark.parametrize("kind", LAYERS)
    def test_lent_scale_gives_what_the_packed_one_will(self, kind: str) -> None:
        """A layer computes the same bits with the loan and with what `put` leaves; all else is kept."""
        layer, x = LAYERS[kind](), values(0, 5, 8)
        before = {name: buffer.clone() for name, buffer in layer.packed.named_buffers()}
        (factor,), _ = scales_of(layer)
        factor.logarithm.data.copy_(values(1, *factor.start.shape) / 10)
        with lent([factor.loan()]):
            expected = layer(x)
        with Edit() as edit:
            factor.put(edit)
        assert torch.equal(layer(x), expected)
        assert not torch.equal(layer.packed.scale, before.pop("scale"))
        assert all(torch.equal(getattr(layer.packed, name), buffer) for name, buffer in before.items())
        assert not layer.packed.scale.requires_grad

    def test_put_is_undone_with_its_edit(self) -> None:
        """After an exception the layer has the scale that it had."""
        layer = linear()
        own, (factor,) = layer.packed.scale, scales_of(layer)[0]
        factor.logarithm.data.fill_(1.0)
        edit = Edit()
        factor.put(edit)
        assert layer.packed.scale is not own
        edit.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert layer.packed.scale is own

    def test_parameter_stays_a_parameter(self) -> None:
        """With the flag that it had."""
        norm = nn.LayerNorm(4)
        norm.weight.requires_grad_(False)
        factor = Factor.of("", norm, "weight")
        factor.logarithm.data.fill_(math.log(2))
        with Edit() as edit:
            factor.put(edit)
        assert isinstance(norm.weight, nn.Parameter)
        assert not norm.weight.requires_grad
        assert factor.largest_change() == pytest.approx(1.0, rel=2**-22)  # exp and log, each rounded once

    def test_scale_stays_a_normal_number(self) -> None:
        """However far it is moved, either way."""
        for length in (-1e4, 1e4):
            (factor,), _ = scales_of(linear())
            factor.logarithm.data.fill_(length)
            info, value = torch.finfo(torch.float32), factor.value()
            assert bool(((value >= info.tiny) & (value <= info.max)).all())

    def test_shared_weight_is_there_once(self) -> None:
        """At the first of the layers that hold it."""
        one = linear()
        other = one.with_parts(Parts(packed=one.packed))
        factors, _ = scales_of(nn.Sequential(one, other))
        assert [factor.path for factor in factors] == ["0"]

    def test_scales_that_cannot_move_have_a_reason(self) -> None:
        """Those of super-blocks are integers, and those of experts in one parameter have no derivatives."""
        block = SuperBlock(columns=8, scale_bits=6)
        packed = PackedWeight.from_codes(
            torch.zeros(4, 8, dtype=torch.int32),
            torch.ones(4, 2),
            torch.full((4, 2), 8, dtype=torch.int32),
            dtype=DType.uint(4),
            shape=(4, 8),
            group_size=4,
            super_block=block,
        )
        experts = QuantizedExperts.from_float(
            Mean(), DType.uint(4), transposed={"stack": False}, choosing=False
        )
        factors, reasons = scales_of(nn.Sequential(QuantizedLinear(Parts(packed=packed)), experts))
        assert factors == ()
        assert reasons == {
            "0": "its scales are integers themselves, which share another scale",
            "1": "derivatives do not reach the integers of experts in one parameter",
        }


class Mean(nn.Module):
    """Experts in one parameter, of whose outputs the mean is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Parameter(values(0, 3, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, 4) for `x` (…, 8)."""
        return torch.stack([x @ weight.T for weight in self.stack]).mean(0)


def parabola(value: Tensor, lows: Tensor) -> Tensor:
    """Return the square distance of `value` from one of the `lows`."""
    return (value - lows).square().sum()


class TestDescent:
    """Adam, and the step that counts."""

    def test_adam_is_its_definition(self) -> None:
        """Algorithm 1 of the paper in plain numbers.

        In float64 a step rounds about ten times, each time by at most 2^-53 of numbers of at most 8.
        """
        value, slopes = torch.zeros(1, dtype=torch.float64).requires_grad_(), (1.0, -3.0, 0.25, 8.0)
        adam, x, m, v = Adam([value]), 0.0, 0.0, 0.0
        for t, slope in enumerate(slopes, 1):
            adam.step([torch.tensor([slope], dtype=torch.float64)], rate=0.5)
            m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
            x -= 0.5 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        assert value.item() == pytest.approx(x, abs=len(slopes) * 10 * 8 * 2**-53)

    def test_rate_falls_from_its_start_to_almost_nothing(self) -> None:
        """By half a cosine: monotone, half of it in the middle."""
        schedule = Schedule(steps=32, rate=0.5)
        rates = [schedule.rate_at(step) for step in range(1, 33)]
        assert rates == sorted(rates, reverse=True)
        assert rates[0] == 0.5
        assert rates[16] == pytest.approx(0.25, rel=2**-50)  # the cosine of a rounded right angle
        assert 0 < rates[-1] < 0.01

    def test_best_step_on_the_samples_held_out_stays(self) -> None:
        """Not the last one: those that are learned from have their low further away."""
        value, split = torch.zeros(3, requires_grad=True), Split(learned=(0,), held_out=(1,))
        lows, seen = (torch.full((3,), 10.0), torch.ones(3)), []

        def loss(sample: int) -> Tensor:
            if sample == 1:
                seen.append(float(value[0]))
            return parabola(value, lows[sample])

        found = descend([value], loss, split, Schedule(steps=20, rate=0.4))
        best = min(seen, key=lambda x: (x - 1) ** 2)
        assert value.tolist() == [best] * 3
        assert found.step == seen.index(best)
        assert 0 < found.step < 20
        assert found.before == 3.0
        assert found.after == pytest.approx(3 * (best - 1) ** 2, rel=2**-20)  # a few float32 sums

    def test_nothing_stays_that_does_not_lower_the_loss(self) -> None:
        """Where every step is one away from the low of the sample held out, all is as it was."""
        value, lows = torch.zeros(3, requires_grad=True), (torch.ones(3), -torch.ones(3))
        split = Split(learned=(0,), held_out=(1,))
        found = descend([value], lambda n: parabola(value, lows[n]), split, Schedule(steps=4, rate=0.1))
        assert value.tolist() == [0.0] * 3
        assert (found.step, found.after) == (0, found.before)

    def test_loss_that_is_no_number_never_stays(self) -> None:
        """A step behind which the loss is NaN counts nothing; before the first step it is an error."""
        value, split = torch.zeros(1, requires_grad=True), Split(learned=(0,), held_out=(1,))

        def loss(sample: int) -> Tensor:
            return (0.05 - value).sum() if sample == 0 else (0.05 - value).sqrt().sum()

        found = descend([value], loss, split, Schedule(steps=8, rate=0.04))
        assert math.isfinite(found.after)
        assert 0 < value.item() <= 0.05
        with pytest.raises(NumericsError, match="before the first step"):
            descend([value], lambda _: (value - 9).sqrt().sum(), split, Schedule(steps=1, rate=0.1))

    def test_slope_of_a_step_is_the_mean_of_its_samples(self) -> None:
        """Two samples on either side of the value take it nowhere."""
        value, lows = torch.zeros(1, requires_grad=True), (-torch.ones(1), torch.ones(1), torch.ones(1))
        split = Split(learned=(0, 1), held_out=(2,))
        schedule = Schedule(steps=3, rate=0.1, samples=2)
        found = descend([value], lambda n: parabola(value, lows[n]), split, schedule)
        assert (value.item(), found.step) == (0.0, 0)

    def test_same_seed_gives_the_same_bits(self) -> None:
        """And another one another order; the caller's random numbers stay."""
        state = torch.get_rng_state()
        split = Split(learned=(0, 1, 2, 3), held_out=(4,))
        lows = [values(seed, 5) for seed in range(5)]
        found = []
        for seed in (0, 0, 1):
            value = torch.zeros(5, requires_grad=True)
            schedule = Schedule(steps=6, rate=0.1, seed=seed)
            descend([value], lambda n, value=value: parabola(value, lows[n]), split, schedule)
            found.append(value.detach())
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])
        assert torch.equal(torch.get_rng_state(), state)

    def test_value_that_no_loss_depends_on_stays(self) -> None:
        """And the others move."""
        value, other = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
        split = Split(learned=(0,), held_out=(1,))
        schedule = Schedule(steps=3, rate=0.1)
        descend([value, other], lambda _: parabola(value, torch.ones(2)), split, schedule)
        assert other.tolist() == [0.0, 0.0]
        assert bool((value > 0).all())

    def test_derivatives_are_computed_within_the_context(self) -> None:
        """And it is left each time: what modules borrow lasts for the derivatives and no longer."""
        value, inside = torch.zeros(1, requires_grad=True), []

        @contextmanager
        def within() -> Iterator[None]:
            inside.append(True)
            yield
            inside.pop()

        class Watched(torch.autograd.Function):
            @staticmethod
            def forward(ctx: object, x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: object, *slopes: Tensor) -> Tensor:
                assert inside == [True]
                return slopes[0]

        def loss(sample: int) -> Tensor:
            watched: Tensor = Watched.apply(value)  # type: ignore[no-untyped-call]
            return parabola(watched, torch.ones(1))

        split, schedule = Split(learned=(0,), held_out=(1,)), Schedule(steps=2, rate=0.1)
        assert descend([value], loss, split, schedule, within=within).step == 2
        assert inside == []

    @pytest.mark.parametrize("count", [2, 3, 16, 100])
    def test_split_parts_all_samples(self, count: int) -> None:
        """Each is learned from or held out, and there are some of both."""
        for share in (0.0, 0.25, 1.0):
            split = Split.of(count, share=share, seed=3)
            assert sorted((*split.learned, *split.held_out)) == list(range(count))
            assert split.learned
            assert split.held_out

    @pytest.mark.parametrize("count", [0, 1])
    def test_less_than_two_samples_are_refused(self, count: int) -> None:
        """In a sentence that says what to do."""
        with pytest.raises(CalibrationError, match="at least two samples"):
            Split.of(count, share=0.25, seed=0)


class Counted(ResidualBlock):
    """A block that counts how often it is run, and may be given something else besides."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: Tensor, other: object = None) -> Tensor:
        """Return the next hidden state."""
        self.runs += 1
        return super().forward(x)


class TestRecomputed:
    """Blocks that are run again for the derivatives."""

    def test_derivatives_have_the_same_bits(self) -> None:
        """And each block is run twice."""
        blocks, x = seeded(lambda: nn.Sequential(Counted(), Counted())), values(0, 3, 8).requires_grad_()
        (expected,) = torch.autograd.grad(blocks(x).square().sum(), x)
        with recomputed(blocks):
            (found,) = torch.autograd.grad(blocks(x).square().sum(), x)
        assert torch.equal(found, expected)
        assert [block.runs for block in blocks] == [3, 3]
        assert all("forward" not in vars(block) for block in blocks)

    def test_only_inputs_are_kept(self) -> None:
        """What a block keeps for the derivatives is no larger than what it is called with."""
        block, x, kept = seeded(Counted), values(0, 3, 8).requires_grad_(), []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = block(x)
            without, kept[:] = sum(kept), []
            with recomputed([block]):
                output = block(x)
        assert output.requires_grad
        assert sum(kept) <= x.numel() < without

    def test_nothing_is_run_again_without_derivatives(self) -> None:
        """A block is run once."""
        block = seeded(Counted)
        with recomputed([block]), torch.no_grad():
            block(values(0, 3, 8))
        assert block.runs == 1

    def test_call_with_an_object_is_not_run_again(self) -> None:
        """It might change the object a second time."""
        block, x = seeded(Counted), values(0, 3, 8).requires_grad_()
        with recomputed([block]):
            torch.autograd.grad(block(x, other=[object()]).sum(), x)
        assert block.runs == 1

    def test_exception_ends_it(self) -> None:
        """A forward of the block's own is the one that it had."""
        block = seeded(Counted)
        own = block.forward
        vars(block)["forward"] = own
        with pytest.raises(KeyboardInterrupt), recomputed([block, seeded(Counted)]):
            raise KeyboardInterrupt
        assert vars(block)["forward"] is own


class TestTreeState:
    """What a model was before a part of it was replaced."""

    def test_model_is_again_what_it_was(self) -> None:
        """With its children, parameters and attributes; afterwards it is what it has become."""
        model, x = seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU())), values(0, 2, 3)
        before, state = model(x), TreeState.of(model)
        with Edit() as edit:
            edit.put(model[0]._parameters, "weight", nn.Parameter(torch.zeros(3, 3)))
            edit.replace(model, model[1], nn.Tanh())
            edit.set_attribute(model, "mark", 1)
        after = model(x)
        with state.again():
            assert torch.equal(model(x), before)
            assert not hasattr(model, "mark")
        assert torch.equal(model(x), after)
        assert vars(model)["mark"] == 1

    def test_exception_brings_back_what_it_has_become(self) -> None:
        """Also where the model raises."""
        model = seeded(lambda: nn.Sequential(nn.ReLU()))
        state = TreeState.of(model)
        model[0] = nn.Tanh()
        with pytest.raises(KeyboardInterrupt), state.again():
            raise KeyboardInterrupt
        assert isinstance(model[0], nn.Tanh)
