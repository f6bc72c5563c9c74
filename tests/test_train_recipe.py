"""Recipes: every packaged one is valid, unknown keys are refused by name, the plan adds up."""

from importlib.util import find_spec

import pytest
import yaml

from e2bench.cli.train import run
from e2bench.errors import DataError, E2BenchError, UnknownName
from e2bench.train.plan import make_plan, state_bytes
from e2bench.train.recipe import RECIPES, build_recipe, load_recipe

MINIMAL = {
    "name": "x",
    "base": "nowhere",
    "data": [{"files": ["x.jsonl"]}],
    "steps": 10,
    "train_window": 64,
}


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_packaged_recipe_is_valid(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.e2_settings(512).train_window == recipe.train_window
    assert (recipe.beta1, recipe.beta2) == (0.9, 0.95)


@pytest.mark.parametrize(("name", "parameters"), [("llama2-7b", 6_738_415_616), ("llama2-13b", 13_015_864_320)])
def test_the_papers_recipes_hold_the_papers_settings(name, parameters):
    plan = make_plan(load_recipe(name))
    recipe = plan.recipe
    assert plan.parameters == plan.trained == parameters  # as published with Llama-2
    assert (recipe.steps, recipe.batch_size, recipe.learning_rate, recipe.g_max) == (30_000, 16, 1e-5, 20)
    rows = dict(plan.rows())
    assert rows["positions"] == "e2, g in 1..20, t in 0..77,824 at g = 20"
    assert "1,966,080,000 in all" in rows["tokens"]
    assert "not there yet" in rows["data"]


def test_state_is_sixteen_bytes_a_parameter_and_sharded_as_the_method_says():
    assert state_bytes(100, 100, "none", 4) == 1600
    assert state_bytes(100, 100, "zero2", 4) == 400 + 300
    assert state_bytes(100, 100, "fsdp", 4) == 400
    assert state_bytes(100, 10, "none", 1) == 400 + 120


def test_memory_depends_on_the_train_window_and_not_on_the_extended_one():
    shared = ["method=e2", "g_max=20"]
    short, far = (make_plan(load_recipe("llama2-7b", [*shared, f"g_max={g}"])) for g in (2, 50))
    assert short.activation_bytes == far.activation_bytes
    longer = make_plan(load_recipe("llama2-7b", ["method=pi", "scale=8", "train_window=32768"]))
    assert longer.activation_bytes == 8 * short.activation_bytes


def test_the_plan_tells_hours_memory_and_disk_for_several_numbers_of_gpus():
    plan = make_plan(load_recipe("llama2-7b"))
    rows = dict(plan.rows())
    # 4 forward passes (two are the backward, one is done again) of 2 · 6.607 B + 2 · 32 · 4096 · 4096 operations
    assert plan.operations == 4 * (2 * (6_738_415_616 - 32_000 * 4096) + 2 * 32 * 4096 * 4096)
    assert plan.hours(8) == pytest.approx(plan.hours(1) / 8)
    assert (
        rows["8 GPUs"]
        == f"{plan.hours(8):,.1f} h, {(16 * plan.parameters / 8 + plan.activation_bytes) / 2**30:.2f} GiB a GPU"
    )
    assert rows["64 GPUs"].startswith(f"{plan.hours(64):,.1f} h, ") and rows["64 GPUs"].endswith(
        " GiB a GPU with batch_size=64 steps=7500"  # as many tokens
    )
    assert rows["disk"].startswith(f"30 checkpoints of {16 * plan.parameters / 2**30:.2f} GiB (all are kept)")
    assert "27,005 tokens/s of a 1.3 B model" in rows["hours from"] and "measured on one H100" in rows["hours from"]


def test_where_rows_cannot_be_shared_a_plan_says_with_what_they_can():
    recipe = load_recipe("smollm2-campaign")  # 32 rows a step, 8 a pass
    plan = make_plan(recipe)
    rows = dict(plan.rows())
    half = plan.state_bytes + plan.activation_bytes // 2  # no part of the state is sharded
    assert rows["8 GPUs"] == f"{plan.hours(8):.2g} h, {half / 2**30:.2f} GiB a GPU with micro_batch=4"
    changed = rows["64 GPUs"].split(" with ")[1]
    assert changed == "micro_batch=1 batch_size=64 steps=135" and recipe.batch_size * recipe.steps == 64 * 135
    assert make_plan(load_recipe("smollm2-campaign", changed.split())).tokens_per_step == 2 * plan.tokens_per_step


def test_a_rate_is_the_measured_one_where_it_was_measured():
    full = load_recipe("smollm2", ["lora=null", "compile=true", "train_window=4096", "keep=2"])
    plan = make_plan(full)
    assert plan.tokens_per_step * full.steps / plan.hours(1) / 3600 == pytest.approx(152_883, rel=1e-3)
    assert dict(plan.rows())["disk"].startswith("3 checkpoints of")
    tiny = make_plan(load_recipe("tiny-copy"))
    assert tiny.hours(1) is None and dict(tiny.rows())["1 GPU"].startswith("? h, ")


def test_unknown_keys_are_refused_with_a_suggestion():
    with pytest.raises(UnknownName, match="unknown recipe key 'learning_rat'; did you mean 'learning_rate'"):
        build_recipe({**MINIMAL, "learning_rat": 1})
    with pytest.raises(UnknownName, match="unknown data source 'layuot'; did you mean 'layout'"):
        build_recipe({**MINIMAL, "data": [{"files": ["x"], "layuot": "text"}]})
    with pytest.raises(UnknownName, match="unknown LoRA setting 'rnak'; did you mean 'rank'"):
        build_recipe({**MINIMAL, "lora": {"rnak": 4}})
    with pytest.raises(UnknownName, match="unknown recipe 'tiny-e3'; did you mean 'tiny-e2'"):
        load_recipe("tiny-e3")
    with pytest.raises(DataError, match=r"folder/none\.yaml does not exist"):
        load_recipe("folder/none.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "many"}, "steps is 'many' in the recipe: it must be a whole number"),
        ({"steps": 0}, "steps is 0 in the recipe: it must be at least 1"),
        ({"offset": 1}, "offset is 1 in the recipe: it must be true or false"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"model": {"model_type": "llama"}}, "give one of them"),
        ({"base": "", "model": {"model_type": "llama"}}, "a new model needs `tokenizer`"),
        ({"train_window": 3}, "must exceed the 4 sinks"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0 in the recipe: it must be at least 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"batch_size": 16, "micro_batch": 5}, "batch_size 16 is not a multiple of micro_batch 5"),
        ({"method": "pii"}, "unknown training method 'pii'; did you mean 'pi'?"),
        ({"g_max": 0}, "g_max is 0: it must be at least 1"),
        ({"scale": 0}, "scale is 0: it must be at least 1"),
        ({"data": "x.jsonl"}, "is a list of sources"),
    ],
)
def test_impossible_values_are_refused_in_one_line(changes, message):
    with pytest.raises(E2BenchError) as error:
        build_recipe({**MINIMAL, **changes})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_key_is_named():
    with pytest.raises(E2BenchError, match="lacks 'steps'"):
        build_recipe({name: value for name, value in MINIMAL.items() if name != "steps"})


