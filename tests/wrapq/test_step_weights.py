"""Weights that a module without a wrapper computes with itself: grids, integers, files, ties."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tico.quantization import (
    PTQConfig,
    convert,
    coverage,
    load_calibration,
    load_quantized,
    prepare,
    report,
    save_calibration,
    save_quantized,
)
from tico.quantization.config import (
    DType,
    HistogramSpec,
    LifecycleError,
    MSESpec,
    NumericsError,
    PerChannel,
    UnsupportedError,
    affine,
    no_quant,
)
from tico_modules import PackedWeight
from tico_quantizers.testing import refused, same_tensors, seeded, tensors_of
from tico_wrapq import PTQWrapper, StepPoints
from tiny_models import values

X = values(0, 3, 4, 8)


class Product(nn.Module):
    """A product with a matrix (inputs, outputs) of its own, a scale and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.scale = nn.Parameter(values(1, 8, 6)), nn.Parameter(values(2, 6))
        self.bias = nn.Parameter(values(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        """Return the product."""
        return (x @ self.matrix) * self.scale + self.bias


class Experts(nn.Module):
    """Experts in one parameter (experts, outputs, inputs), picked by index, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(values(1, 3, 6, 8)), nn.Parameter(values(2, 3, 6, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the experts; the second weight is (experts, inputs, outputs)."""
        total = torch.zeros_like(x)
        for number in range(3):
            total = total + F.silu(F.linear(x, self.up[number])) @ self.down[number]
        return total


class Scaled(nn.Embedding):
    """An embedding whose forward multiplies."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        """Return the rows, three times as large."""
        rows: Tensor = super().forward(input) * 3.0
        return rows


class Tied(nn.Module):
    """A head with the weight of an embedding that has a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = Scaled(10, 8), nn.Linear(8, 10, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.table(tokens))
        return logits


class Filters(nn.Module):
    """A convolution by a parameter, and a table that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(values(1, 5, 3, 3, 3))
        self.table = nn.Parameter(values(2, 1, 5, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the filters give, with the table added."""
        return F.conv2d(x, self.kernel, padding=1) + self.table


class Decay(nn.Module):
    """A parameter that no step reads as it is, as of a state-space model."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(values(1, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Return the inputs, decayed."""
        return x * torch.exp(-torch.exp(self.log))


TOKENS = torch.arange(10).view(2, 5)
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "product": (Product, X),
    "experts": (Experts, X),
    "tied": (Tied, TOKENS),
    "filters": (Filters, values(4, 2, 3, 6, 6)),
    "bilinear": (lambda: nn.Sequential(Twice(8, 8, 4)), X),
    "einsum": (lambda: seeded(Einsum), X),
}


class Twice(nn.Bilinear):
    """A bilinear layer of one input."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return what both inputs being `x` gives."""
        both: Tensor = super().forward(x, x)
        return both


class Einsum(nn.Module):
    """A weight (heads, inputs, outputs) in an einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Parameter(values(1, 2, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the heads' outputs."""
        return torch.einsum("bti,hio->bhto", x, self.heads)


def converted(name: str, config: PTQConfig | None = None) -> tuple[nn.Module, Tensor]:
    """Return a converted model of `CASES`, and what the float one gives."""
    make, x = CASES[name]
    model = seeded(make)
    expected: Tensor = model(x)
    prepare(model, config or PTQConfig())
    assert torch.equal(model(x), expected)
    return convert(model), expected


def steps_in(model: nn.Module, path: str = "") -> StepPoints:
    """Return what stands beside the children of a module."""
    steps = model.get_submodule(f"{path}.quant_steps" if path else "quant_steps")
    assert isinstance(steps, StepPoints)
    return steps


@pytest.mark.parametrize("name", CASES)
def test_integers_stand_in_the_place_of_weights(name: str) -> None:
    """No float matrix is left, and the output is near."""
    model, expected = converted(name, PTQConfig(activation=affine(DType.int(16))))
    assert [each for each in model.parameters() if each.ndim > 1] == []
    found = model(CASES[name][1])
    # Steps of 1/255 of a row's range, in each of the products that follow one another.
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_a_saved_model_has_the_same_bits(name: str, tmp_path: Path) -> None:
    """By files, state dicts, copies and pickles."""
    model, _ = converted(name)
    make, x = CASES[name]
    expected = model(x)
    save_quantized(model, tmp_path / "saved")
    loaded = load_quantized(tmp_path / "saved", seeded(make))
    assert torch.equal(loaded(x), expected)
    assert same_tensors(tensors_of(loaded), tensors_of(model))
    assert torch.equal(copy.deepcopy(model)(x), expected)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(loaded(x), expected)


@pytest.mark.parametrize("name", CASES)
def test_the_exported_program_has_the_bits_of_the_model(name: str) -> None:
    """The weights are read as integers there too."""
    model, _ = converted(name)
    x = CASES[name][1]
    program = torch.export.export(model, (x,), strict=False)
    assert torch.equal(program.module()(x), model(x))


def _rows(weight: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the number of distinct values of a weight along `axes` for each index of the others."""
    kept = [axis for axis in range(weight.ndim) if axis not in axes]
    return weight.permute(*kept, *axes).flatten(len(kept))


@pytest.mark.parametrize(
    ("name", "path", "parameter", "axes"),
    [
        ("product", "", "matrix", (0,)),
        ("product", "", "scale", (0,)),
        ("experts", "", "up", (2,)),
        ("experts", "", "down", (1,)),
        ("filters", "", "kernel", (1, 2, 3)),
        ("bilinear", "0", "weight", (1, 2)),
        ("einsum", "", "heads", (1,)),
    ],
)
def test_a_grid_spans_what_is_summed_over(
    name: str, path: str, parameter: str, axes: tuple[int, ...]
) -> None:
    """Each row of a weight has the grid of its own values, as a layer's output channels have.

    Of a grid with 256 codes that spans a row, the row's error is at most half a step of its own range.
    """
    model, _ = converted(name)
    weight = dict(seeded(CASES[name][0]).named_parameters())[f"{path}.{parameter}" if path else parameter]
    made = steps_in(model, path).weights[parameter]
    assert made.summed == axes
    rows, error = _rows(weight, axes), _rows(made.dequantize() - weight, axes)
    span = rows.amax(-1).clamp(min=0) - rows.amin(-1).clamp(max=0)
    assert bool((error.abs().amax(-1) <= span / 255 / 2 * 1.001).all())


def test_biases_and_what_no_step_reads_stay_float() -> None:
    """With the reason in the report."""
    model, _ = converted("product")
    assert [name for name, _ in model.named_parameters() if name == "bias"] == ["bias"]
    [line] = [line for line in report(model).layers if line.path == ""]
    assert "bias stays float: biases do" in line.reason
    assert line.weight == "matrix uint8 per row, scale uint8 per row"
    decay = prepare(Decay().eval(), PTQConfig())
    decay(X)
    [line] = [line for line in report(convert(decay)).layers if line.path == ""]
    assert "log stays float: no step with data reads it as it is" in line.reason


def test_an_override_speaks_of_a_weight_by_its_name() -> None:
    """It changes the bits of one, or leaves it float."""
    overrides = {"matrix": {"dtype": DType.uint(4)}, "scale": no_quant()}
    model, _ = converted("product", PTQConfig(overrides=overrides))
    assert steps_in(model).weights["matrix"].packed[0].dtype == DType.uint(4)
    assert "scale" not in steps_in(model).weights
    assert coverage(model).share == 48 / (48 + 6 + 6)


def test_experts_in_one_parameter_count_in_the_coverage() -> None:
    """All of them are quantized parameters; one stack that is left float takes its part of the share."""
    whole, _ = converted("experts")
    assert (coverage(whole).parameters, coverage(whole).share) == (2 * 3 * 6 * 8, 1.0)
    half, _ = converted("experts", PTQConfig(overrides={"down": no_quant()}))
    assert coverage(half).share == 0.5


def test_what_is_tied_shares_its_codes() -> None:
    """An embedding with a forward of its own, and the head that has its weight."""
    model, _ = converted("tied")
    [table] = steps_in(model, "table").weights["weight"].packed
    assert table is model.get_submodule("head.packed")
    assert coverage(model).share == 1.0


class Aliased(nn.Module):
    """A matrix under two names, each in a product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(values(1, 8, 8))
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        """Return the product of the products."""
        return (x @ self.first) @ self.second


def test_a_weight_of_two_names_has_one_set_of_codes() -> None:
    """It is counted once, and no float copy is left."""
    model = prepare(seeded(Aliased), PTQConfig())
    model(X)
    convert(model)
    assert list(model.named_parameters(recurse=False)) == []
    weights = steps_in(model).weights
    assert weights["first"] is weights["second"]
    assert coverage(model).parameters == 64
    assert "no longer tied" not in str(report(model))


def test_only_the_experts_that_are_asked_for_are_dequantized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexing the weight reads one of its parts."""
    model, _ = converted("experts")
    stack = model.up
    assert isinstance(stack, Tensor)
    read: list[tuple[int, ...]] = []
    plain = PackedWeight.dequantize

    def note(self: PackedWeight) -> Tensor:
        read.append(self.shape)
        return plain(self)

    monkeypatch.setattr(PackedWeight, "dequantize", note)
    assert stack[1].shape == (6, 8)
    assert len(read) == 1


def test_the_weight_is_not_written_to() -> None:
    """It stands for codes."""
    model, _ = converted("product")
    with pytest.raises(LifecycleError, match="would not reach the codes"):
        model.matrix.mul_(2.0)  # type: ignore[operator]


@pytest.mark.parametrize("observer", [None, MSESpec(20)], ids=str)
def test_a_calibration_file_holds_steps(tmp_path: Path, observer: MSESpec | None) -> None:
    """What was seen once, and what the steps turned out to be, serve another config to the same bits."""

    def prepared(config: PTQConfig) -> nn.Module:
        return prepare(seeded(Product), config)

    wanted = PTQConfig(activation=affine(DType.uint(6), observer=observer))
    source = prepared(PTQConfig(activation=affine(DType.uint(8), observer=HistogramSpec())))
    expected = prepared(wanted)
    for model in (source, expected):
        model(X)
        model(2 * X)
    save_calibration(source, tmp_path / "seen")
    loaded = prepared(wanted)
    load_calibration(loaded, tmp_path / "seen")
    assert same_tensors(tensors_of(convert(loaded)), tensors_of(convert(expected)))


class Branches(nn.Module):
    """A step that some data reach, and another that others do."""

    def forward(self, x: Tensor) -> Tensor:
        """Return twice positive data, and negative data less one."""
        return x * 2 if bool((x > 0).all()) else x - 1


def test_files_of_several_processes_add_up(tmp_path: Path) -> None:
    """A step that the data of one of them never reached is found by the other's file."""
    for name, data in (("positive", X.abs()), ("negative", -X.abs())):
        model = prepare(Branches().eval(), PTQConfig())
        model(data)
        save_calibration(model, tmp_path / name)
    both = prepare(Branches().eval(), PTQConfig())
    for name in ("negative", "positive"):
        load_calibration(both, tmp_path / name)
    expected = prepare(Branches().eval(), PTQConfig())
    expected(X.abs())
    expected(-X.abs())
    assert same_tensors(tensors_of(convert(both)), tensors_of(convert(expected)))


class Chain(nn.Sequential):
    """A list of layers with arithmetic of its own between them."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layers give, each added to its input."""
        for layer in self:
            x = x + layer(x)
        return x * len(self)


class Children(nn.Module):
    """A module that goes through its children."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return what they give, doubled."""
        for layer in self.children():
            x = layer(x)
        return x * 2


@pytest.mark.parametrize("make", [lambda: Chain(nn.Linear(8, 8), nn.Linear(8, 8)), Children])
def test_a_forward_does_not_see_the_points_among_its_children(make: Callable[[], nn.Module]) -> None:
    """Neither while it is prepared nor afterwards."""
    model = seeded(make)
    expected = model(X)
    prepare(model, PTQConfig(activation=affine(DType.int(16))))
    assert torch.equal(model(X), expected)
    found = convert(model)(X)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_module_that_only_hands_on_is_left_alone() -> None:
    """Nothing stands beside it after `convert`, so that it can be compiled; the report says why."""
    model = prepare(nn.ModuleDict({"a": Outer()}).get_submodule("a").eval(), PTQConfig())
    model(X)
    model = convert(model)
    assert type(model) is Outer
    assert not any(isinstance(each, StepPoints) for each in model.modules())
    assert [line.reason for line in report(model).layers if line.path == ""] == [
        "no step with data was reached in its own forward"
    ]


def test_a_converted_model_is_prepared_again() -> None:
    """What has points and integers keeps them; a layer that was left float gets its own."""
    model = nn.Sequential(seeded(Product), nn.Linear(6, 4)).eval()
    prepare(model, PTQConfig(overrides={"1": no_quant()}))
    model(X)
    convert(model)
    before, grids = model(X), tensors_of(model.get_submodule("0"))
    prepare(model, PTQConfig())
    assert torch.equal(model(X), before)
    convert(model)
    assert same_tensors(tensors_of(model.get_submodule("0")), grids)
    lines = {line.path: line.points for line in coverage(model).lines}
    assert sorted(lines) == ["0", "1"]
    assert len(lines["1"]) == 3


class Outer(nn.Module):
    """A module that computes nothing itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer gives."""
        y: Tensor = self.layer(x)
        return y


def test_an_override_that_can_name_no_step_is_refused_at_once() -> None:
    """One that can is refused by `convert`, with the steps that there are."""
    for pattern in ("matrx", "add", "other.add_0"):
        with pytest.raises(ValueError, match="matches no module"):
            prepare(Product().eval(), PTQConfig(overrides={pattern: no_quant()}))
    model = prepare(Product().eval(), PTQConfig(overrides={"add_1": no_quant()}))
    model(X)
    with pytest.raises(ValueError, match="'add_0'"):
        convert(model)


def test_a_weight_that_is_not_finite_is_refused_by_prepare() -> None:
    """By its name, with the place of the first such value in its own shape."""
    model = seeded(Product)
    with torch.no_grad():
        model.get_parameter("matrix")[2, 3] = torch.nan
    with refused(model, NumericsError, module="", field="matrix") as error:
        prepare(model, PTQConfig())
    assert "nan at (2, 3)" in str(error.value)


def test_a_grid_that_a_weight_cannot_have_is_refused_by_prepare() -> None:
    """As for the weight of a layer."""
    model, units = seeded(Product), affine(DType.uint(4), granularity=PerChannel(1))
    with refused(model, UnsupportedError, module="matrix", field="spec"):
        prepare(model, PTQConfig(weight=units))


def test_a_wrapper_of_one_module_has_steps_too() -> None:
    """As `prepare` gives them."""
    wrapper = PTQWrapper(seeded(Product))
    wrapper.enable_calibration()
    wrapper(X)
    wrapper.freeze_qparams()
    model, _ = converted("product")
    assert torch.equal(wrapper(X), model(X))


class Halved(torch.autograd.Function):
    """A custom function."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        """Return half of the input."""
        return x / 2


class Custom(nn.Module):
    """A module that calls a custom function."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what it gives."""
        y: Tensor = Halved.apply(x * 2)  # type: ignore[no-untyped-call]
        return y


def test_the_steps_of_a_custom_function_have_points() -> None:
    """Where its forward is written in Python."""
    model = prepare(Custom().eval(), PTQConfig())
    model(X)
    [line] = [line for line in coverage(convert(model)).lines if line.path == ""]
    assert [point.split()[0] for point in line.points] == ["apply_0_div_0", "mul_0"]
