"""The setting of all promises: the config under test, the models and data, and the calls around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, TypeVar

import attrs
import pytest
import torch
from torch import Tensor, nn

from tico_config import (
    AWQConfig,
    BaseConfig,
    BlockTuneConfig,
    CLEConfig,
    ConfigError,
    GPTQConfig,
    HQQConfig,
    Problem,
    RotationConfig,
    ScaleTuneConfig,
    SmoothQuantConfig,
    SpecConfig,
    TicoError,
    no_quant,
)
from tico_modules import named_modules
from tico_quantizers.algorithms.awq import AWQQuantizer
from tico_quantizers.algorithms.block_tune import BlockTuneQuantizer
from tico_quantizers.algorithms.cle import CLEQuantizer
from tico_quantizers.algorithms.gptq import GPTQQuantizer
from tico_quantizers.algorithms.hqq import HQQQuantizer
from tico_quantizers.algorithms.rotation import RotationQuantizer
from tico_quantizers.algorithms.scale_tune import ScaleTuneQuantizer
from tico_quantizers.algorithms.smoothquant import SmoothQuantQuantizer
from tico_quantizers.lifecycle import convert, prepare
from tico_quantizers.registry import (
    QuantizerEntry,
    Registry,
    composed_entry,
    installed_entries,
    quantizer_entry,
)
from tico_quantizers.testing._faults import TorchCalls
from tico_quantizers.testing._models import ConvNet, Fourfold, Masked, ResidualBlock, seeded, values

_BUILT_IN = (
    quantizer_entry(GPTQConfig, GPTQQuantizer),
    quantizer_entry(AWQConfig, AWQQuantizer),
    quantizer_entry(BlockTuneConfig, BlockTuneQuantizer),
    quantizer_entry(CLEConfig, CLEQuantizer),
    quantizer_entry(HQQConfig, HQQQuantizer),
    quantizer_entry(SmoothQuantConfig, SmoothQuantQuantizer),
    quantizer_entry(RotationConfig, RotationQuantizer),
    composed_entry(ScaleTuneConfig, ScaleTuneQuantizer, ScaleTuneConfig.aimed_base),
)
_ERRORS = (RuntimeError, KeyboardInterrupt, MemoryError)


T = TypeVar("T")
E = TypeVar("E", bound=TicoError)


def serving(registry: Registry, entries: Iterable[QuantizerEntry]) -> Registry:
    """Return `registry` with those of `entries` whose config types it does not serve."""
    return registry.with_entries(each for each in entries if each.config_type not in registry.config_types)


class PromiseSuite:
    """The setting of the promises, for a subclass to fill in.

    Attributes:
        config: the config under test; an algorithm that shows its progress has that switched off here.
        registry: which quantizer serves `config`; by default the entries of installed packages, and the
            algorithms of tico-quantizers.
        needs_data: whether converting without calibration data is an error.
        near: by what share of its norm an output may differ from the float one. The default fits weights of
            4 bits: rounded over their range, uniform weights change by 1 / 15 of their norm, outputs of the
            four layers of the default model by at most 2 / 15 if the errors are independent, and of that the
            double is allowed.
        faults: how many of the calls of torch in each call under test get to raise.
        unmet: promises that are not kept yet, by the name of the test, each with the reason. They must fail.
    """

    config: ClassVar[BaseConfig]
    registry: ClassVar[Registry | None] = None
    needs_data: ClassVar[bool] = True
    near: ClassVar[float] = 4 / 15
    faults: ClassVar[int] = 10
    unmet: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        """Refuse names in `unmet` that are no promise, and a class for pytest without a config.

        Raises:
            ConfigError: naming them.
        """
        super().__init_subclass__()
        if cls.__name__.startswith("Test") and not hasattr(cls, "config"):
            sentence = f"{cls.__name__} has no config to test; add ``config = …`` to the class"
            raise ConfigError(Problem(field="config", expected="a config", sentence=sentence))
        unknown = [name for name in cls.unmet if not (name.startswith("test_") and hasattr(cls, name))]
        if unknown:
            raise ConfigError(
                *(Problem(field="unmet", value=name, expected="the name of a test") for name in unknown)
            )

    @pytest.fixture(autouse=True)
    def _expect_unmet_to_fail(self, request: pytest.FixtureRequest) -> None:
        reason = self.unmet.get(str(request.node.name))
        if reason is not None:
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    def model(self) -> nn.Module:
        """Return the model of most promises, always the same one, in evaluation mode.

        It takes one tensor, and has a LayerNorm, a ReLU and layers that the algorithm quantizes.
        """
        return seeded(lambda: nn.Sequential(ResidualBlock(), ResidualBlock()))

    def batches(self) -> list[Tensor]:
        """Return three batches for `model`; along axis 0 are samples, which do not depend on each other."""
        return [values(seed, 4, 6, 8) for seed in range(3)]

    def conv_model(self) -> nn.Module:
        """Return a model with a convolution and a batch norm, always the same one, in evaluation mode."""
        return seeded(ConvNet)

    def conv_batches(self) -> list[Tensor]:
        """Return three batches for `conv_model`."""
        return [values(seed, 6, 2, 4, 4) for seed in range(3)]

    def masked_model(self) -> nn.Module:
        """Return a model that treats each token of its first argument (…, 8) by itself.

        The second one is the mask, which hides tokens from the output.
        """
        return seeded(Masked)

    def unlike_model(self) -> nn.Module:
        """Return a model, for the batches of `model`, one layer of which computes more than its class."""
        return seeded(lambda: nn.Sequential(ResidualBlock(), Fourfold(8, 8)))

    def override(self) -> object:
        """Return an override that `config` takes for any layer, and that changes nothing if it can."""
        if isinstance(self.config, SpecConfig):
            return self.config.weight
        names = (field.name for field in attrs.fields(type(self.config)))
        free = [name for name in names if name not in self.config.fixed_fields | {"target"}]
        return {name: getattr(self.config, name) for name in free[:1]} or no_quant()

    def overridden(self, path: str) -> BaseConfig:
        """Return the config with `override` for one path."""
        return attrs.evolve(self.config, overrides={path: self.override()})

    def serves(self) -> Registry:
        """Return the registry that all calls use."""
        chosen = Registry(installed_entries()) if self.registry is None else self.registry
        return serving(chosen, _BUILT_IN)

    def works_in_place(self, config: BaseConfig | None = None) -> bool:
        """Return whether the quantizer can work on the very object that it is given."""
        return self.serves().quantizer(config or self.config).works_in_place

    def prepared(
        self,
        model: nn.Module,
        *example: Tensor,
        config: BaseConfig | None = None,
        registry: Registry | None = None,
        **keywords: Tensor,
    ) -> nn.Module:
        """Return `model` prepared with `config`, by default the one under test; in place where that works."""
        chosen, served = config or self.config, registry or self.serves()
        inplace = served.quantizer(chosen).works_in_place
        return prepare(model, chosen, example, keywords, inplace, registry=served)

    def calibrated(
        self, model: nn.Module, batches: Sequence[Tensor], config: BaseConfig | None = None
    ) -> nn.Module:
        """Return `model` prepared with the first batch as the example and calibrated with all."""
        prepared = self.prepared(model, batches[0], config=config)
        for batch in batches:
            prepared(batch)
        return prepared

    def quantized(self, model: nn.Module | None = None, batches: Sequence[Tensor] | None = None) -> nn.Module:
        """Return a model prepared, calibrated and converted; by default `model()` with the first batch."""
        chosen = self.model() if model is None else model
        return convert(self.calibrated(chosen, self.batches()[:1] if batches is None else batches))

    def require_near(self, found: Tensor, expected: Tensor) -> None:
        """Assert that `found` differs from `expected` by a share of at most `near` of its norm."""
        error = (found - expected).detach().double().norm() / expected.detach().double().norm()
        assert found.dtype == expected.dtype
        assert float(error) <= self.near

    def layer_paths(self) -> list[str]:
        """Return the paths of the linear layers of `model`."""
        return [path for path, module in named_modules(self.model()) if isinstance(module, nn.Linear)]

    def faulty(self, calls: Iterable[int]) -> Iterator[Callable[[Callable[[], object]], None]]:
        """Yield, for each number of a call, what runs an action with an exception raised at that call."""
        for index, call in enumerate(calls):
            yield _Fault(call, _ERRORS[index % len(_ERRORS)])


@attrs.frozen
class _Fault:
    call: int
    error: type[BaseException]

    def __call__(self, action: Callable[[], object]) -> None:
        # An algorithm that runs the model may say in an error of its own what the model has raised.
        told = TicoError if issubclass(self.error, Exception) else self.error
        with pytest.raises((self.error, told), match="injected"), TorchCalls(self.call, self.error):
            action()


def attempted(action: Callable[[], T], refusal: type[E]) -> T | E:
    """Return what `action` gives, or the error of the type `refusal` that it raises."""
    try:
        return action()
    except refusal as error:
        return error


def same_output(one: nn.Module, other: nn.Module, batch: Tensor) -> bool:
    """Tell whether two models give the same bits for a batch."""
    return torch.equal(one(batch), other(batch))
