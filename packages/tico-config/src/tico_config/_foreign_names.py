"""What other libraries call a field, and what to do here instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

SAME: Final[Mapping[str, Sequence[str]]] = {
    "act_dtype": ("activation",),
    "act_group_aware": ("act_order",),
    "act_mapping_type": ("activation", "qscheme"),
    "actorder": ("act_order",),
    "custom_alpha_map": ("overrides",),
    "damp_percent": ("damping",),
    "dampening_frac": ("damping",),
    "default_dtype": ("activation", "dtype"),
    "default_observer": ("activation", "observer"),
    "default_qscheme": ("activation", "qscheme"),
    "desc_act": ("act_order",),
    "dynamic": ("overrides",),
    "embedding_weight": ("overrides",),
    "gptaq": ("asymmetric",),
    "gptq_v2_alpha": ("asymmetric",),
    "ignore": ("overrides",),
    "init_method": ("matrix",),
    "iters": ("steps",),
    "linear_weight": ("weight",),
    "lm_head": ("overrides",),
    "lm_head_weight": ("overrides",),
    "mapping_type": ("symmetric", "qscheme"),
    "max_iter": ("sweeps",),
    "migration_strength": ("alpha",),
    "modules_to_not_convert": ("overrides",),
    "mse": ("observer",),
    "norm": ("overrides",),
    "norm_weight": ("overrides",),
    "num_bits": ("bits", "dtype", "weight"),
    "offload_hessians": ("gram_memory",),
    "pairs": ("mappings",),
    "percdamp": ("damping",),
    "perchannel": ("per_tensor", "granularity"),
    "q_group_size": ("group_size",),
    "quantize_lm_head": ("overrides",),
    "smoothing_strength": ("alpha",),
    "sym": ("symmetric", "qscheme"),
    "targets": ("overrides",),
    "transform_type": ("matrix",),
    "verbose": ("show_progress",),
    "w_bit": ("bits", "weight"),
    "wbits": ("bits", "weight"),
    "weight_bits": ("bits", "weight"),
    "weight_bits_overrides": ("overrides",),
    "weight_dtype": ("bits", "weight"),
    "wrapper_variant": ("variant",),
    "zero_point": ("symmetric", "qscheme"),
}
"""The fields here that mean what a name elsewhere does; a config has the first or another one."""

_DATA: Final = "pass the data to calibrate(model, batches)"
_FIELDS: Final = "set the width, the groups and the symmetry by fields of their own"
_FILES: Final = "choose the format of a file when it is exported"
_FORMAT: Final = (
    "for a format of floating-point elements take GPTQConfig, AWQConfig or BlockTuneConfig with dtype=…, or"
    " PTQConfig(weight=affine(…))"
)
_ROW: Final = "it changes no result here; leave it out"

INSTEAD: Final[Mapping[str, str]] = {
    "acts_from": "leave it out, what the layers read decides",
    "attention_mask_fill_value": "leave it out, masks keep their own values",
    "block_size": _ROW,
    "blocksize": _ROW,
    "calibration_data": _DATA,
    "config_groups": _FIELDS,
    "damp_auto_increment": "leave it out, more damping is tried by itself where it is needed",
    "dataset": _DATA,
    "dtype": _FORMAT,
    "eps": _ROW,
    "format": _FILES,
    "max_seq_length": _DATA,
    "model_args": "leave it out, sizes are read from the model",
    "num_calibration_samples": _DATA,
    "num_calibration_steps": _DATA,
    "pack_dtype": _FILES,
    "scheme": _FIELDS,
    "sequential_targets": "leave it out, blocks are found from the structure of the model",
}
"""What to do in the place of a field that has no counterpart here."""
