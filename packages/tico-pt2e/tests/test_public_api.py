"""The public names of tico_pt2e."""

from public_api import PublicAPI


class TestPublicAPI(PublicAPI):
    """What `tico_pt2e` promises."""

    package = "tico_pt2e"
    hidden = ("tico_wrapq", "tico_api", "tico")
    names = (
        "GPTQEverywhere",
        "PT2EQuantizer",
        "QuantGraph",
    )
