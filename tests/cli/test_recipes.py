"""Recipes: what comes along fits, and what is wrong in one is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from program_runs import Run
from tico.quantization import plan
from tico.quantization.config import (
    DType,
    GPTQConfig,
    KVCacheConfig,
    MSESpec,
    PerToken,
    PTQConfig,
    affine,
    no_quant,
    profiles,
)
from tico_cli import DataNeed, Recipe, read_recipe, shipped_names
from tico_cli._model_folders import skeleton
from tico_config import ConfigError

FREE_OF_GROUPS = [name for name in shipped_names() if not read_recipe(name).exports]


@pytest.mark.parametrize("name", FREE_OF_GROUPS)
def test_every_recipe_without_a_runtime_fits_any_model(name: str, source: Path) -> None:
    """Groups that do not divide the columns of a model are no reason to refuse it."""
    assert plan(skeleton(source), read_recipe(name).stages).bytes > 0


@pytest.mark.parametrize("name", shipped_names())
def test_every_recipe_says_what_it_makes(name: str) -> None:
    """The list has a line for each, and its stages have a short text."""
    assert read_recipe(name).description


def test_stages_have_the_values_of_configs() -> None:
    """Formats, granularities, observers, targets and overrides are texts or tables in TOML."""
    recipe = Recipe.parse(
        "mine.toml",
        """
        [data]
        samples = 8

        [[stage]]
        algorithm = "gptq"
        bits = 4
        group_size = 32
        symmetric = true
        observer = { kind = "mse", steps = 20 }
        target = "llama_cpp"
        overrides."*.down_proj" = { bits = 8 }
        overrides."*.o_proj" = "float"

        [[stage]]
        algorithm = "ptq"
        scope = "linear"
        weight = "float"
        activation = { dtype = "int8", granularity = "per_token" }
        overrides."*.down_proj.act_in" = { dtype = "int16" }

        [[stage]]
        algorithm = "kv_cache"
        key = { dtype = "uint4" }
        value = "float"
        """,
    )
    assert recipe.data == DataNeed(samples=8)
    assert recipe.stages == (
        GPTQConfig(
            bits=4,
            group_size=32,
            symmetric=True,
            observer=MSESpec(steps=20),
            target=profiles.LLAMA_CPP,
            overrides={"*.down_proj": {"bits": 8}, "*.o_proj": no_quant()},
        ),
        PTQConfig(
            scope="linear",
            weight=no_quant(),
            activation=affine(DType.int(8), granularity=PerToken()),
            overrides={"*.down_proj.act_in": {"dtype": DType.int(16)}},
        ),
        KVCacheConfig(key=affine(DType.uint(4)), value=no_quant()),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[[stage]]\nalgorithm = "gtpq"',
            "mine.toml, stage: there is no algorithm 'gtpq'; the nearest is 'gptq'",
        ),
        ("[[stage]]\nbits = 4", "algorithm must be a name, got None; write for example algorithm"),
        ('[[stage]]\nalgorithm = "gptq"\ngroup_siz = 8', "no field 'group_siz'; the nearest is 'group_size'"),
        (
            '[[stage]]\nalgorithm = "gptq"\nbits = 99',
            "mine.toml, stage: bits must be an integer from 2 to 8, got 99",
        ),
        ('[[stage]]\nalgorithm = "gptq"\n[[stage]]\nalgorithm = "awq"\nbits = 9', "mine.toml, stage 2: bits"),
        ('[[stage]]\nalgorithm = "ptq"\nweight = { dtype = "int" }', "dtype must be a text such as 'int8'"),
        (
            '[[stage]]\nalgorithm = "ptq"\nactivation = { granularity = "per_tokn" }',
            "no granularity 'per_tokn'; the nearest is 'per_token'",
        ),
        ('[[stage]]\nalgorithm = "ptq"\nobserver = "mse"', "PTQConfig has no field 'observer'"),
        ('[[stage]]\nalgorithm = "gptq"\nobserver = "mean"', "there is no observer 'mean'"),
        ('[[stage]]\nalgorithm = "gptq"\ntarget = "vlm"', "there is no target 'vlm'; the nearest is 'vllm'"),
        (
            '[[stage]]\nalgorithm = "gptq"\noverrides."*.q" = 3',
            'expected "float", or a table with some fields',
        ),
        ("[[stages]]", "there is no key 'stages'; the nearest is 'stage'"),
        ("stage = 3", r"stage must be tables [[stage]], got 3"),
        ("", r"stage must be one table [[stage]] or more, got none"),
        ("stage =", "it is no TOML"),
        ('[data]\nsample = 1\n[[stage]]\nalgorithm = "gptq"', "no key 'sample'; the nearest is 'samples'"),
        ('[data]\nsamples = 0\n[[stage]]\nalgorithm = "gptq"', "mine.toml, data: samples must be an integer"),
        ('data = 3\n[[stage]]\nalgorithm = "gptq"', "data must be a table"),
        ('[[stage]]\nalgorithm = "gptq"\n[[export]]\n', "format must be a name, got None"),
        ('description = 3\n[[stage]]\nalgorithm = "gptq"', "description must be a text, got 3"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(text: str, message: str) -> None:
    """The file, the stage and the field are told, with the name that is meant or what is expected."""
    with pytest.raises(ConfigError) as caught:
        Recipe.parse("mine.toml", text)
    assert message in str(caught.value)


def test_a_recipe_can_be_shown_and_begun_from(tico: Run, tmp_path: Path) -> None:
    """What `tico recipes NAME` prints is a recipe of the same meaning."""
    mine = tmp_path / "mine.toml"
    mine.write_text(tico("recipes", "w4a8").stdout, encoding="utf-8")
    assert read_recipe(str(mine)).stages == read_recipe("w4a8").stages


def test_recipes_are_listed(tico: Run) -> None:
    """As a table, and as JSON with stages and data."""
    assert "| w4a16 | weights of 4 bits by GPTQ, groups of 64 |" in tico("recipes").stdout
    listed = {each["name"]: each for each in json.loads(tico("recipes", "--json").stdout)}
    assert tuple(listed) == shipped_names()
    assert listed["w4a16"]["stages"] == ["GPTQConfig(group_size=64, ragged_groups=True)"]
    assert listed["w8a16"]["data"] is None
