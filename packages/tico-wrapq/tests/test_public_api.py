"""The public names of tico_wrapq."""

from public_api import PublicAPI


class TestPublicAPI(PublicAPI):
    """What `tico_wrapq` promises."""

    package = "tico_wrapq"
    hidden = ("tico_api", "tico")
    names = ()
