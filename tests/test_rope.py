"""Rotary scaling: switching g in place equals loading with g, to the bit, on every family of models."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import VOCAB, byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OlmoConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from e2bench.errors import E2BenchError, ModelError, UnknownName
from e2bench.models.local import Model
from e2bench.rope.config import checkpoint_scaling, native_window, rope_config
from e2bench.rope.methods import RopeScaling, scale_for_window
from e2bench.rope.switch import RopeSwitch, inverse_frequencies, own_frequencies, rotary_modules
from e2bench.rope.windows import scale_rule

L = 64
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": L,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**GROUPED),
    "mistral": MistralConfig(**GROUPED, sliding_window=16),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=8),
    # every sixth layer is full_attention: the only kind whose RoPE is scaled
    "gemma3": Gemma3TextConfig(**{**GROUPED, "num_hidden_layers": 6}, head_dim=8, sliding_window=16),
    "phi3": Phi3Config(**GROUPED),
    "gpt_neox": GPTNeoXConfig(**SIZES, rotary_pct=0.5),
    "olmo": OlmoConfig(**GROUPED),
}
FAMILIES = pytest.mark.parametrize("family", CONFIGS)


def build(config: PretrainedConfig) -> Any:
    """A random model of a fixed seed; models of configs that differ in RoPE alone have the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32).eval()


def with_rope(config: PretrainedConfig, **new: Any) -> PretrainedConfig:
    """A copy of a config with other RoPE parameters, theta kept."""
    config = copy.deepcopy(config)
    if "full_attention" in config.rope_parameters:
        config.rope_parameters["full_attention"].update(new)
    else:
        config.rope_parameters = {**config.rope_parameters, **new}
    return config


@torch.inference_mode()
def logits(model: Any, tokens: int = 3 * L) -> torch.Tensor:
    ids = torch.arange(tokens)[None] * 7 % model.config.vocab_size
    return model(input_ids=ids, use_cache=False).logits


@FAMILIES
def test_a_switch_in_place_equals_loading_with_that_factor_to_the_bit(family: str) -> None:
    config = CONFIGS[family]
    loaded = logits(build(with_rope(config, rope_type="linear", factor=3.0)))
    model = build(config)
    RopeSwitch(model, L).set(RopeScaling("linear", 3))
    assert torch.equal(logits(model), loaded)


@FAMILIES
def test_restoring_leaves_a_difference_of_zero(family: str) -> None:
    model = build(CONFIGS[family])
    before = logits(model)
    switch = RopeSwitch(model, L)
    with switch.using(RopeScaling("yarn", 4)):
        assert not torch.equal(logits(model), before)
        with switch.using(RopeScaling("linear", 2)):
            pass
        assert switch.scaling == RopeScaling("yarn", 4)
    assert torch.equal(logits(model), before)


@FAMILIES
def test_the_native_window_is_read_from_every_family(family: str) -> None:
    assert native_window(CONFIGS[family]) == L


@pytest.mark.parametrize(("method", "rope_type"), [("yarn", "yarn"), ("dynamic", "dynamic")])
def test_other_methods_equal_transformers_own(method: str, rope_type: str) -> None:
    config = CONFIGS["llama"]
    new = {"rope_type": rope_type, "factor": 4.0} | (
        {"original_max_position_embeddings": L} if method == "yarn" else {}
    )
    extended = with_rope(config, **new)
    if method == "yarn":
        extended.max_position_embeddings = 4 * L
    model = build(config)
    RopeSwitch(model, L).set(RopeScaling(method, 4), 3 * L)
    assert torch.equal(logits(model), logits(build(extended)))