def test_overrides_reach_into_the_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in MINIMAL.items() if k != "name"}))
    overrides = ["steps=7", "learning_rate=1e-4", "scale=null", "data.0.weight=2", "lora.rank=4", "offset=false"]
    recipe = load_recipe(str(path), overrides)
    assert (recipe.name, recipe.steps, recipe.learning_rate, recipe.scale) == ("mine", 7, 1e-4, None)
    assert recipe.data[0].weight == 2 and recipe.lora.rank == 4 and recipe.offset is False
    for wrong in ("steps", "data.5.weight=1", "steps.x=1", "steps=[1"):
        with pytest.raises(E2BenchError):
            load_recipe(str(path), [wrong])


def test_a_broken_yaml_file_is_named_in_one_line(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1\nb: 2")
    with pytest.raises(E2BenchError, match=r"broken.yaml is not valid YAML") as error:
        load_recipe(str(path))
    assert "\n" not in str(error.value)
    path.write_text("- 1")
    with pytest.raises(E2BenchError, match="must hold `key: value` lines"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("tiny-e2", "train-base.*tiny-base is the step before"),
        ("tiny-base", "train-copy.*tiny-copy is the step before"),
        ("tiny-copy", "reproduce data"),
        ("llama2-7b", "fine-tune-7b.md, step 2"),
        ("smollm2", "fine-tune-7b.md, step 2"),
    ],
)
def test_a_recipe_that_cannot_start_names_what_makes_its_base_and_data(name, before, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(E2BenchError, match=before):
        run(name, [], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="deepspeed is here")
def test_a_plan_says_that_zero2_lacks_its_package() -> None:
    rows = dict(make_plan(load_recipe("llama2-7b", ["sharding=zero2"])).rows())
    assert rows["processes"] == "1, sharding zero2, which needs deepspeed: it is not installed here"
