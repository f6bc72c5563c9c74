"""E² on a base with RoPE scaling of its own: training, evaluation and export all rotate at the base's angles over g."""

import json
import math
import shutil

import gguf
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import e2bench
from e2bench.cli.serve_command import run as serve_command
from e2bench.errors import E2BenchError, ModelError
from e2bench.experiments.options import Common
from e2bench.models.export import export
from e2bench.models.loading import ModelSpec, load_config
from e2bench.models.local import Model
from e2bench.models.outline import Outline
from e2bench.models.scaled_config import own_as_native, set_scaling
from e2bench.rope.config import checkpoint_scaling, native_window, rope_config
from e2bench.rope.methods import RopeScaling
from e2bench.rope.own import fixed_angles
from e2bench.rope.switch import rotary_modules
from e2bench.train.e2 import Draw
from e2bench.train.finetune import train
from e2bench.train.loading import load_model
from e2bench.train.plan import make_plan
from e2bench.train.recipe import load_recipe
from e2bench.train.rotary import E2Positions

ORIGINAL, TRAINED = 32, 128
BASES = {
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "linear": {"rope_type": "linear", "factor": 4.0},
}


def scaled(folder, tiny_folder, kind, **more):
    """The tiny Llama, its config with `kind`'s scaling, trained at 128 tokens."""
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": 10_000.0, **BASES[kind], **more}
    config["max_position_embeddings"] = ORIGINAL if kind == "linear" else TRAINED
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def base(tiny_folder, tmp_path_factory):
    return scaled(tmp_path_factory.mktemp("bases") / "scaled", tiny_folder, "llama3")


@pytest.fixture(scope="module")
def words(small_recipe, base):
    return [str(small_recipe), [f"base={base}", "native_window=null", "train_window=32", "steps=4", "save_every=2"]]


@pytest.fixture(scope="module")
def tuned(words, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "out"
    assert train(load_recipe(words[0], words[1]), out)
    return out


def own_angles(base):
    """The base's inverse frequencies and factor on cos and sin, as transformers builds them."""
    rotary = LlamaRotaryEmbedding(AutoConfig.from_pretrained(base))
    return rotary.inv_freq, rotary.attention_scaling


@pytest.mark.parametrize("kind", list(BASES))
def test_training_rotates_at_the_bases_angles_over_g(kind, tiny_folder, words, tmp_path):
    folder = scaled(tmp_path / "base", tiny_folder, kind)
    recipe = load_recipe(words[0], [*words[1], f"base={folder}"])
    model = load_model(recipe)
    rotary = rotary_modules(model)[0]
    assert native_window(model.config) == make_plan(recipe).native_window == TRAINED
    hooks = E2Positions(model)
    hooks.set([Draw(3, 57, 4)])
    tokens = torch.arange(32)[None]
    cos, sin = rotary(torch.zeros(1, 32, 1), position_ids=tokens)
    inv_freq, attention = own_angles(folder)
    moved = (tokens[0] + torch.where(tokens[0] < 4, 0, 57)).double()
    angles = moved[:, None] * inv_freq.double()[None] / 3
    assert attention == pytest.approx(1 + 0.1 * math.log(4) if kind == "yarn" else 1)
    for found, wanted in ((cos, angles.cos()), (sin, angles.sin())):
        half = found[0, :, : angles.shape[1]].double()
        torch.testing.assert_close(half, attention * wanted, atol=2e-6, rtol=0)


def test_a_tuned_checkpoint_says_its_angles_in_its_config(tuned, base):
    written = json.loads((tuned / "e2_config.json").read_text())
    assert (written["native_window"], written["base_scaling"]) == (TRAINED, "llama3")
    config = AutoConfig.from_pretrained(tuned)
    assert config.rope_parameters["rope_type"] == "longrope" and config.max_position_embeddings == TRAINED
    assert checkpoint_scaling(config) is None and native_window(config) == TRAINED
    torch.testing.assert_close(LlamaRotaryEmbedding(config).inv_freq, own_angles(base)[0], rtol=2e-7, atol=0)


def test_perplexity_at_g_is_what_transformers_gives_by_hand(tuned, base, tmp_path):
    text = " ".join(f"The {n}th sentence says that {n} times {n} is {n * n}." for n in range(40))
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}))
    options = {"lengths": "256", "scale": "3", "protocol": "truncate", "stride": 64}
    data = str(tmp_path / "text.jsonl")
    (row,) = e2bench.run("ppl", str(tuned), data=data, out=tmp_path / "ppl", **options).rows().to_dict("records")
    assert (row["scale"], row["scored_tokens"]) == (3, 255)
    plain = AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32)
    rotary = rotary_modules(plain)[0]
    rotary.rope_type = "default"
    ids = AutoTokenizer.from_pretrained(tuned)(text, return_tensors="pt")["input_ids"][:, :256]

    def by_hand(inv_freq):
        rotary.inv_freq = inv_freq
        with torch.inference_mode():
            return plain(input_ids=ids, labels=ids).loss.item()

    expected = by_hand(own_angles(base)[0] / 3)
    assert row["nll_sum"] / 255 == pytest.approx(expected, rel=1e-6)
    theta = 10_000.0 ** (-torch.arange(0, 16, 2) / 16)
    assert abs(by_hand(theta / 3) - expected) > 1e-3  # the angles of theta alone are others


