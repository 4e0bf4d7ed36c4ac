"""The public names of tico_api."""

from public_api import PublicAPI


class TestPublicAPI(PublicAPI):
    """What `tico_api` promises."""

    package = "tico_api"
    hidden = ("transformers", "torchao")
    names = ()


class TestPublicAlias(PublicAPI):
    """What `tico.quantization` promises."""

    package = "tico.quantization"
    hidden = ("transformers", "torchao")
    names = ()


class TestPublicConfigAlias(PublicAPI):
    """What `tico.quantization.config` promises."""

    package = "tico.quantization.config"
    hidden = ("transformers", "torchao")
    names = ()
