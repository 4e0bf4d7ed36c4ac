"""The public name of `tico_api.integrations`: importing it registers with the libraries that are installed.

>>> import tico.quantization.integrations
"""

from tico_api.integrations import register, round_on_load

register()

__all__ = ["register", "round_on_load"]
