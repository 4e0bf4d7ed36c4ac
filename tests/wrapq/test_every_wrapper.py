"""What every wrapper promises, from one table of the modules that have one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

import reload_rows
from model_state import refused, same_tensors, tensors_of
from references import same_bits
from tico.quantization import PTQConfig, convert, coverage, prepare, save_quantized
from tico.quantization.config import CalibrationError, NumericsError, UnsupportedError
from tico_quantizers import ActivationGrid, QuantizedModule
from tico_wrapq import Mode, PTQWrapper, QuantModuleBase, QuantPoint
from wrapped_modules import OUT, ROWS_BY_NAME, Row

every_row = pytest.mark.parametrize("row", ROWS_BY_NAME.values(), ids=ROWS_BY_NAME.keys())
float_rows = {name: row for name, row in ROWS_BY_NAME.items() if not isinstance(row.inputs[0], Tensor)}
every_float_row = pytest.mark.parametrize("row", float_rows.values(), ids=float_rows.keys())


def _quantized(row: Row) -> nn.Module:
    prepared = prepare(row.model(), PTQConfig())
    prepared(*row.data())
    return convert(prepared)


def _part(model: nn.Module) -> nn.Module:
    return model.get_submodule("part")


@every_row
def test_wrapper_computes_the_float_function(row: Row) -> None:
    """Without calibration no bit of the output is another, nor with it but for fused attention's rounding."""
    expected = row.model()(*row.data())
    wrapper = PTQWrapper(row.model())
    assert wrapper.mode is Mode.NO_QUANT
    output: Tensor = wrapper(*row.data())
    assert same_bits(output, expected)
    wrapper.enable_calibration()
    watched: Tensor = wrapper(*row.data())
    # Steps of length 8 in float32: the sums of products may round differently, by some 2**-24 of the output.
    assert same_bits(watched, expected) if row.exact else torch.allclose(watched, expected, atol=1e-5, rtol=0)


@every_row
def test_calibration_sees_every_point(row: Row) -> None:
    """The wrapper has the points of the table, and one pass reaches each of them."""
    model = prepare(row.model(), PTQConfig())
    wrapper = _part(model)
    assert isinstance(wrapper, QuantModuleBase)
    assert tuple(name for name, _ in wrapper.named_points()) == row.points
    with refused(model, CalibrationError, module=f"part.{row.points[0]}") as error:
        convert(model)
    assert sorted(str(problem.module) for problem in error.value.problems) == row.all_points
    model(*row.data())
    points = [point for point in model.modules() if isinstance(point, QuantPoint)]
    assert sorted(point.path for point in points) == row.all_points
    assert not [point.path for point in points if point.lacks_data]


@every_row
def test_result_is_integer_and_near(row: Row) -> None:
    """Weights are codes, every activation point has a grid, and the output is on its own and near."""
    model = _quantized(row)
    assert isinstance(_part(model), QuantizedModule) == row.integer
    grids = [module for module in model.modules() if isinstance(module, ActivationGrid)]
    assert len(grids) == len(row.all_points)
    assert not [point for point in model.modules() if isinstance(point, QuantPoint) and point.fixed is None]
    expected, found = row.model()(*row.data()), model(*row.data())
    assert found.shape == expected.shape
    assert len(found.unique()) <= 256
    # A step is 1/255 of a range; a few of them meet in a product or in the slope of an activation.
    assert (found - expected).abs().max() <= 0.05 * max(expected.abs().max().item(), 1.0)


@every_row
def test_weights_are_quantized_once(row: Row) -> None:
    """Forward passes change no code and no grid."""
    model = _quantized(row)
    before = tensors_of(model)
    model(*row.data(7))
    assert same_tensors(tensors_of(model), before)


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Return what every model gives after it was saved, and loaded by a fresh process."""
    folder = tmp_path_factory.mktemp("rows")
    for number, row in enumerate(ROWS_BY_NAME.values()):
        save_quantized(_quantized(row), folder / str(number))
    script = Path(reload_rows.__file__)
    path = os.pathsep.join([str(script.parent), *sys.path])
    subprocess.run([sys.executable, script, folder], check=True, env={**os.environ, "PYTHONPATH": path})
    outputs: dict[str, Tensor] = torch.load(folder / "outputs.pt", weights_only=True)
    return outputs


@pytest.mark.parametrize("name", ROWS_BY_NAME)
def test_saved_model_gives_the_same_bits_in_a_fresh_process(name: str, reloaded: dict[str, Tensor]) -> None:
    """Wrappers that stay and integer modules alike come back as they were."""
    row = ROWS_BY_NAME[name]
    output: Tensor = _quantized(row)(*row.data())
    assert same_bits(reloaded[name], output)


def _on_the_way(program: torch.export.ExportedProgram) -> list[str]:
    """Return the operators in `program` that depend on what the user passes in."""
    users = {name for name in program.graph_signature.user_inputs if isinstance(name, str)}
    reached: set[Node] = {node for node in program.graph.nodes if node.name in users}
    found = []
    for node in program.graph.nodes:
        if node.op == "call_function" and any(argument in reached for argument in node.all_input_nodes):
            reached.add(node)
            found.append(str(node.target))
    return found


def _casts(names: list[str]) -> list[str]:
    return [name for name in names if "assert" in name or name.startswith(("aten.to.", "aten._to_copy"))]


@every_row
def test_exported_program_has_one_node_for_every_point(row: Row) -> None:
    """No cast or assertion is added on the way of an activation, and the program gives the same bits."""
    model = _quantized(row)
    with torch.no_grad():
        original = torch.export.export(row.model(), row.data())
        program = torch.export.export(model, row.data())
        exported: Tensor = program.module()(*row.data())
        output: Tensor = model(*row.data())
    names = _on_the_way(program)
    assert sum("fake_quantize" in name for name in names) == len(row.all_points)
    if not isinstance(row.inputs[0], Tensor):  # rows of an integer table are cast after they are looked up
        assert _casts(names) == _casts(_on_the_way(original))
    assert same_bits(exported, output)


@every_float_row
def test_data_that_are_not_finite_are_refused(row: Row) -> None:
    """The first point that sees them is named, and the batch does not count."""
    model = prepare(row.model(), PTQConfig())
    first, *others = row.data()
    with refused(model, NumericsError, field="x", module=row.first_point):
        model(first / 0, *others)
    assert coverage(model).macs is None
    with pytest.raises(CalibrationError):
        convert(model)


@pytest.mark.parametrize("name", [name for name, row in float_rows.items() if row.points != OUT])
def test_data_that_are_no_floats_are_refused(name: str) -> None:
    """Complex numbers have no grid."""
    row = float_rows[name]
    model = prepare(row.model(), PTQConfig())
    first, *others = row.data()
    with refused(model, UnsupportedError, field="dtype", module=row.first_point):
        model(first.to(torch.complex64), *others)
