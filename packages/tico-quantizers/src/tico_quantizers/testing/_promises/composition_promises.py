"""One algorithm after another: it works, or it is refused, and nothing is lost between them."""

from __future__ import annotations

import pytest
from torch import nn

from tico_config import BaseConfig, PTQConfig, SmoothQuantConfig, TicoError
from tico_quantizers.lifecycle import convert
from tico_quantizers.registry import Registry, quantizer_entry
from tico_quantizers.testing._model_state import state_of
from tico_quantizers.testing._promises.suite import PromiseSuite, attempted, serving


class CompositionPromises(PromiseSuite):
    """The promises about models that another algorithm has converted before, or converts afterwards."""

    def test_before_ptq(self) -> None:
        """PTQ goes on with the result, or refuses it with one TicoError."""
        self._require_turns(self.config, PTQConfig(strict_wrap=False), _with_ptq(self.serves()))

    def test_after_ptq(self) -> None:
        """What PTQ has left is taken on, or refused with one TicoError."""
        self._require_turns(PTQConfig(strict_wrap=False), self.config, _with_ptq(self.serves()))

    def test_after_smoothquant(self) -> None:
        """What SmoothQuant has left is taken on, or refused with one TicoError."""
        self._require_turns(SmoothQuantConfig(), self.config, self.serves())

    def test_after_itself(self) -> None:
        """A model that was converted is converted again, or refused with one TicoError."""
        self._require_turns(self.config, self.config, self.serves())

    def _require_turns(self, first: BaseConfig, second: BaseConfig, registry: Registry) -> None:
        batch = self.batches()[0]
        expected = self.model()(batch)
        once = self._turn(self.model(), first, registry)
        self.require_near(once(batch), expected)
        before = state_of(once)
        outcome = attempted(lambda: self._turn(once, second, registry), TicoError)
        if isinstance(outcome, TicoError):
            assert state_of(once) == before
        else:
            self.require_near(outcome(batch), expected)

    def _turn(self, model: nn.Module, config: BaseConfig, registry: Registry) -> nn.Module:
        prepared = self.prepared(model, self.batches()[0], config=config, registry=registry)
        prepared(self.batches()[0])
        return convert(prepared)


def _with_ptq(registry: Registry) -> Registry:
    wrapq = pytest.importorskip("tico_wrapq", reason="PTQ is in tico-wrapq")
    return serving(registry, [quantizer_entry(PTQConfig, wrapq.PTQQuantizer)])