def test_nothing_is_wrong_with_a_tuned_checkpoint(tuned):
    assert {one.level for one in Model.load(ModelSpec(model=str(tuned))).findings} == {"ok"}


@pytest.mark.parametrize("kind", list(BASES))
def test_an_export_at_g_is_the_same_rotation_in_plain_transformers(kind, tiny_folder, words, tmp_path):
    folder = scaled(tmp_path / "base", tiny_folder, kind)
    assert train(load_recipe(words[0], [*words[1], f"base={folder}", "steps=1"]), tmp_path / "tuned")
    model = Model.load(ModelSpec(model=str(tmp_path / "tuned")))
    ids = torch.arange(300)[None] * 7 % 60 + 4
    with model.under(RopeScaling("linear", 4), 300), torch.inference_mode():
        want = model.head(model.hidden(ids))
    out = export(model, RopeScaling("linear", 4), tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(plain(input_ids=ids).logits, want, atol=1e-5, rtol=1e-5)
    inv_freq, attention = own_angles(folder)
    rotary = LlamaRotaryEmbedding(plain.config)
    torch.testing.assert_close(rotary.inv_freq, inv_freq / 4, rtol=2e-7, atol=0)
    parameters = plain.config.rope_parameters  # what vLLM reads: mscale, and a table of max_position_embeddings
    assert parameters["short_mscale"] == parameters["long_mscale"] == rotary.attention_scaling == attention
    assert plain.config.max_position_embeddings == 4 * TRAINED
    again = Model.load(ModelSpec(model=str(out)))
    assert again.own_scaling == RopeScaling("linear", 4) and again.native_window == TRAINED
    with again.under(RopeScaling("linear", 2), 300), torch.inference_mode():
        found = again.head(again.hidden(ids))
    other = Model.load(ModelSpec(model=str(tmp_path / "tuned")))
    with other.under(RopeScaling("linear", 2), 300), torch.inference_mode():
        torch.testing.assert_close(found, other.head(other.hidden(ids)), atol=1e-5, rtol=1e-5)


def test_a_resumed_training_ends_in_the_same_weights(words, tuned, tmp_path):
    recipe = load_recipe(words[0], words[1])
    shutil.copytree(tuned, tmp_path / "out")
    for name in ("model.safetensors", "checkpoint-4/e2_config.json"):
        (tmp_path / "out" / name).unlink()
    assert train(recipe, tmp_path / "out")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tuned / name).read_bytes()


def test_an_adapter_is_evaluated_with_the_angles_it_was_tuned_at(words, base, tmp_path):
    assert train(load_recipe(words[0], [*words[1], "steps=1", "lora.rank=2"]), tmp_path / "adapter")
    spec = ModelSpec(model=str(tmp_path / "adapter"))
    model = Model.load(spec)
    assert model.own_scaling is None and model.native_window == Outline(spec).native_window == TRAINED
    with model.under(RopeScaling("linear", 4), 64):
        found = torch.tensor(model.rope.in_force())
    torch.testing.assert_close(found.float(), own_angles(base)[0] / 4, rtol=2e-7, atol=0)
    written = json.loads((tmp_path / "adapter" / "e2_config.json").read_text())
    del written["native_window"]
    (tmp_path / "adapter" / "e2_config.json").write_text(json.dumps(written))
    for load in (Model.load, Outline):
        with pytest.raises(ModelError, match=r"e2_config\.json names the base's scaling \(llama3\) and has nat"):
            load(spec)


def test_the_untuned_base_is_measured_at_its_own_angles_over_g_with_native_window(base):
    assert Model.load(ModelSpec(model=str(base))).native_window == ORIGINAL  # as before: its own scaling is kept
    model = Model.load(ModelSpec(model=str(base), native_window=TRAINED))
    assert model.own_scaling is None and model.native_window == TRAINED
    with model.under(RopeScaling("linear", 2), 64):
        found = torch.tensor(model.rope.in_force())
    torch.testing.assert_close(found.float(), own_angles(base)[0] / 2, rtol=2e-7, atol=0)


