"""Everything that an algorithm promises, as one class of tests."""

from __future__ import annotations

from tico_quantizers.testing._promises.composition_promises import CompositionPromises
from tico_quantizers.testing._promises.config_promises import ConfigPromises
from tico_quantizers.testing._promises.copy_promises import CopyPromises
from tico_quantizers.testing._promises.data_promises import DataPromises
from tico_quantizers.testing._promises.failure_promises import FailurePromises
from tico_quantizers.testing._promises.layer_promises import LayerPromises
from tico_quantizers.testing._promises.surroundings_promises import SurroundingsPromises


class AlgorithmPromises(
    ConfigPromises,
    LayerPromises,
    DataPromises,
    CopyPromises,
    FailurePromises,
    SurroundingsPromises,
    CompositionPromises,
):
    """What every algorithm promises, as tests for pytest to collect from a subclass.

    A subclass names its config; everything else has a default, also the models and the data. Where an
    algorithm does not keep a promise yet, `unmet` says why; the test must fail then, and the entry must go
    once it passes.

    Attributes:
        config: the config under test.
        registry: which quantizer serves `config`; by default the entries of installed packages, and the
            algorithms of tico-quantizers.
        needs_data: whether converting without calibration data is an error; False for an algorithm that
            learns nothing from data.
        near: by what share of its norm an output may differ from the float one.
        faults: how many calls of torch get to raise in each call under test.
        unmet: promises that are not kept yet, by the name of the test, each with the reason.

    >>> from tico_config import GPTQConfig
    >>> class TestGPTQ(AlgorithmPromises):
    ...     config = GPTQConfig(show_progress=False)
    >>> TestGPTQ().test_config_round_trips_through_json()
    """
