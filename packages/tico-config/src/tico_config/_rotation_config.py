"""The config of rotations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import attrs

from tico_config._deployment_profile import DeploymentProfile
from tico_config._module_config import ModuleConfig
from tico_config._problem import Problem
from tico_config._registry import register_config
from tico_config.validation import check_integer


@register_config
@attrs.frozen(kw_only=True)
class RotationConfig(ModuleConfig):
    """Orthogonal matrices folded into the weights, so that no channel is larger than the others.

    QuaRot, Ashkboos et al. 2024, arXiv 2404.00456; SpinQuant, Liu et al. 2024, arXiv 2405.16406, where the
    matrices of the residual stream and of the value heads are called R1 and R2, and that in front of a layer
    R4. The model stays float and computes what it did; another algorithm quantizes it afterwards. An override
    holds for all that shares a matrix with the modules it names, and must not contradict another one there.

    Attributes:
        residual: whether the residual stream is rotated: what embeddings and layers write to it, and what
            norms and layers read from it.
        heads: whether the values of each attention head are rotated, between the layer that gives them and
            the one that reads what attention makes of them.
        online_inputs: whether inputs that no folded matrix reaches are rotated while the model runs, as those
            of a layer behind a product or an activation. The inverse is folded into the weight. This puts a
            multiplication in front of the layer, which takes a few percent of a forward pass.
        matrix: ``"hadamard"`` for a Hadamard matrix with random signs, times a small random matrix where
            there is none of the size; ``"random"`` for a matrix drawn uniformly.
        seed: the seed of what is drawn.
        tied_embeddings: what becomes of a head that shares its weight with the embeddings and reads a norm
            whose weight has to be folded into it: ``"untie"`` gives it a weight of its own, which takes
            memory and is in the report; ``"refuse"`` leaves that stream alone.

    Raises:
        ConfigError: one or more fields are wrong; all are reported.

    >>> config = RotationConfig(overrides={"*.layers.3.*": {"heads": False}})
    >>> config.resolve("model.layers.3.v_proj").spec.heads
    False
    """

    name: ClassVar[str] = "rotation"
    fixed_fields: ClassVar[frozenset[str]] = frozenset({"overrides", "tied_embeddings"})

    residual: bool = True
    heads: bool = True
    online_inputs: bool = False
    matrix: Literal["hadamard", "random"] = "hadamard"
    seed: int = 0
    tied_embeddings: Literal["untie", "refuse"] = "untie"

    def field_problems(self) -> Sequence[Problem | None]:
        """Return whether `seed` is out of range."""
        return [check_integer("seed", self.seed, 0)]

    @classmethod
    def choices_for(cls, target: DeploymentProfile) -> Iterable[Mapping[str, object]]:
        """Yield fields of configs that are legal for `target`: folded matrices have a place anywhere."""
        return ({},)
