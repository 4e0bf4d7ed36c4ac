"""A graph that PT2E quantizes, as a module that can be copied and changed as a whole."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import final

import attrs
from torch import Tensor, fx, nn
from torch.fx.graph import PythonCode
from typing_extensions import Self

from tico_config import Found, Problem, UnsupportedError
from tico_modules import Edit
from tico_pt2e._devices import Change, move_nodes, moving, require_no_cast
from tico_pt2e._literal_grids import LiteralGrids, grids_of

_STATE = ("_parameters", "_buffers", "_modules")
_GRIDS = "literal_grids"


@attrs.frozen(kw_only=True)
class WeightSite:
    """Where an operator takes its weight: the name of its node, and the positions of the arguments.

    `axis` is that of the output channels in the weight; `groups` divides input and output channels.
    `float_bias` says that the bias is kept as floats, on the grid that its integers would have.
    """

    path: str
    operator: str
    node: str
    weight: int
    bias: int | None
    axis: int
    groups: int = 1
    float_bias: bool = False


@final
class QuantGraph(fx.GraphModule):
    """An exported graph, before or after its values were quantized.

    `sites` are its weights; `operator_paths` name the operators that reports speak of.
    """

    sites: tuple[WeightSite, ...] = ()
    operator_paths: tuple[str, ...] = ()

    def recompile(self) -> PythonCode:
        """Make the code anew after the graph was changed, and note the grids that it has now."""
        self._modules[_GRIDS] = LiteralGrids(grids_of(self.graph))
        return super().recompile()

    def _apply(self, fn: Change, recurse: bool = True) -> Self:
        """Move tensors, and the nodes that name their devices, to another device.

        Raises:
            UnsupportedError: `fn` would cast tensors, with what to do instead.
        """
        require_no_cast(self, fn)
        super()._apply(moving(fn), recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        move_nodes(self, fn)
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Mapping[str, object],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Here, as nothing was loaded yet: what does not fit is refused as a whole.
        if any(name.startswith(prefix) for name in state_dict):
            self._literal_grids.require_same(state_dict, f"{prefix}{_GRIDS}.")
        load = super()._load_from_state_dict
        load(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    @property
    def _literal_grids(self) -> LiteralGrids:
        found = self._modules[_GRIDS]
        if not isinstance(found, LiteralGrids):
            raise TypeError(type(found).__name__)
        return found

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse to be pickled.

        Raises:
            UnsupportedError: always, with what to do instead.
        """
        remedy = "save it with torch.export.save(torch.export.export(model, args), path)"
        found = Found("pickle")
        raise UnsupportedError(
            Problem(
                field="model",
                value=found,
                expected="copied or exported",
                remedy=remedy,
                sentence="a graph of PT2E cannot be pickled",
            )
        )

    def __deepcopy__(self, memo: dict[int, object]) -> QuantGraph:
        """Return a copy with everything that a module has: hooks, reports, calibration."""
        with quiet():
            copied = super().__deepcopy__(memo)
            for name, value in vars(self).items():
                if "hook" in name or name not in vars(copied):
                    vars(copied)[name] = copy.deepcopy(value, memo)
        if not isinstance(copied, QuantGraph):
            raise TypeError(type(copied).__name__)
        return copied


def quant_graph(
    root: nn.Module, graph: fx.Graph, sites: tuple[WeightSite, ...], operator_paths: tuple[str, ...]
) -> QuantGraph:
    """Return the module that runs `graph` with those tensors and modules of `root` that it names.

    It is in evaluation mode, as the model was that was exported.
    """
    _call_grids(root, graph)
    made = QuantGraph(root, graph)
    made.sites, made.operator_paths = sites, operator_paths
    return made.eval()


def _call_grids(root: nn.Module, graph: fx.Graph) -> None:
    """Let `graph` begin with a call of the module that has its grids."""
    first = next(iter(graph.nodes))
    if first.target != _GRIDS:
        root.add_module(_GRIDS, LiteralGrids({}))
        with graph.inserting_before(first):
            graph.call_module(_GRIDS)


def draft_of(model: QuantGraph) -> QuantGraph:
    """Return a module like `model` with a graph of its own, to be changed; tensors are shared."""
    with quiet():
        return quant_graph(model, copy.deepcopy(model.graph), model.sites, model.operator_paths)


def become(model: QuantGraph, draft: QuantGraph, edit: Edit) -> None:
    """Make `model` run the graph of `draft`, which is used up, with its tensors and modules."""
    finished = quant_graph(draft, draft.graph, draft.sites, draft.operator_paths)
    before = model.graph
    for name in (*_STATE, "sites", "operator_paths"):
        edit.set_attribute(model, name, vars(finished)[name])
    edit.on_undo(lambda: _run_graph(model, before))
    _run_graph(model, finished.graph)


def _run_graph(model: QuantGraph, graph: fx.Graph) -> None:
    model.graph = graph


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings that torch's own graph code gives about itself from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
