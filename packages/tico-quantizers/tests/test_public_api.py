"""The public names of tico_quantizers."""

from public_api import PublicAPI


class TestPublicAPI(PublicAPI):
    """What `tico_quantizers` promises."""

    package = "tico_quantizers"
    hidden = ("tico_wrapq", "tico_api", "tico")
    names = ()
