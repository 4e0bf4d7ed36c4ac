"""What every exporter promises, as a class of tests to inherit; install `tico-export[testing]`.

An exporter's tests are a subclass of `ExporterPromises` that lists the targets to try it with:

    class TestCodes(ExporterPromises):
        registry = ExporterRegistry([ENTRY])
        cases = {"codes": ExporterCase(target=Codes(), make=converted, args=(torch.ones(5, 8),))}
"""

from tico_config import MissingExtraError, Problem

try:
    import pytest
except ImportError as error:
    raise MissingExtraError(
        Problem(
            field="pytest", expected="installed", remedy="install the extra testing: tico-export[testing]"
        )
    ) from error

# Before it is imported, so that a promise that is broken shows the values compared.
pytest.register_assert_rewrite("tico_export.testing._exporter_promises")

from tico_export.testing._exporter_case import ExporterCase  # noqa: E402  # see above
from tico_export.testing._exporter_promises import ExporterPromises  # noqa: E402  # see above

__all__ = ["ExporterCase", "ExporterPromises"]
