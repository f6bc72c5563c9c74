"""A training step: compiled once for every draw, without a mask, or refused in a line."""

import json
import shutil

import pytest
import torch
from torch import _dynamo as dynamo
from transformers import AutoConfig, AutoModelForCausalLM

from e2bench.errors import E2BenchError
from e2bench.train import finetune, step
from e2bench.train.finetune import train
from e2bench.train.plan import make_plan
from e2bench.train.recipe import load_recipe

# Of torch's own compiler, at which a test would stop inside it.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
SHAPE = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
GRAPHS = 3  # the first layer's, whose input needs no gradient where adapters are trained, the others', the loss's
EVERYTHING = ["lora.rank=4", "gradient_checkpointing=true", "micro_batch=2", "train_window=48"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    dynamo.reset()
    dynamo.utils.counters.clear()
    yield
    dynamo.reset()


def losses(recipe, out, *overrides):
    """Loss and draw of each step."""
    assert train(load_recipe(str(recipe), ["steps=6", "learning_rate=1e-3", *overrides]), out)
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], {(line["g"], line["t"]) for line in lines}


@pytest.mark.parametrize("overrides", [pytest.param(["per_sample=false"], marks=pytest.mark.slow), EVERYTHING], ids=str)
def test_few_graphs_serve_every_draw_and_gives_the_losses_of_the_plain_step(
    overrides, small_recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(step, "BACKEND", "aot_eager")
    plain, draws = losses(small_recipe, tmp_path / "plain", *overrides)
    compiled, same = losses(small_recipe, tmp_path / "compiled", *overrides, "compile=true")
    assert compiled == pytest.approx(plain, rel=1e-5)
    assert draws == same and len(draws) == 6
    assert dynamo.utils.counters["stats"]["unique_graphs"] <= GRAPHS
    assert not dynamo.utils.counters["graph_break"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("overrides", [[], EVERYTHING, ["cross_documents=false"], ["attention=eager"]], ids=str)
def test_the_compilers_code_gives_the_losses_of_the_plain_step(overrides, small_recipe, tmp_path):
    plain, _ = losses(small_recipe, tmp_path / "plain", *overrides)
    compiled, _ = losses(small_recipe, tmp_path / "compiled", *overrides, "compile=true")
    assert compiled == pytest.approx(plain, rel=1e-5)
    assert dynamo.utils.counters["stats"]["unique_graphs"] <= GRAPHS


def test_compiling_without_a_compiler_is_refused(small_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(E2BenchError, match=r"needs a C\+\+ compiler.*compile=false"):
        losses(small_recipe, tmp_path / "out", "compile=true")


def test_a_step_that_cannot_be_compiled_is_refused_in_a_line(small_recipe, tmp_path, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no such\ninstruction")

    monkeypatch.setattr(step, "BACKEND", broken)
    with pytest.raises(E2BenchError, match=r"^compile: the step cannot be compiled \(.*no such instruction.*\); set"):
        losses(small_recipe, tmp_path / "out", "compile=true")


def test_compiling_a_sharded_training_is_refused(small_recipe, tmp_path):
    with pytest.raises(E2BenchError, match="compile: true goes with sharding: none, and this recipe has zero2"):
        losses(small_recipe, tmp_path / "out", "compile=true", "sharding=zero2")


def test_matrices_that_adapters_leave_alone_take_two_bytes_and_give_the_same_bits(small_recipe, tmp_path, monkeypatch):
    adapters = ["lora.rank=4", "lora.targets=[q_proj, down_proj]", "precision=bfloat16"]
    held = []

    def frozen(model, recipe):
        held.append(model)
        return step.frozen_matrices(model, recipe)

    monkeypatch.setattr(finetune, "frozen_matrices", frozen)
    found = losses(small_recipe, tmp_path / "held", *adapters)
    [model] = held
    layer = model.get_base_model().model.layers[0]
    assert layer.self_attn.q_proj.base_layer.weight.dtype == layer.self_attn.k_proj.weight.dtype == torch.bfloat16
    wide = [layer.input_layernorm.weight, layer.self_attn.q_proj.lora_A["default"].weight]
    assert {parameter.dtype for parameter in [*wide, model.get_input_embeddings().weight]} == {torch.float32}

    monkeypatch.setattr(finetune, "frozen_matrices", lambda model, recipe: [])
    assert losses(small_recipe, tmp_path / "wide", *adapters) == found
    stored = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("held", "wide")]
    assert stored[0] == stored[1]


@pytest.mark.parametrize(
    ("overrides", "narrow"),
    [
        (["lora.rank=4", "precision=bfloat16"], True),
        (["precision=bfloat16"], False),
        (["lora.rank=4", "precision=float32"], False),
        (["lora.rank=4", "precision=bfloat16", "sharding=fsdp"], False),
    ],
)
def test_the_plan_counts_what_is_held_in_two_bytes(overrides, narrow, small_recipe):
    plan = make_plan(load_recipe(str(small_recipe), overrides))
    frozen = plan.parameters - plan.trained
    assert (0.3 * frozen < plan.narrow < frozen) if narrow else plan.narrow == 0
    assert plan.state_bytes == 4 * plan.parameters - 2 * plan.narrow + 12 * plan.trained


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it is done")
def test_fused_kernels_without_their_package_or_a_gpu_are_refused(small_recipe, tmp_path):
    with pytest.raises(E2BenchError, match=r"^liger: true needs (the package liger_kernel|a GPU)"):
        losses(small_recipe, tmp_path / "out", "liger=true")


@pytest.mark.parametrize(
    ("kind", "extra", "overrides", "masked"),
    [
        ("llama", {}, [], False),
        ("llama", {}, ["cross_documents=false"], True),
        ("llama", {}, ["attention=eager"], True),
        ("mistral", {"sliding_window": 16}, [], True),
        ("mistral", {"sliding_window": 32}, [], False),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": False}, [], False),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0}, [], True),
        ("falcon", {}, [], True),
    ],
)
def test_the_mask_is_left_out_only_where_it_says_nothing(kind, extra, overrides, masked, small_recipe):
    recipe = load_recipe(str(small_recipe), overrides)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **SHAPE, **extra), attn_implementation=recipe.attention
    )
    ids = torch.randint(97, (1, 32), generator=torch.Generator().manual_seed(0))
    expected = model(input_ids=ids, labels=ids, use_cache=False).loss
    step.without_mask(model, recipe)
    assert (model.config._attn_implementation != step.CAUSAL) == masked
    torch.testing.assert_close(model(input_ids=ids, labels=ids, use_cache=False).loss, expected)