def test_a_plan_reads_the_config_once(base, monkeypatch):
    reads: list[dict[str, object]] = []
    read = AutoConfig.from_pretrained
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *args, **kw: reads.append(kw) or read(*args, **kw))
    spec = ModelSpec(model=str(base), native_window=TRAINED)
    loaded = load_config(spec)
    assert sum("_from_auto" not in one for one in reads) == 1  # the tokenizer's class reads it once more
    assert native_window(loaded.hf) == TRAINED


def test_methods_that_would_replace_the_tuned_angles_are_refused(tuned):
    model = Model.load(ModelSpec(model=str(tuned)))
    for method in ("yarn", "ntk"):
        with pytest.raises(E2BenchError, match=f"which {method} would replace; give --method linear"):
            model.rope.set(RopeScaling(method, 2))


def test_a_server_is_given_the_tuned_angles_and_a_table_of_g_times_l(tuned, capsys):
    serve_command(Common.read({"model": str(tuned), "scale": "4"}), nodes=1, port=8000)
    line = capsys.readouterr().out
    override = json.loads(line.split("--hf-overrides '")[1].split("'")[0])
    config = AutoConfig.from_pretrained(tuned)
    set_scaling(config, RopeScaling("linear", 4), TRAINED)
    assert override["max_position_embeddings"] == 4 * TRAINED
    assert override["rope_parameters"]["long_factor"] == config.rope_parameters["long_factor"]


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"rope_type": "dynamic", "factor": 4.0}, "follows each input's length"),
        ({**BASES["yarn"], "mscale": 1.0, "mscale_all_dim": 0.7}, "mscale_all_dim may be used outside"),
        ({**BASES["yarn"], "llama_4_scaling_beta": 0.1}, "llama_4_scaling_beta may be used outside"),
    ],
)
def test_scalings_without_fixed_angles_of_their_own_are_refused_in_one_line(parameters, why):
    config = LlamaConfig(max_position_embeddings=TRAINED)
    config.rope_parameters = {"rope_theta": 10_000.0, **parameters}
    with pytest.raises(ModelError, match=f"{why}.*method: none$"):
        own_as_native(config)


def test_factors_of_longropes_search_are_no_fixed_angles():
    lists = {"short_factor": [1.0, 2.0, 8.0], "long_factor": [1.0, 2.0, 8.0]}
    found = {"rope_type": "longrope", "factor": 4.0, "attention_factor": 1.0, **lists}
    assert fixed_angles(found) is None  # the fastest frequency is not divided by g
    assert fixed_angles({**found, "factor": 1.0}).divisors == (1.0, 2.0, 8.0)
    assert fixed_angles({**found, "factor": 1.0, "long_factor": [1.0, 2.0, 9.0]}) is None


def test_llama_31s_own_config_is_kept_to_float32():
    """As meta-llama/Llama-3.1-8B has it: head size 128, theta 500,000, factor 8, 8,192 -> 131,072 tokens."""
    new = {**BASES["llama3"], "original_max_position_embeddings": 8192, "rope_theta": 500_000.0}
    config = LlamaConfig(hidden_size=4096, num_attention_heads=32, max_position_embeddings=131072, rope_parameters=new)
    own = LlamaRotaryEmbedding(config).inv_freq
    assert own_as_native(config) == "llama3" and native_window(config) == 131072
    for g in (1, 4, 20):
        set_scaling(config, RopeScaling("linear", g), 131072)
        torch.testing.assert_close(LlamaRotaryEmbedding(config).inv_freq, own / g, rtol=3e-7, atol=0)
        assert config.max_position_embeddings == g * 131072
    assert rope_config(config)["rope_theta"] == 500_000.0


def test_the_plan_says_whose_angles_are_divided(words):
    rows = dict(make_plan(load_recipe(words[0], words[1])).rows())
    assert rows["windows"].startswith("native L = 128,") and "own llama3 scaling" in rows["base angles"]
    plain = dict(make_plan(load_recipe(words[0], [*words[1], "method=none"])).rows())
    assert "base angles" not in plain


def test_a_gguf_base_whose_scaling_a_training_would_not_read_is_refused(words, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_context_length(TRAINED)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"x\.gguf has a RoPE scaling of its own.*safetensors"):
        make_plan(load_recipe(words[0], [*words[1], f"base={tmp_path / 'x.gguf'}"]))
