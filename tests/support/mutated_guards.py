"""Files with guards that tests must hold, with these tests, and the mutants that no test can tell apart."""

from __future__ import annotations

from typing import Final

_QUANTIZERS: Final = "packages/tico-quantizers/src/tico_quantizers"
_SMOOTHQUANT: Final = "tests/quantizers/test_smoothquant.py"
# Without what takes long and depends on few guards: searches, faults, trained models.
_SMOOTHING: Final = (
    "tests/quantizers/test_channel_flow.py",
    "tests/property/test_channel_flow_laws.py",
    "tests/quantizers/test_channel_scale.py",
    "tests/quantizers/test_folding.py",
    "tests/quantizers/test_smoothing_pairs.py",
    "tests/property/test_smoothing_laws.py",
    f"{_SMOOTHQUANT}::test_channels_of_zeros_keep_their_scale",
    f"{_SMOOTHQUANT}::test_short_floats_are_multiplied_by_powers_of_two",
    f"{_SMOOTHQUANT}::test_with_multiplications_the_float_function_stays",
    f"{_SMOOTHQUANT}::test_a_multiplication_takes_the_scale_that_nothing_else_can",
    f"{_SMOOTHQUANT}::test_a_lone_layer_gets_a_multiplication",
    f"{_SMOOTHQUANT}::test_overrides_name_a_module_of_the_pair",
    f"{_SMOOTHQUANT}::test_overrides_that_do_not_fit_are_refused",
    f"{_SMOOTHQUANT}::test_pairs_come_from_the_example_or_from_the_first_pass",
    f"{_SMOOTHQUANT}::test_without_data_nothing_is_converted",
    f"{_SMOOTHQUANT}::test_data_that_are_not_finite_are_refused",
    f"{_SMOOTHQUANT}::test_weights_that_would_overflow_are_refused",
    f"{_SMOOTHQUANT}::test_hooks_and_modules_of_the_user_stay",
)
_REPLAY: Final = (
    "tests/quantizers/test_replay_guards.py",
    "tests/quantizers/test_block_replay.py",
    "tests/quantizers/test_gptq_call_ends.py",
)

GUARDS: Final[dict[str, tuple[str, ...]]] = {
    f"{_QUANTIZERS}/equivalence/_channel_flow.py": _SMOOTHING,
    f"{_QUANTIZERS}/equivalence/_channel_scale.py": _SMOOTHING,
    f"{_QUANTIZERS}/equivalence/_folding.py": _SMOOTHING,
    f"{_QUANTIZERS}/equivalence/_input_maxima.py": _SMOOTHING,
    f"{_QUANTIZERS}/equivalence/_pair_calibration.py": _SMOOTHING,
    f"{_QUANTIZERS}/equivalence/_pair_search.py": _SMOOTHING,
    f"{_QUANTIZERS}/equivalence/_smoothing_pairs.py": _SMOOTHING,
    "packages/tico-modules/src/tico_modules/_tree/edit.py": ("tests/modules/test_edit.py",),
    f"{_QUANTIZERS}/calibration/_block_calls.py": (*_REPLAY, "tests/quantizers/test_gptq_passes.py"),
    f"{_QUANTIZERS}/calibration/_calls.py": _REPLAY,
    f"{_QUANTIZERS}/calibration/_call_template.py": _REPLAY,
    f"{_QUANTIZERS}/calibration/_snapshots.py": _REPLAY,
    "packages/tico-pt2e/src/tico_pt2e/_folding.py": (
        "tests/pt2e/test_pt2e_folding.py",
        "tests/pt2e/test_pt2e_integers.py",
        "tests/pt2e/test_pt2e_operators.py",
    ),
    "packages/tico-wrapq/src/tico_wrapq/ptq/_folds.py": (
        "tests/wrapq/test_fold_guards.py",
        "tests/wrapq/test_folds.py",
    ),
}
# By function and change, with the reason why it cannot matter.
EQUIVALENT: Final[dict[str, str]] = {
    **{
        f"_pooled: first is None or not call.name[-2:-1].isdigit() -> {new}": "pools have one tensor"
        for new in ("False", "first is None", "not call.name[-2:-1].isdigit()")
    },
    "computing_in: torch.cuda.is_available() -> False": "needs a GPU",
    **{
        "_mean: not isinstance(mean, Tensor) or not isinstance(squares, Tensor)"
        f" or (not torch.equal(mean ** 2, squares)) -> not isinstance({one}, Tensor)"
        " or not torch.equal(mean ** 2, squares)": "for mypy"
        for one in ("mean", "squares")
    },
    "_attention: numbers.ndim > 3 and numbers.shape[-3] != call.shape[-3] -> numbers.ndim > 3": (
        "heads that are as many are repeated once"
    ),
    "_Call.shape: isinstance(self.result, Tensor) -> True": "the rules that ask are for one tensor; for mypy",
    "_attention: numbers.ndim > 3 -> numbers.ndim >= 3": "batches are as many and repeated once",
    "ChannelFlow.begin: key in known and known[key][0] is reference -> True": "an id is free after the call",
    "ChannelFlow.begin: key in known and known[key][0] is reference -> False": "dead entries say nothing",
    "ChannelFlow.begin: key in known and known[key][0] is reference -> known[key][0] is reference": (
        "an id is free after the call"
    ),
    "_passed_on: channels is not None -> True": "no rule returns None; for mypy",
    "fingerprint: tensor.numel() -> True": "the sum over no bytes is 0",
    "_put: old is not None and old.requires_grad -> old.requires_grad": "for mypy: what is put was there",
    "CallTemplate.of: isinstance(leaf, Tensor | Opaque) -> True": "plain values are compared by `fits`",
    "exact_for: weight is not None and weight.dtype in _HALF -> weight.dtype in _HALF": "for mypy",
    "_joined: isinstance(parts, Sequence) -> True": "for mypy: torch takes nothing else",
    "ChannelFlow._note: followed -> True": "saves time where nothing is followed",
    "_stored: value is None -> False": "for mypy: a source has a weight",
    "Autocast.again: enabled or torch.is_autocast_enabled(device) -> True": "a context that changes nothing",
    **{
        f"_fold: weight is None or mean is None or variance is None -> {new}": "_can_take has asked; for mypy"
        for new in (
            "False",
            "mean is None or variance is None",
            "weight is None or variance is None",
            "weight is None or mean is None",
        )
    },
    "_weight_of: weight is None -> False": "_may_scale has asked; for mypy",
    "_output: stored.get('bias') is not None -> True": "one that it has not got is not read",
}
