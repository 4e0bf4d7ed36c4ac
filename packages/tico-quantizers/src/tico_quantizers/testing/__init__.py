"""What every algorithm promises, as a class of tests for pytest; and what else such tests need.

It comes with the extra ``tico-quantizers[testing]``; nothing else imports it.
"""

import pytest

# Before they are imported: a failed assertion then shows its values.
pytest.register_assert_rewrite(f"{__name__}._promises", f"{__name__}._model_state")

from tico_quantizers.testing._faults import HookRegistrations, TorchCalls, calls_of, sampled  # noqa: E402
from tico_quantizers.testing._model_state import (  # noqa: E402
    modules_by_path,
    process_settings,
    refused,
    same_tensors,
    state_of,
    tensors_of,
    unchanged,
)
from tico_quantizers.testing._models import ConvNet, Fourfold, ResidualBlock, seeded, values  # noqa: E402
from tico_quantizers.testing._promises.algorithm_promises import AlgorithmPromises  # noqa: E402

__all__ = [
    "AlgorithmPromises",
    "ConvNet",
    "Fourfold",
    "HookRegistrations",
    "ResidualBlock",
    "TorchCalls",
    "calls_of",
    "modules_by_path",
    "process_settings",
    "refused",
    "same_tensors",
    "sampled",
    "seeded",
    "state_of",
    "tensors_of",
    "unchanged",
    "values",
]
