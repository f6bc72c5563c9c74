"""LongRoPE's factors from a file: frequencies and logits against transformers' own LongRoPE, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PretrainedConfig

import e2bench
from e2bench.errors import E2BenchError
from e2bench.files import read_json
from e2bench.models.local import Model
from e2bench.rope.config import checkpoint_scaling
from e2bench.rope.factors import Factors, read_factors
from e2bench.rope.methods import RopeScaling
from e2bench.rope.switch import RopeSwitch, rotary_modules
from e2bench.rope.windows import Scale, scale_rule

L = 64
SIZES: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": L}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FACTORS = Factors(short=(1.0, 1.1, 1.2, 1.3), long=(1.0, 1.9, 3.1, 4.0))
FAMILIES = pytest.mark.parametrize("config", [LlamaConfig(**SIZES), Phi3Config(**SIZES)], ids=["llama", "phi3"])


def build(config: PretrainedConfig) -> Any:
    """A random model of a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32).eval()


def long_rope(config: PretrainedConfig, g: float, **more: Any) -> PretrainedConfig:
    """The config of a LongRoPE checkpoint for windows of g·L tokens, as transformers reads it."""
    config = copy.deepcopy(config)
    config.rope_parameters = {
        "rope_type": "longrope", "rope_theta": config.rope_parameters["rope_theta"], "factor": g,
        "original_max_position_embeddings": L, **FACTORS.parameters(), **more,
    }  # fmt: skip
    config.max_position_embeddings, config.original_max_position_embeddings = int(g * L), L
    return config


@torch.inference_mode()
def logits(model: Any, tokens: int) -> torch.Tensor:
    ids = torch.arange(tokens)[None] * 7 % model.config.vocab_size
    return model(input_ids=ids, use_cache=False).logits


@FAMILIES
@pytest.mark.parametrize("tokens", [L // 2, L, L + 1, 3 * L])
def test_factors_set_in_place_give_the_logits_of_a_longrope_checkpoint(config: PretrainedConfig, tokens: int) -> None:
    want = logits(build(long_rope(config, 4.0)), tokens)
    model = build(config)
    RopeSwitch(model, L).set(RopeScaling("longrope", 4.0, FACTORS), tokens)
    got = logits(model, tokens)
    assert torch.equal(got, want)
    plain = logits(build(config), tokens)
    assert (got - plain).abs().max() > 1e-4


def test_the_factor_on_cos_and_sin_is_phi_3s_or_the_files() -> None:
    model = build(LlamaConfig(**SIZES))
    switch = RopeSwitch(model, L)
    switch.set(RopeScaling("longrope", 4.0, FACTORS), 3 * L)
    [rotary] = rotary_modules(model)
    assert rotary.attention_scaling == pytest.approx(math.sqrt(1 + math.log(4) / math.log(L)))
    switch.set(RopeScaling("longrope", 4.0, Factors(FACTORS.short, FACTORS.long, 1.25)), 3 * L)
    assert rotary.attention_scaling == 1.25
    with pytest.raises(E2BenchError, match="3 factors, and the model 4"):
        switch.set(RopeScaling("longrope", 4.0, Factors((1.0,) * 3, (2.0,) * 3)), 3 * L)
    of_another_length = Factors(FACTORS.short, FACTORS.long, native=2 * L)
    with pytest.raises(E2BenchError, match=f"= {2 * L}, and the model's L is {L}.*--native-window {2 * L}"):
        switch.set(RopeScaling("longrope", 4.0, of_another_length), 3 * L)
    with pytest.raises(E2BenchError, match="give --factors FILE"):
        switch.set(RopeScaling("longrope", 4.0), 3 * L)


@pytest.mark.parametrize("place", [None, "rope_parameters", "rope_scaling"])
def test_factors_are_read_from_a_file_or_a_checkpoint(place: str | None, tmp_path: Path) -> None:
    lists = FACTORS.parameters() | {"rope_type": "longrope"}
    (tmp_path / "config.json").write_text(json.dumps({place: lists, "model_type": "phi3"} if place else lists))
    assert read_factors(tmp_path) == read_factors(tmp_path / "config.json") == FACTORS
    assert read_factors(tmp_path).native is None
    (tmp_path / "config.json").write_text(json.dumps({"rope_scaling": lists, "original_max_position_embeddings": L}))
    assert read_factors(tmp_path) == FACTORS and read_factors(tmp_path).native == L


def test_short_factors_that_are_left_out_are_ones(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"long_factor": [1, 2.5], "attention_factor": 1.1}')
    assert read_factors(tmp_path / "f.json") == Factors((1.0, 1.0), (1.0, 2.5), 1.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "a JSON list"),
        ('{"rope_scaling": null}', "has no long_factor"),
        ('{"long_factor": [1, 0]}', "long_factor must be a list of positive numbers"),
        ('{"long_factor": [1, "2"]}', "long_factor must be a list of positive numbers"),
        ('{"long_factor": [1, ' + "9" * 400 + "]}", "long_factor must be a list of positive numbers"),
        ('{"rope_scaling": {"long_factor": [1, 2], "long_mscale": 1.24}}', "has long_mscale"),
        ('{"long_factor": []}', "long_factor must be a list of positive numbers"),
        ('{"long_factor": [1, 2], "short_factor": [1]}', "1 numbers in short_factor, 2 in long_factor"),
        ('{"long_factor": [1], "attention_factor": -1}', "attention_factor must be"),
    ],
)
def test_what_are_no_factors_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(E2BenchError, match=message) as raised:
        read_factors(tmp_path / "f.json")
    assert "\n" not in str(raised.value)


def test_the_scale_rule_asks_for_factors_and_refuses_them_elsewhere() -> None:
    rule = scale_rule(None, "longrope", L, None)
    assert rule.searched(FACTORS).scaling(3 * L) == RopeScaling("longrope", 3, FACTORS)
    with pytest.raises(E2BenchError, match="give --factors FILE"):
        rule.searched(None)
    with pytest.raises(E2BenchError, match="give --method longrope"):
        scale_rule(None, "yarn", L, None).searched(FACTORS)
    own = checkpoint_scaling(long_rope(LlamaConfig(**SIZES), 4.0))
    assert scale_rule(None, None, L, own).searched(None).scaling(3 * L) == own
    with pytest.raises(E2BenchError, match="its own RoPE scaling"):  # as before --method took the name
        scale_rule(Scale("fixed", (8.0,)), None, L, own)


def test_a_run_takes_them_and_is_not_continued_with_others(tiny_model: Model, tmp_path: Path) -> None:
    count = len(tiny_model.rope.in_force())
    (tmp_path / "text.txt").write_text("The committee met on Monday, and the bridge was closed. " * 200)
    for name, last in (("a", 4.0), ("b", 3.0)):
        lists = {"long_factor": [*[1.0] * (count - 1), last]}
        (tmp_path / f"{name}.json").write_text(json.dumps(lists))
    window = 4 * tiny_model.native_window
    settings: dict[str, Any] = {"lengths": str(window), "data": tmp_path / "text.txt", "stride": 64, "max_windows": 1}
    settings |= {"method": "LongRoPE", "out": tmp_path / "run"}
    run = e2bench.run("ppl", tiny_model, factors=tmp_path / "a.json", **settings)
    assert run.scores["cells"][0]["method"] == "longrope"
    assert read_json(tmp_path / "run" / "run.json")["rope"]["method"] == "longrope"
    with pytest.raises(E2BenchError, match="factors"):
        e2bench.run("ppl", tiny_model, factors=tmp_path / "b.json", **settings)
