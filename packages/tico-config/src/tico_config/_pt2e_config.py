"""The config of PT2E, quantization of exported graphs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import attrs
from typing_extensions import Self

from tico_config import profiles
from tico_config._deployment_profile import DeploymentProfile
from tico_config._dtype import INT32
from tico_config._frozen_mapping import FrozenMapping
from tico_config._grid import PerTensor
from tico_config._legal_specs import layer_choices
from tico_config._overrides import Resolution, winning_rule
from tico_config._problem import Found, Problem
from tico_config._quant_spec import QuantSpec, affine, no_quant
from tico_config._registry import register_config
from tico_config._spec_config import SpecConfig
from tico_config.validation import freeze

_AXES = "a name or None for each axis, such as ('batch', None), or a mapping such as {0: 'batch'}"


def _as_dynamic_shapes(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    return freeze({name: _as_axes(axes) for name, axes in value.items()})


def _as_axes(axes: object) -> object:
    """Return a mapping from axes to names as the sequence of the names."""
    if not isinstance(axes, Mapping) or not all(type(axis) is int and 0 <= axis < 8 for axis in axes):
        return axes
    return tuple(axes.get(axis) for axis in range(max(axes, default=-1) + 1))


@register_config
@attrs.frozen(kw_only=True)
class PT2EConfig(SpecConfig):
    """Activations and weights of an exported graph rounded to nearest.

    What holds for an operator: the override of its path, else of the type of the module it comes from, else
    of the operator, else `activation` and `weight`. The path of an operator is that of its module, with the
    name of its node behind it where the module has several; its points are `act_in`, `act_out` and `weight`.

    Attributes:
        activation: spec of every activation.
        weight: spec of every weight, per output channel unless it says otherwise; `no_quant()` leaves weights
            to a later algorithm.
        bias: `affine(INT32)` for integers at the scale of the input times that of the weight, or `no_quant()`
            for floats, rounded to the same grid, as runtimes that take biases in float round them. It holds
            where input and weight are quantized; elsewhere biases stay as they are.
        overrides: paths, globs or ``re:`` patterns, each with a `QuantSpec` or some of its fields.
        module_types: the same for module types, by class name (``"Linear"``) or dotted path.
        operators: the same for operators, for example ``{"softmax": no_quant()}``.
        dynamic_shapes: names of the axes that stay free, for each input by its name: ``{"x": ("batch",)}``;
            axes of one name have one size. None leaves axis 0 of every input free where the exporter can; an
            empty mapping fixes every axis.
        quantize_output_concat: whether a concatenation that only the output of the model reads has one grid
            for all of its parts, as a runtime without floats needs it; if not, it stays float, and each part
            has the grid of the operator that gives it. An override that speaks of it decides first.

    Raises:
        ConfigError: one or more fields are wrong; all are reported.

    >>> config = PT2EConfig(operators={"softmax": no_quant()}, dynamic_shapes={"x": {0: "batch"}})
    >>> str(config.weight), config.dynamic_shapes
    ('uint8 asymmetric', {'x': ('batch',)})
    """

    name: ClassVar[str] = "pt2e"

    bias: QuantSpec = attrs.field(factory=lambda: affine(INT32))
    module_types: Mapping[str, object] = attrs.field(factory=FrozenMapping, converter=freeze)
    operators: Mapping[str, object] = attrs.field(factory=FrozenMapping, converter=freeze)
    dynamic_shapes: Mapping[str, tuple[str | None, ...]] | None = attrs.field(
        default=None, converter=_as_dynamic_shapes
    )
    quantize_output_concat: bool = False

    @classmethod
    def onnx_runtime(cls) -> Self:
        """Return what ONNX Runtime's integer kernels take, from an ONNX file.

        Activations uint8, weights int8, symmetric per channel as the kernels on x86 and ARM want them, biases
        int32. ONNX Runtime takes any other format too, and then computes in float.

        >>> str(PT2EConfig.onnx_runtime().weight)
        'int8 symmetric'
        """
        return profiles.ONNX_RUNTIME.config(cls)

    @classmethod
    def openvino(cls) -> Self:
        """Return what OpenVINO's integer kernels take, from an ONNX file.

        Activations uint8, weights int8, symmetric per channel, biases int32. It is to be given as ONNX:
        from an exported program OpenVINO takes no weights that are integers already.

        >>> str(PT2EConfig.openvino().activation)
        'uint8 asymmetric'
        """
        return profiles.OPENVINO.config(cls)

    @classmethod
    def xnnpack(cls) -> Self:
        """Return what XNNPACK takes, from an exported program by way of ExecuTorch.

        Activations int8, weights int8, symmetric per channel, biases in float: int32 ones stay outside of its
        delegate. Operators without an int8 kernel stay in float.

        >>> str(PT2EConfig.xnnpack().activation), str(PT2EConfig.xnnpack().bias)
        ('int8 asymmetric', 'float')
        """
        return profiles.XNNPACK.config(cls)

    @classmethod
    def circle(cls) -> Self:
        """Return what Circle takes, from a saved exported program by ``pt2-to-circle``.

        Activations and weights uint8, asymmetric, weights per channel, biases in float: the converter makes
        int32 of them itself and refuses those that are int32 already.

        >>> str(PT2EConfig.circle().weight), str(PT2EConfig.circle().bias)
        ('uint8 asymmetric', 'float')
        """
        return profiles.CIRCLE.config(cls)

    @classmethod
    def choices_for(cls, target: DeploymentProfile) -> Iterable[Mapping[str, object]]:
        """Yield fields of configs that are legal for `target`, the best first: none without graphs."""
        left = FrozenMapping.of({operator: no_quant() for operator in target.float_operators})
        bias = affine(INT32) if target.biases[0] == "int32" else no_quant()
        for weight, activation in layer_choices(target):
            units = weight.granularity in (None, PerTensor()), activation.granularity is None
            if target.points and all(units):
                yield {"weight": weight, "activation": activation, "bias": bias, "operators": left}

    def resolve_operator(
        self, paths: tuple[str, ...], role: str, module_type: str, operator: str
    ) -> Resolution[QuantSpec]:
        """Return the spec of one point of an operator, with the rule that decided.

        `paths` name the point from the most specific to the module's; `role` is ``"weight"`` or
        ``"activation"``; `module_type` is a dotted path.

        Raises:
            ConfigError: two overrides contradict each other, or one does not fit the default.

        >>> config = PT2EConfig(operators={"softmax": no_quant()})
        >>> config.resolve_operator(("soft.act_out", "soft"), "activation", "x.Softmax", "softmax").origin
        "operators['softmax']"
        """
        rule = winning_rule(self.overrides, paths)
        if rule is not None:
            change = self.overrides[rule.pattern]
            return self.apply_change(role, f"overrides[{rule.pattern!r}]", change, paths[0])
        for key in (module_type, module_type.rpartition(".")[2]):
            if key in self.module_types:
                return self.apply_change(role, f"module_types[{key!r}]", self.module_types[key], paths[0])
        if operator in self.operators:
            return self.apply_change(role, f"operators[{operator!r}]", self.operators[operator], paths[0])
        return Resolution(self.weight if role == "weight" else self.activation, role)

    def field_problems(self) -> Sequence[Problem | None]:
        """Return what is wrong with the biases, the changes of types and operators, and the free axes."""
        changes = (("module_types", self.module_types), ("operators", self.operators))
        return [
            *super().field_problems(),
            _bias_problem(self.bias),
            *(problem for field, value in changes for problem in self._mapping_problems(field, value)),
            *([] if self.dynamic_shapes is None else _shape_problems(self.dynamic_shapes)),
        ]

    def _mapping_problems(self, field: str, changes: object) -> list[Problem]:
        if not isinstance(changes, FrozenMapping):
            return [Problem(field=field, value=changes, expected="a mapping from names to specs")]
        return [
            problem
            for key, change in changes.items()
            for problem in self.change_problems(f"{field}[{key!r}]", change)
        ]


def _bias_problem(bias: QuantSpec) -> Problem | None:
    if bias in (affine(INT32), no_quant()):
        return None
    expected = "affine(INT32), or no_quant() for biases in float"
    return Problem(field="bias", value=Found(str(bias)), expected=expected)


def _shape_problems(shapes: object) -> list[Problem]:
    if not isinstance(shapes, FrozenMapping):
        return [Problem(field="dynamic_shapes", value=shapes, expected="None or a mapping from input names")]
    found = []
    for name, axes in shapes.items():
        names = axes if isinstance(axes, tuple) else (0,)
        if not all(axis is None or (isinstance(axis, str) and axis.isidentifier()) for axis in names):
            value = Found(repr(axes))
            found.append(Problem(field=f"dynamic_shapes[{name!r}]", value=value, expected=_AXES))
    return found
