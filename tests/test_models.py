"""Presets: every system of the paper's tables has one, and a name stands for what the system needs."""

from __future__ import annotations

import csv
import json
from importlib.resources import files
from typing import Any

import pytest
from typer.testing import CliRunner

from e2bench.cli import app
from e2bench.errors import E2BenchError
from e2bench.experiments.loading import with_preset
from e2bench.experiments.options import Common
from e2bench.prompts.chat import NAMES
from e2bench.prompts.truncation import input_limit
from e2bench.rope.windows import parse_scale, scale_rule
from e2bench.tasks.models import PRESETS, find
from e2bench.train.recipe import RECIPES


def given(**values: Any) -> Common:
    """Shared settings of texts, as the command line gives them."""
    return Common.read(values)


def published(table: str) -> list[dict[str, str]]:
    text = (files("e2bench.reporting") / "published" / f"{table}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize("table", ["table1", "table2"])
def test_every_system_of_tables_1_and_2_has_a_preset(table: str) -> None:
    for row in published(table):
        preset = find(row["model"])
        assert preset is not None, row["model"]
        assert table[-1] in preset.tables


def test_every_row_of_tables_3_and_7_has_a_preset() -> None:
    sizes = {"7B", "13B"}
    for table in ("3", "7"):
        names = [preset.name for preset in PRESETS if table in preset.tables]
        for size in sizes:
            assert f"Llama2-{size}-4k" in names
            assert {f"E²-LLM-Llama2-{size}-32k", f"E²-LLM-Llama2-{size}-64k"} <= set(names)
    assert {row["size"] for row in published("table7")} == sizes


def test_facts_of_a_preset_agree_with_each_other() -> None:
    assert len({preset.name for preset in PRESETS}) == len(PRESETS)
    for preset in PRESETS:
        assert preset.chat in NAMES
        assert (preset.repo is None) == (preset.recipe is not None)
        assert preset.input_limit == input_limit(preset.window, 512)  # LongBench's rule gives the official limits
        if preset.native_window:
            assert preset.window == preset.scale * preset.native_window
        if preset.recipe:
            assert (RECIPES / f"{preset.recipe.split()[0]}.yaml").exists()


def test_a_name_stands_for_hub_id_scale_and_native_window() -> None:
    common = with_preset(given(model="vicuna-v1.5-7b-16k"))
    assert (common.model, common.scale, common.native_window) == ("lmsys/vicuna-7b-v1.5-16k", parse_scale("4"), 4096)
    rule = scale_rule(common.scale, common.method, 4096, None)
    assert rule.window(None) == 16384
    assert with_preset(given(model="vicuna-v1.5-7b-16k", scale="8")).scale == parse_scale("8")  # what is given wins
    assert with_preset(given(model="Llama2-7B-chat-4k")).scale is None
    assert with_preset(common) == common
    served = with_preset(given(model="gpt-3.5-turbo-16k"))
    assert served.model == "https://api.openai.com/v1"
    assert served.served_model_name == "gpt-3.5-turbo-16k"


def test_systems_that_were_never_published_name_their_recipe() -> None:
    with pytest.raises(E2BenchError, match=r"never published; train it with e2bench train llama2-13b .*--scale 8"):
        with_preset(given(model="E2-LLM-Llama2-13B-32k"))
    with pytest.raises(E2BenchError, match="method=pi scale=4"):
        with_preset(given(model="PI-Llama2-13B-16k"))


def test_other_names_pass_through_but_for_misspelt_presets() -> None:
    for name in (None, "gpt2", "meta-llama/Llama-2-7b-hf", "https://host/v1"):
        assert with_preset(given(model=name)).model == name
    with pytest.raises(E2BenchError, match=r"did you mean the preset Vicuna-v1\.5-13B-16k\?.*owner/name"):
        with_preset(given(model="Vicuna-v1.5-13B-17k"))


def test_the_list_is_printed_as_a_table_and_as_json() -> None:
    table = CliRunner().invoke(app, ["models"], env={"COLUMNS": "200"})
    assert table.exit_code == 0
    assert "lmsys/longchat-7b-v1.5-32k" in table.output
    rows = json.loads(CliRunner().invoke(app, ["models", "--json"]).output)
    assert [row["name"] for row in rows] == [preset.name for preset in PRESETS]
