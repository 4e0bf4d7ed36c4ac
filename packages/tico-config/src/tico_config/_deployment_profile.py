"""What a runtime takes, as a value that configs name as their target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, Protocol, TypeVar

import attrs

from tico_config._declared_types import field_problems
from tico_config._errors import ConfigError
from tico_config._grid_format import GridFormat, LayerFormat
from tico_config._grid_rule import GridRule, LayerRule, Misfit, alternatives, layer_misfits, narrowed
from tico_config._layer_blocks import LayerBlocks
from tico_config._named_fields import NamedFields
from tico_config._problem import Found, Problem
from tico_config.validation import refuse

Bias = Literal["int32", "float"]
_PRODUCTS: Final = ("linear", "transposed_linear", "head")


class Targeted(Protocol):
    """A class of configs that can say which of its values are legal for a target."""

    @classmethod
    def choices_for(cls, target: DeploymentProfile) -> Iterable[Mapping[str, object]]:
        """Yield fields of legal configs, the best first."""


T = TypeVar("T", bound=Targeted)


@attrs.frozen(kw_only=True, repr=False)
class DeploymentProfile(NamedFields):
    """What a runtime takes of a quantized model.

    A config that has it as its `target` is refused by `prepare` where it asks for anything else. The built-in
    ones are in `tico_config.profiles`; one of your own is a value like any other.

    Attributes:
        name: short name, by which JSON names the built-in ones.
        runtime: the runtime's own name, for messages.
        layers: the formats of layers with a weight, the best first.
        points: the formats of all other activations; empty where the runtime has no place for any.
        biases: how graphs have biases, the best first.
        float_operators: operators of graphs, by their names in ATen, that stay in float for want of a kernel.
        fused: names of neighbouring layers that the runtime computes as one, which have to be on one grid.
        multiplications: whether a multiplication of inputs, as `insert_mul` and `online_inputs` put it in,
            has a place.
        in_blocks: whether integer layers have to be the same ones in every block of one list, and linear
            layers outside of it stay in float.

    Raises:
        ConfigError: a field is of another type.

    >>> from tico_config import GPTQConfig, profiles
    >>> profiles.VLLM.config(GPTQConfig, bits=4).group_size
    128
    """

    name: str
    runtime: str
    layers: tuple[LayerRule, ...]
    points: tuple[GridRule, ...] = ()
    biases: tuple[Bias, ...] = ("float",)
    float_operators: tuple[str, ...] = ()
    fused: tuple[tuple[str, ...], ...] = ()
    multiplications: bool = False
    in_blocks: bool = False

    def __attrs_post_init__(self) -> None:
        """Validate the fields."""
        refuse(*field_problems(self, tuple))

    def __repr__(self) -> str:
        """Return the name: the rest is a table."""
        return f"DeploymentProfile({self.name!r})"

    def configs(self, kind: type[T], **fields: object) -> tuple[T, ...]:
        """Return the legal configs of a class that have these `fields`, the best first.

        Raises:
            ConfigError: there is none, with what is legal; or a field has a value that no config has.

        >>> from tico_config import GPTQConfig, profiles
        >>> [config.bits for config in profiles.LLAMA_CPP.configs(GPTQConfig, group_size=32, symmetric=True)]
        [4, 5, 8, 7, 6, 3, 2]
        """
        choices = [dict(choice) for choice in kind.choices_for(self)]
        fitting = [
            choice
            for choice in choices
            if all(choice[name] == value for name, value in fields.items() if name in choice)
        ]
        if not fitting:
            raise ConfigError(self._no_config(kind.__name__, choices, fields))
        return tuple(kind(**{**choice, **fields, "target": self}) for choice in fitting)

    def config(self, kind: type[T], **fields: object) -> T:
        """Return the best legal config of a class that has these `fields`.

        Raises:
            ConfigError: as `configs`.

        >>> from tico_config import PTQConfig, profiles
        >>> str(profiles.XNNPACK.config(PTQConfig).activation)
        'int8 asymmetric'
        """
        return self.configs(kind, **fields)[0]

    def _no_config(
        self, kind: str, choices: Sequence[Mapping[str, object]], fields: Mapping[str, object]
    ) -> Problem:
        given = ", ".join(f"{name}={value}" for name, value in fields.items())
        if not choices:
            sentence = f"{kind} makes nothing that {self.runtime} takes"
            return Problem(field="target", value=self.name, expected=f"one for {kind}", sentence=sentence)
        legal = dict.fromkeys(
            ", ".join(f"{name}={choice[name]}" for name in fields if name in choice) for choice in choices
        )
        expected = alternatives(legal)
        sentence = f"no {kind} with {given} is legal for {self.runtime}"
        remedy = f"take {expected}"
        return Problem(
            field="target", value=Found(given), expected=expected, sentence=sentence, remedy=remedy
        )

    def problems(
        self, layers: Iterable[LayerFormat], points: Mapping[str, GridFormat], remedy: str
    ) -> Iterator[Problem]:
        """Yield what of a model the runtime does not take, with what is legal instead.

        `points` are the activations on a grid that no layer in `layers` reads, by path. `remedy` ends each
        problem.

        >>> from tico_config import INT8, profiles
        >>> points = {"norm.act_out": GridFormat(dtype=INT8)}
        >>> print(*profiles.VLLM.problems([], points, "leave it float"))
        norm.act_out: vLLM has no place for the grid of this activation (int8, one scale); leave it float
        """
        every = list(layers)
        for layer in every:
            yield from self._layer_problems(layer, remedy)
        for path, grid in points.items():
            yield from self._point_problems(path, grid, remedy)
        yield from self._fusion_problems({layer.path: layer for layer in every})
        yield from self._mixture_problems([layer for layer in every if layer.weight is not None])
        yield from self._block_problems(every)

    def _layer_problems(self, layer: LayerFormat, remedy: str) -> Iterator[Problem]:
        if layer.weight is None:
            if layer.inputs is not None:
                yield from self._point_problems(_below(layer.path, "act_in"), layer.inputs, remedy)
            return
        rules = [rule for rule in self.layers if layer.kind is None or rule.takes_kind(layer.kind)]
        if not rules:
            kinds = dict.fromkeys(kind for rule in self.layers for kind in rule.kinds)
            legal = f"integers in layers of kind {alternatives(kinds)}" if kinds else "floats in layers"
            misfit = Misfit("kind", f"{layer.kind or 'a layer'} ({layer.weight})", legal)
            yield self._problem(layer.path, misfit, "the layer", remedy)
            return
        for misfit in layer_misfits(rules, layer, layer.weight):
            field = misfit.field.removeprefix("act_in.")
            if field == misfit.field:
                subject = "the layer" if field in ("act_in", "shape") else "the weight"
                yield self._problem(layer.path, misfit, subject, remedy)
            else:
                path = _below(layer.path, "act_in")
                yield self._problem(path, attrs.evolve(misfit, field=field), "the activation", remedy)

    def _point_problems(self, path: str, grid: GridFormat, remedy: str) -> Iterator[Problem]:
        if not self.points:
            sentence = f"{self.runtime} has no place for the grid of this activation ({grid})"
            yield Problem(
                module=path or None,
                field="activation",
                value=Found(str(grid)),
                expected="float, as only inputs of layers can have grids",
                sentence=sentence,
                remedy=remedy,
            )
        for misfit in narrowed(self.points, lambda rule: rule, grid, "activation")[1]:
            yield self._problem(path, misfit, "the activation", remedy)

    def _problem(self, path: str, misfit: Misfit, subject: str, remedy: str) -> Problem:
        found = f"{subject} {misfit.verb} {misfit.found}"
        return Problem(
            module=path or None,
            field=misfit.field,
            value=Found(misfit.found),
            expected=misfit.legal,
            sentence=f"{self.runtime} takes {misfit.legal}, and {found}",
            remedy=remedy,
        )

    def _fusion_problems(self, layers: Mapping[str, LayerFormat]) -> Iterator[Problem]:
        for parent in dict.fromkeys(path.rpartition(".")[0] for path in layers):
            for names in self.fused:
                found = {name: layers[path] for name in names if (path := _below(parent, name)) in layers}
                grids = {(each.weight, each.inputs if each.inputs_known else None) for each in found.values()}
                if len(grids) > 1:
                    yield self._unequal(parent, found)

    def _mixture_problems(self, layers: Sequence[LayerFormat]) -> Iterator[Problem]:
        """Yield the layers that have a format for all layers, where some have another that is taken."""
        if all(rule.mixed for rule in self.layers):
            return
        taken = [(each, [rule for rule in self.layers if rule.takes(each)]) for each in layers]
        if len({(each.weight, each.inputs) for each, rules in taken if rules}) < 2:
            return
        for layer, rules in taken:
            if rules and not any(rule.mixed for rule in rules):
                yield Problem(
                    module=layer.path or None,
                    field="overrides",
                    value=Found(str(layer)),
                    expected="one format for all layers",
                    sentence=f"{self.runtime} takes {rules[0].name} only where all layers have it, and others"
                    " have another format",
                    remedy="give all layers this format, or leave the others in float",
                )

    def _block_problems(self, layers: Sequence[LayerFormat]) -> Iterator[Problem]:
        """Yield that the integer layers are not those of every block of one list, where they have to be."""
        members = [layer.path for layer in layers if layer.weight is not None]
        others = {layer.path for layer in layers if layer.weight is None and layer.kind in _PRODUCTS}
        if self.in_blocks and members and LayerBlocks.of(members, others) is None:
            expected = "the same layers in every block of one list, and none outside of it"
            yield Problem(
                field="overrides",
                value=Found("others"),
                expected=expected,
                sentence=f"{self.runtime} takes {expected}",
                remedy="leave the others in float, such as the head by overrides={'lm_head': no_quant()}",
            )

    def _unequal(self, parent: str, found: Mapping[str, LayerFormat]) -> Problem:
        each = "; ".join(f"{name}: {layer}" for name, layer in found.items())
        *others, last = found
        return Problem(
            module=parent or None,
            field="overrides",
            value=Found(each),
            expected="one format for layers that are computed as one",
            sentence=f"{self.runtime} computes {', '.join(others)} and {last} as one layer ({each})",
            remedy="give all of them the same format, or leave all of them float by no_quant()",
        )


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
