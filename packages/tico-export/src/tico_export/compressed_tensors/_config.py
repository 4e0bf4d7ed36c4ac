"""What stands in the config of a model of compressed-tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tico_export.compressed_tensors._scheme import Scheme
from tico_export.compressed_tensors._targets import targets_of


def quantization_config(
    schemes: Mapping[str, Scheme], linear: Collection[str], cache: Mapping[str, object] | None = None
) -> Mapping[str, object]:
    """Return ``quantization_config``: a group for each scheme with patterns that name its layers.

    `cache` is what keys and values are, where they are kept as codes.
    `linear` are the paths of all linear layers of the float model; those left in float are to be ignored.
    """
    groups: dict[Scheme, list[str]] = {}
    for path, scheme in schemes.items():
        groups.setdefault(scheme, []).append(path)
    formats = sorted({each.format for each in groups})
    layers = {*linear, *schemes}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats[0] if len(formats) == 1 else "mixed-precision" if formats else "dense",
        "config_groups": {
            f"group_{number}": scheme.to_json(targets_of(paths, layers.difference(paths)))
            for number, (scheme, paths) in enumerate(groups.items())
        },
        "ignore": sorted(set(linear) - schemes.keys()),
        "kv_cache_scheme": cache,
        "global_compression_ratio": None,
    }
