"""What every wrapper promises, as a class of tests to inherit; install `tico-wrapq[testing]`.

A wrapper's tests are a subclass of `WrapperPromises` that lists the modules to try it with:

    class TestGate(WrapperPromises):
        cases = {"gate": WrapperCase(make=lambda: Gate(8), inputs=(torch.linspace(-1, 1, 64).view(8, 8),))}
"""

from tico_config import MissingExtraError, Problem

try:
    import pytest
except ImportError as error:
    raise MissingExtraError(
        Problem(field="pytest", expected="installed", remedy="install the extra testing: tico-wrapq[testing]")
    ) from error

# Before it is imported, so that a promise that is broken shows the values compared.
pytest.register_assert_rewrite("tico_wrapq.testing._wrapper_promises")

from tico_wrapq.testing._wrapper_case import WrapperCase  # noqa: E402  # see above
from tico_wrapq.testing._wrapper_promises import WrapperPromises  # noqa: E402  # see above

__all__ = ["WrapperCase", "WrapperPromises"]