@pytest.mark.parametrize("length", [L // 2, L, 3 * L, 3 * L + 7])
def test_dynamic_yarn_is_yarn_at_the_scale_that_each_length_needs(length: int) -> None:
    rotary = rotary_modules(build(CONFIGS["llama"]))[0]
    found, on_cos = inverse_frequencies(rotary, RopeScaling("dynamic-yarn", 4), native=L, length=length)
    d, base, scale = 8, 10000, max(1, length / L)
    # jquesnelle/yarn, scaled_rope/LlamaDynamicYaRNScaledRotaryEmbedding.py: beta 32 and 1, bounds rounded outward
    bounds = [d * math.log(L / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (32, 1)]
    low, high = max(math.floor(bounds[0]), 0), min(math.ceil(bounds[1]), d - 1)
    kept = 1 - ((torch.arange(d // 2) - low) / (high - low)).clamp(0, 1)
    plain = 1 / base ** (torch.arange(0, d, 2, dtype=torch.float64) / d)
    torch.testing.assert_close(found.double(), plain / scale * (1 - kept) + plain * kept, rtol=1e-6, atol=0)
    assert on_cos == pytest.approx(1 if scale <= 1 else 0.1 * math.log(scale) + 1)


def test_ntk_raises_the_base_by_the_published_power() -> None:
    rotary = rotary_modules(build(CONFIGS["llama"]))[0]
    found, on_cos = inverse_frequencies(rotary, RopeScaling("ntk", 4), native=L)
    d = 8
    base = 10000 * 4 ** (d / (d - 2))  # bloc97's NTK-aware base
    want = 1 / base ** (torch.arange(0, d, 2, dtype=torch.float64) / d)
    torch.testing.assert_close(found.double(), want, rtol=1e-6, atol=0)
    assert on_cos == 1.0


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize(
    "scaling", [RopeScaling("none", 8), *(RopeScaling(method, 1) for method in ("linear", "ntk", "dynamic", "yarn"))]
)
def test_no_method_and_factor_one_are_the_plain_frequencies(family: str, scaling: RopeScaling) -> None:
    rotary: Any = rotary_modules(build(CONFIGS[family]))[0]
    layer_type = "full_attention" if family == "gemma3" else None
    plain = getattr(rotary, f"{layer_type}_inv_freq" if layer_type else "inv_freq")  # of an unscaled checkpoint
    length = 5 * L if scaling.method == "none" else L
    found = inverse_frequencies(rotary, scaling, native=L, length=length, layer_type=layer_type)
    assert torch.equal(found[0], plain) and found[1] == 1


@pytest.mark.parametrize("method", ["linear", "ntk", "dynamic", "yarn", "none"])
def test_computing_frequencies_leaves_the_models_config_alone(method: str) -> None:
    model = build(CONFIGS["gemma3"])
    before = copy.deepcopy(model.config.rope_parameters)
    rotary = rotary_modules(model)[0]
    inverse_frequencies(rotary, RopeScaling(method, 4), native=L, length=3 * L, layer_type="full_attention")
    assert model.config.rope_parameters == before and model.config.max_position_embeddings == L


def test_ntk_takes_the_base_of_its_own_layers() -> None:
    rotary = rotary_modules(build(CONFIGS["gemma3"]))[0]
    found, _ = inverse_frequencies(rotary, RopeScaling("ntk", 4), native=L, layer_type="full_attention")
    base = 1_000_000 * 4 ** (8 / (8 - 2))  # Gemma 3's theta of full attention; 10,000 in its sliding layers
    torch.testing.assert_close(
        found[1].double(), torch.tensor(base ** (-2 / 8), dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_yarn_is_computed_from_the_native_window_that_was_given() -> None:
    rotary = rotary_modules(build(CONFIGS["llama"]))[0]  # its config says L
    found, _ = inverse_frequencies(rotary, RopeScaling("yarn", 4), native=L // 4)
    loaded = build(with_rope(CONFIGS["llama"], rope_type="yarn", factor=4.0, original_max_position_embeddings=L // 4))
    assert torch.equal(found, rotary_modules(loaded)[0].inv_freq)
    assert not torch.equal(found, inverse_frequencies(rotary, RopeScaling("yarn", 4), native=L)[0])


def test_proportional_rope_is_plain_and_stays_so() -> None:
    # Gemma 4's: the angles of one part of the head alone, spaced as if the whole head was rotated
    parameters = {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    config = LlamaConfig(**{**GROUPED, "rope_parameters": parameters})
    assert checkpoint_scaling(config) is None
    rotary = SimpleNamespace(config=config)
    expected = ROPE_INIT_FUNCTIONS["proportional"](config, None)[0]
    found, on_cos = inverse_frequencies(rotary, RopeScaling("none", 1), native=L)
    assert torch.equal(found, expected) and on_cos == 1 and torch.count_nonzero(found) == found.numel() // 2


def test_the_checkpoints_own_frequencies_are_restored_and_never_computed() -> None:
    model = build(with_rope(CONFIGS["llama"], rope_type="linear", factor=4.0))
    switch = RopeSwitch(model, L)
    own = switch.in_force()
    switch.set(RopeScaling("linear", 8))
    assert switch.in_force() != own
    switch.set(RopeScaling("checkpoint", 4))
    assert switch.in_force() == own and switch.scaling is None
    with pytest.raises(ValueError, match=r"^the checkpoint's own frequencies are not computed but restored$"):
        inverse_frequencies(rotary_modules(model)[0], RopeScaling("checkpoint", 4), native=L)


def test_a_scale_in_force_is_kept_by_models_that_recompute_their_frequencies() -> None:
    model = build(with_rope(CONFIGS["llama"], rope_type="dynamic", factor=4.0))
    rotary: Any = rotary_modules(model)[0]
    RopeSwitch(model, L).set(RopeScaling("linear", 2))
    assert rotary.rope_type == "default"  # else transformers would put its own in place of ours


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_cast_model_keeps_its_kind_of_rope(family: str) -> None:
    new = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": L}
    exact: Any = rotary_modules(build(with_rope(CONFIGS[family], **new)))[0]
    model = build(with_rope(CONFIGS[family], **new)).to(torch.bfloat16)
    RopeSwitch(model, L)
    rotary: Any = rotary_modules(model)[0]
    assert rotary.rope_type == exact.rope_type
    names = [name for name in vars(exact) if name.endswith("attention_scaling")]
    assert names and all(getattr(rotary, name) == getattr(exact, name) for name in names)
    buffers = dict(exact.named_buffers())
    assert all(
        torch.equal(getattr(rotary, name), buffers[name]) for name in buffers if not name.endswith("original_inv_freq")
    )


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_a_checkpoints_own_scaling_by_length_scores_as_transformers_does_in_one_pass(
    rope_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2bench.models.body.CHUNK_TOKENS", 16)
    new: dict[str, Any] = {"rope_type": rope_type, "factor": 4.0}
    config = LlamaConfig(**{**GROUPED, "vocab_size": VOCAB})
    if rope_type == "longrope":
        lists = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]}
        new |= {**lists, "original_max_position_embeddings": L // 2}
    config = with_rope(config, **new)
    ours = Model(build(config), byte_tokenizer(), name="own")
    assert ours.own_scaling is not None and ours.own_scaling.method == rope_type
    for tokens in (3 * L, L // 2, 2 * L):  # longer ones before must leave nothing behind
        ids = torch.arange(tokens)[None] * 7 % 64
        with torch.inference_mode():
            expected = build(config)(input_ids=ids, labels=ids).loss
        with ours.under(ours.own_scaling, tokens):
            assert ours.token_nll(ids).mean().item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("tokens", "divisor"), [(L, 2.0), (L + 1, 4.0), (None, 2.0)])
def test_longrope_divides_by_its_short_factors_up_to_its_window_and_by_its_long_ones_beyond(
    tokens: int | None, divisor: float
) -> None:
    lists = {"short_factor": [2.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": L}
    config = with_rope(LlamaConfig(**GROUPED), rope_type="longrope", factor=4.0, **lists)
    config.max_position_embeddings = 4 * L
    rotary = rotary_modules(build(config))[0]
    plain, _ = inverse_frequencies(rotary, RopeScaling("none"), native=L)
    built = (rotary.original_inv_freq, rotary.attention_scaling)  # as transformers made it
    found, attention = own_frequencies(rotary, "longrope", tokens, None) or built
    assert torch.allclose(found, plain / divisor, rtol=1e-6)
    assert attention == pytest.approx(math.sqrt(1 + math.log(4) / math.log(L)))  # arXiv 2402.13753, as Phi-3 has it


@pytest.mark.parametrize(
    ("new", "window"),
    [
        ({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 131072),
        ({"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}, 131072),
    ],
)
def test_a_checkpoints_default_window_is_the_one_its_config_names(new: dict[str, Any], window: int) -> None:
    config = LlamaConfig(**{**GROUPED, "max_position_embeddings": window})
    config.rope_parameters = {"rope_theta": 5e5, **new, "original_max_position_embeddings": 8192}
    own = checkpoint_scaling(config)
    assert scale_rule(None, None, native_window(config), own).window(None) == window


def test_a_model_without_a_config_is_named_by_its_class() -> None:
    with pytest.raises(ModelError, match=r"^'Linear' has no rotary positions"):
        RopeSwitch(torch.nn.Linear(1, 1), L)


def test_only_the_layers_that_are_scaled_tell_a_configs_scaling() -> None:
    config = CONFIGS["gemma3"]
    assert rope_config(config)["rope_theta"] == 1_000_000 and checkpoint_scaling(config) is None
    scaled = with_rope(config, rope_type="linear", factor=8.0)
    assert checkpoint_scaling(scaled) == RopeScaling("linear", 8) and native_window(scaled) == L
    del scaled.rope_parameters["full_attention"]
    assert rope_config(scaled) == {}


def test_a_scaling_that_does_not_say_everything_is_read_as_far_as_it_goes() -> None:
    config = LlamaConfig(**GROUPED)
    config.rope_parameters = {"rope_theta": 1e4}
    assert checkpoint_scaling(config) is None
    config.rope_parameters = {"rope_theta": 1e4, "rope_type": "longrope"}  # its factor is the ratio of two windows
    assert checkpoint_scaling(config) == RopeScaling("longrope", 1)
    config.max_position_embeddings, config.original_max_position_embeddings = 8 * L, L  # where Phi-3 says L
    assert native_window(config) == L
    config.rope_parameters = {"rope_theta": 1e4, "rope_type": "linear", "factor": 0.5}
    assert checkpoint_scaling(config) == RopeScaling("linear", 1)


@given(factor=st.integers(1, 64))
def test_linear_frequencies_are_the_plain_ones_divided(factor: int) -> None:
    rotary = rotary_modules(MODEL)[0]
    plain, _ = inverse_frequencies(rotary, RopeScaling("none", 1), native=L)
    found, _ = inverse_frequencies(rotary, RopeScaling("linear", factor), native=L)
    assert torch.equal(found, plain / factor)


MODEL = build(CONFIGS["llama"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_that_was_cast_gets_its_exact_frequencies_again(dtype: torch.dtype) -> None:
    exact = rotary_modules(build(CONFIGS["llama"]))[0].inv_freq.clone()
    model = build(CONFIGS["llama"]).to(dtype)
    rotary = rotary_modules(model)[0]
    assert rotary.inv_freq.dtype == dtype and not torch.equal(rotary.inv_freq.float(), exact)  # the trap is there
    switch = RopeSwitch(model, L)
    assert rotary.inv_freq.dtype == torch.float32
    assert torch.equal(rotary.inv_freq, exact)
    switch.set(RopeScaling("linear", 4))
    assert torch.equal(rotary.inv_freq, exact / 4)


def test_a_cast_gemma_gets_exact_frequencies_in_its_full_attention_layers() -> None:
    exact = rotary_modules(build(CONFIGS["gemma3"]))[0].full_attention_inv_freq.clone()
    model = build(CONFIGS["gemma3"]).to(torch.bfloat16)
    RopeSwitch(model, L).set(RopeScaling("linear", 2))
    assert torch.equal(rotary_modules(model)[0].full_attention_inv_freq, exact / 2)


def test_a_cast_gemma_gets_exact_frequencies_in_its_sliding_layers_too() -> None:
    exact = rotary_modules(build(CONFIGS["gemma3"]))[0].sliding_attention_inv_freq.clone()
    model = build(CONFIGS["gemma3"]).to(torch.bfloat16)
    RopeSwitch(model, L)
    assert torch.equal(rotary_modules(model)[0].sliding_attention_inv_freq, exact)


def test_scaling_leaves_sliding_layers_alone() -> None:
    model = build(CONFIGS["gemma3"])
    rotary = rotary_modules(model)[0]
    before = rotary.sliding_attention_inv_freq.clone()
    RopeSwitch(model, L).set(RopeScaling("linear", 8))
    assert torch.equal(rotary.sliding_attention_inv_freq, before)


def test_a_linearly_scaled_checkpoint_restores_to_its_own_factor() -> None:
    model = build(with_rope(CONFIGS["llama"], rope_type="linear", factor=4.0))
    own = logits(model)
    switch = RopeSwitch(model, L)
    switch.set(RopeScaling("none", 1))
    assert torch.equal(logits(model), logits(build(CONFIGS["llama"])))
    switch.set(RopeScaling("linear", 2))
    assert torch.equal(logits(model), logits(build(with_rope(CONFIGS["llama"], rope_type="linear", factor=2.0))))
    switch.restore()
    assert torch.equal(logits(model), own)


def test_dynamic_does_not_depend_on_what_was_run_before() -> None:
    model = build(CONFIGS["llama"])
    switch = RopeSwitch(model, L)
    switch.set(RopeScaling("dynamic", 4), 2 * L)
    first = logits(model, 2 * L)
    switch.set(RopeScaling("dynamic", 4), 4 * L)
    assert not torch.equal(logits(model, 2 * L), first)
    switch.set(RopeScaling("dynamic", 4), 2 * L)
    assert torch.equal(logits(model, 2 * L), first)


def test_dynamic_inside_another_dynamic_comes_back_with_its_own_length() -> None:
    model = build(CONFIGS["llama"])
    switch = RopeSwitch(model, L)
    switch.set(RopeScaling("dynamic", 4), 4 * L)
    before = switch.in_force()
    with switch.using(RopeScaling("dynamic", 4), 2 * L):
        assert switch.in_force() != before
    assert switch.in_force() == before


def test_a_model_without_rotary_positions_is_refused_by_name() -> None:
    model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32))
    with pytest.raises(ModelError, match="'gpt2' has no rotary positions"):
        RopeSwitch(model, 1024)


@pytest.mark.parametrize(
    ("layout", "window", "own"),
    [
        ({"max_position_embeddings": 4096, "rope_theta": 10000.0}, 4096, None),
        # the two spellings of transformers 4, as old config.json files have them
        (
            {"max_position_embeddings": 4096, "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 8.0}},
            4096,
            RopeScaling("linear", 8),
        ),
        (
            {
                "max_position_embeddings": 65536,
                "rope_scaling": {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096},
            },
            4096,
            RopeScaling("checkpoint", 16),
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 5e5,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            8192,
            RopeScaling("checkpoint", 16),
        ),
        (
            {
                "max_position_embeddings": 2048,
                "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 1.0},
            },
            2048,
            None,
        ),
    ],
)
def test_window_and_scaling_are_read_from_old_and_new_layouts(
    tmp_path: Path, layout: dict[str, Any], window: int, own: RopeScaling | None
) -> None:
    import json

    small = {k: v for k, v in GROUPED.items() if k != "max_position_embeddings"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **small, **layout}))
    config = LlamaConfig.from_pretrained(tmp_path)
    assert native_window(config) == window
    assert checkpoint_scaling(config) == own
    assert rope_config(config)["rope_theta"] == layout.get(
        "rope_theta", layout.get("rope_parameters", {}).get("rope_theta", 1e4)
    )


def test_a_config_that_does_not_say_its_window_is_refused() -> None:
    with pytest.raises(ModelError, match="--native-window"):
        native_window(PretrainedConfig())


@pytest.mark.parametrize("factor", [0.5, 0.0, -1.0, math.nan, math.inf])
def test_a_factor_below_one_is_refused(factor: float) -> None:
    with pytest.raises(E2BenchError, match="at least 1"):
        RopeScaling("linear", factor)


def test_an_unknown_method_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UnknownName, match=r"^unknown RoPE method 'linaer'.*did you mean 'linear'"):
        RopeScaling("linaer", 2)


@given(window=st.integers(1, 10**6), native=st.integers(1, 10**5))
def test_auto_is_the_smallest_integer_that_covers_the_window(window: int, native: int) -> None:
    g = scale_for_window(window, native)
    assert g >= 1 and g * native >= window and (g == 1 or (g - 1) * native < window)
