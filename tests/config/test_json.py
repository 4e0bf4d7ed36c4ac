"""JSON: what is refused, where the error points, and that nothing is imported."""

from __future__ import annotations

import builtins
import importlib
import json
import time
from typing import Final

import pytest

from tico_config import ConfigError, DType, GPTQConfig, MinMaxSpec, PTQConfig, affine, from_json, to_json

GOLDEN: Final = (
    '{"config":{'
    '"act_order":false,'
    '"activation_dtype":null,'
    '"asymmetric":0.0,'
    '"bits":4,'
    '"calibrate_all_experts":false,'
    '"checkpoint_dir":null,'
    '"damping":0.01,'
    '"damping_reference":"mean",'
    '"forward_dtype":null,'
    '"gram_memory":17179869184,'
    '"group_size":null,'
    '"kind":"GPTQConfig",'
    '"min_expert_tokens":32,'
    '"observer":{"kind":"MinMaxSpec"},'
    '"offload":null,'
    '"on_uncalibrated":"error",'
    '"overrides":{"items":{},"kind":"Mapping"},'
    '"per_tensor":false,'
    '"ragged_groups":false,'
    '"row_gain":false,'
    '"show_progress":true,'
    '"static_groups":false,'
    '"stop_after_capture":false,'
    '"symmetric":false,'
    '"token_weights":"auto",'
    '"true_sequential":false'
    '},"schema":1}'
)


def changed(**fields: object) -> str:
    """Return the golden text with some fields of the config changed."""
    document = json.loads(GOLDEN)
    document["config"].update(fields)
    return json.dumps(document)


def test_the_first_version_is_read_and_written() -> None:
    """The text of schema version 1 does not change."""
    paper = GPTQConfig(act_order=False, static_groups=False, row_gain=False, observer=MinMaxSpec())
    assert to_json(paper) == GOLDEN
    assert from_json(GOLDEN) == paper


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "$"),
        ("null", "$"),
        ("[1, 2]", "$"),
        ("\ufeff" + GOLDEN, "$"),
        (GOLDEN + "x", "$"),
        (GOLDEN.replace("0.01", "NaN"), "$"),
        (GOLDEN.replace("0.01", "-Infinity"), "$"),
        (GOLDEN.replace('"bits":4', '"bits":4,"bits":5'), "$"),
        (GOLDEN.replace('"schema":1', '"schema":2'), "$.schema"),
        (GOLDEN.replace('"schema":1', '"schema":true'), "$.schema"),
        (GOLDEN.replace(',"schema":1', ""), "$"),
        (changed(bits=True), "$.config.bits"),
        (changed(bits=4.0), "$.config.bits"),
        (changed(bits="\ud800"), "$.config.bits"),
        (changed(damping=[]), "$.config.damping"),
        (changed(extra=1), "$.config"),
        (changed(kind="os.system"), "$.config.kind"),
        (changed(kind="../x"), "$.config.kind"),
        (changed(kind=None), "$.config.kind"),
        (changed(kind="DType"), "$.config"),
        (changed(overrides={"kind": "Mapping", "items": {"a": {"kind": "Mapping"}}}), "$.config.overrides.a"),
        (changed(overrides={"kind": "Mapping", "items": {"a": 1}}), "$.config.overrides['a']"),
        (changed(overrides={"kind": "Mapping", "items": [1]}), "$.config.overrides"),
        ("[" * 100_000, "$"),
        (" " * 2**20 + GOLDEN, "$"),
        ("9" * 100_000, "$"),
    ],
)
def test_anything_else_is_refused_with_its_place(text: str, field: str) -> None:
    """The field is the path of what is wrong, and refusing takes no time."""
    start = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        from_json(text)
    assert caught.value.field == field
    assert time.perf_counter() - start < 1.0


def test_newer_documents_are_told_from_wrong_ones() -> None:
    """The message says that a newer version wrote the document."""
    with pytest.raises(ConfigError, match="produced by a newer version"):
        from_json(GOLDEN.replace('"schema":1', '"schema":9'))


def test_nested_values_are_reported_by_index() -> None:
    """A place inside a list is named by its index."""
    text = changed(overrides={"kind": "Mapping", "items": {"a": [0, {"kind": "DType"}]}})
    with pytest.raises(ConfigError) as caught:
        from_json(text)
    assert caught.value.field == "$.config.overrides.a[1]"


def test_nothing_is_imported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading looks names up in a table, and leaves the import system alone."""
    text = to_json(PTQConfig(overrides={"a": affine(DType.int(4))}))

    def refuse(*args: object, **kwargs: object) -> object:
        raise AssertionError(args, kwargs)

    monkeypatch.setattr(importlib, "import_module", refuse)
    monkeypatch.setattr(builtins, "__import__", refuse)
    config = from_json(text)
    monkeypatch.undo()
    assert isinstance(config, PTQConfig)


def test_large_configs_are_read_in_time() -> None:
    """Ten thousand rules, close to the limit of size, take seconds at most."""
    config = GPTQConfig(overrides={f"layers.{i}": {"bits": 8} for i in range(10_000)})
    text = to_json(config)
    start = time.perf_counter()
    assert from_json(text) == config
    assert time.perf_counter() - start < 10.0
