"""No silent wrong number: each kind of checkpoint that would give one is measured right, or refused in one line."""

from __future__ import annotations

import copy as copies
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2MoeConfig,
    Qwen3Config,
)

from e2bench.doctor.examine import examine
from e2bench.errors import ModelError
from e2bench.experiments.options import Common
from e2bench.models.findings import NOTE, OK, WRONG, Finding
from e2bench.models.gguf_file import GgufFile, native_of
from e2bench.models.loading import ModelSpec
from e2bench.models.local import Model
from e2bench.models.protocols import Prompt
from e2bench.models.tokenizers import PROBES, checked
from e2bench.prompts.chat import chat_wrapper

SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def load(path: Path, **options: object) -> Model:
    return Model.load(ModelSpec(model=str(path), **options))  # type: ignore[arg-type]


def found(model: Model, check: str) -> Finding:
    return next(one for one in model.findings if one.check == check)


def made(folder: Path, config: Any, gain: float = 3.0) -> Path:
    """A checkpoint of random weights in which attention matters, with the tests' tokenizer."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.dim() >= 2 and "embed" not in name and "lm_head" not in name:
                parameter.mul_(gain)
    hf.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def reference(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Losses of transformers' own forward pass."""
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = hf(ids, use_cache=False).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")


def ids_of(tokens: int) -> torch.Tensor:
    return torch.arange(3, tokens + 3)[None] * 7 % 500


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **fields}), "utf-8")


# ---- 1. tokenizers


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_a_tokenizer_class_that_splits_otherwise_gives_way_to_the_file(copy: Path, name: str) -> None:
    from tokenizers import Tokenizer

    change(copy / "tokenizer_config.json", tokenizer_class=name, unk_token="<s>")
    model = load(copy)
    own = Tokenizer.from_file(str(copy / "tokenizer.json"))
    assert all(model.encode(text) == own.encode(text).ids for text in PROBES)
    if found(model, "tokenizer").level == NOTE:
        assert name in found(model, "tokenizer").found


def test_an_encoding_that_ends_in_eos_loses_it_and_keeps_bos(tiny_model: Model) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = copies.deepcopy(tiny_model.tokenizer)
    ends = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    assert tokenizer("The sky")["input_ids"][-1] == tokenizer.eos_token_id
    mended = checked(tokenizer, None, None)
    assert mended("The sky")["input_ids"] == tiny_model.encode("The sky")


def gguf_of(path: Path, pre: str) -> GgufFile:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile(path)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["ab", "Ġ1234", '!"']),
        ("smollm", ["ab", "Ġ", "1", "2", "3", "4", '!"']),
        ("llama-bpe", ["ab", "Ġ", "123", "4", '!"']),
        ("qwen2", ["ab", "Ġ", "1", "2", "3", "4", '!"']),
    ],
)
def test_a_gguf_file_is_split_as_its_pre_tokenizer_says(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    tokenizer = gguf_of(tmp_path / "x.gguf", pre).fit_tokenizer(byte_tokenizer())
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str('ab 1234!"')
    assert [piece for piece, _ in split] == pieces  # llama.cpp, llama-vocab.cpp


def test_an_unknown_pre_tokenizer_of_a_gguf_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'tekken' .* is not known here.*--tokenizer"):
        gguf_of(tmp_path / "x.gguf", "tekken").fit_tokenizer(byte_tokenizer())


def test_a_token_without_an_embedding_row_matters_only_where_it_is_used(copy: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([*(f"<more{i}>" for i in range(512 - len(tokenizer))), "<extra>"])
    tokenizer.save_pretrained(copy)
    model = load(copy)
    assert found(model, "vocabulary").level == NOTE
    assert model.encode("The sky")
    with pytest.raises(ModelError, match=r"'<extra>' .* no embedding row"):
        model.encode("The <extra> sky")


# ---- 2. nothing is dropped


@pytest.mark.parametrize(
    "key", ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", "lm_head.weight_scale_inv"]
)
def test_a_tensor_that_the_model_does_not_take_is_refused_by_name(copy: Path, key: str) -> None:
    weights = load_file(copy / "model.safetensors")
    save_file({**weights, key: torch.ones(4)}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"holds 1 tensors that the model does not take, {key}"):
        load(copy)


@pytest.fixture
def adapter(tiny_folder: Path, tmp_path: Path) -> tuple[Path, float]:
    """A LoRA adapter that changes the base, and the loss that peft gives with it."""
    from peft import LoraConfig, get_peft_model

    hf = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    model = get_peft_model(hf, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "o_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(tmp_path / "adapter")
    with torch.inference_mode():
        return tmp_path / "adapter", model.eval()(input_ids=ids_of(90), labels=ids_of(90)).loss.item()


def rename(adapter: Path, new: Callable[[str], str]) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({new(key): value for key, value in load_file(file).items()}, file, metadata={"format": "pt"})


def test_adapter_keys_under_a_wrappers_name_are_taken(adapter: tuple[Path, float]) -> None:
    folder, loss = adapter
    rename(folder, lambda key: key.replace("base_model.model.model.", "base_model.model.language_model.model."))
    model = load(folder)
    assert model.token_nll(ids_of(90)).mean().item() == pytest.approx(loss, abs=1e-5)
    assert "language_model." in found(model, "adapter").found


def test_adapter_keys_that_fit_nowhere_are_refused(adapter: tuple[Path, float]) -> None:
    folder, _ = adapter
    rename(folder, lambda key: key.replace("q_proj", "query") if "layers.0" in key else key)
    with pytest.raises(ModelError, match=r"fit nowhere, .*query"):
        load(folder)


def test_weights_beside_an_adapter_are_merged_or_asked_for(adapter: tuple[Path, float]) -> None:
    folder, loss = adapter
    side = {"base_model.model.model.norm.weight": torch.full((64,), 2.0)}
    torch.save(side, folder / "non_lora_trainables.bin")
    with pytest.raises(ModelError, match="--allow-pickle"):
        load(folder)
    merged = load(folder, allow_pickle=True)
    assert bool((merged.hf.model.norm.weight == 2).all())
    assert merged.token_nll(ids_of(90)).mean().item() != pytest.approx(loss, abs=1e-3)


# ---- 3. RoPE


def test_l_is_read_off_llama_3_frequency_factors() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(**{**SMALL, "hidden_size": 256})
    bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config.rope_parameters = {"rope_type": "llama3", "factor": 32.0, "rope_theta": 5e5, **bands}
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 5e5 ** (torch.arange(0, 64, 2) / 64)
    assert native_of(tuple((plain / scaled).tolist()), 5e5) == 8192
    assert native_of((1.0, 2.0, 3.0, 4.0, 4.0), 1e4) is None  # another rule


def test_own_parameters_that_are_more_than_a_rotation_are_kept_and_not_replaced(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    parameters = {**config["rope_parameters"], "rope_type": "yarn", "factor": 4.0, "query_beta": 0.1}
    change(copy / "config.json", rope_parameters={**parameters, "original_max_position_embeddings": 128})
    model = load(copy)
    own = model.token_nll(ids_of(90))[0]
    torch.testing.assert_close(own, reference(copy, ids_of(90)), atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match="hold 'query_beta'"), model.scaled("linear", 4):
        pass


def test_a_model_whose_positions_are_not_rotary_refuses_a_scale(tmp_path: Path) -> None:
    config = FalconConfig(**{**SMALL, "num_key_value_heads": None}, alibi=True, new_decoder_architecture=False)
    model = load(made(tmp_path, config))
    assert found(model, "scale").level == NOTE
    torch.testing.assert_close(model.token_nll(ids_of(90))[0], reference(tmp_path, ids_of(90)), atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match="another g changes no logit"), model.scaled("linear", 4):
        pass


# ---- 4. what a run meets


def test_a_sliding_window_is_kept_to_in_chunks_and_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32, "sliding_window": 40}
    config = Qwen2MoeConfig(**SMALL, **extra, use_sliding_window=True, max_window_layers=0)
    monkeypatch.setattr("e2bench.models.body.CHUNK_TOKENS", 64)
    model = load(made(tmp_path, config))
    ids = ids_of(300)
    torch.testing.assert_close(model.token_nll(ids)[0], reference(tmp_path, ids), atol=1e-3, rtol=1e-3)
    ((_, generation),) = model.generate([Prompt(ids[0].tolist(), 6)])
    hf = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    plain = hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert generation.ids == plain[0, 300:].tolist()


def test_a_cache_that_cannot_be_cut_back_costs_time_and_no_answer(tmp_path: Path) -> None:
    config = Lfm2Config(**SMALL, layer_types=["conv", "full_attention"])
    model = load(made(tmp_path, config))
    assert not model.croppable
    ids = ids_of(80)[0].tolist()
    prompts = [Prompt(ids[:end], 5) for end in (80, 60)]
    shared = [generation.ids for _, generation in model.generate_sharing(prompts)]
    assert shared == [next(iter(model.generate([prompt])))[1].ids for prompt in prompts]
    (first, _), (second, _) = model.option_scores([ids[:40], [*ids[:30], *ids[50:60]]])
    assert first == pytest.approx(-model.token_nll(torch.tensor([ids[:40]])).sum().item(), rel=1e-5)
    assert second != first


# ---- 5. windows


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"max_position_embeddings": 16384, "rope_parameters": {"rope_type": "linear", "factor": 4.0}}, "4,096"),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, "131,072"),
    ],
)
def test_other_numbers_that_could_be_l_are_named_with_the_flag(copy: Path, config: dict[str, Any], named: str) -> None:
    rope = json.loads((copy / "config.json").read_text())["rope_parameters"]
    change(copy / "config.json", **{**config, "rope_parameters": {**rope, **config.get("rope_parameters", {})}})
    window = found(load(copy), "native window")
    assert window.level == NOTE and named in window.found and "--native-window" in window.advice
    assert found(load(copy, native_window=4096), "native window").level == OK


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


@pytest.mark.parametrize(
    ("rope", "longest", "level"),
    [
        ({"rope_type": "linear", "factor": 4.0}, 512, OK),  # as `e2bench export` and Vicuna write it
        ({"rope_type": "linear", "factor": 4.0}, None, NOTE),  # 128 may be L as well as 128 / 4
        ({"rope_type": "linear", "factor": 4.0}, 2048, NOTE),
        (YARN, 512, OK),
        (YARN, None, OK),
        (YARN, 2048, NOTE),
        ({}, 128, OK),
    ],
)
def test_a_number_that_is_g_times_l_bears_l_out(
    copy: Path, rope: dict[str, Any], longest: int | None, level: str
) -> None:
    plain = json.loads((copy / "config.json").read_text())["rope_parameters"]
    change(copy / "config.json", max_position_embeddings=128, rope_parameters={**plain, **rope})
    change(copy / "tokenizer_config.json", model_max_length=longest or 10**30)
    window = found(load(copy), "native window")
    assert (window.level, "L = 128" in window.found) == (level, True)
    change(copy / "config.json", max_position_embeddings=512 if rope is YARN else 128)
    assert found(load(copy), "native window").level == level


@pytest.mark.parametrize("name", ["e2_config.json", "e2bench_export.json"])
def test_l_as_it_was_tuned_or_exported_settles_which_number_it_is(copy: Path, name: str) -> None:
    plain = json.loads((copy / "config.json").read_text())["rope_parameters"]
    change(
        copy / "config.json",
        max_position_embeddings=512,
        rope_parameters={**plain, "rope_type": "linear", "factor": 4.0},
    )
    (copy / name).write_text('{"native_window": 512}')
    assert found(load(copy), "native window").level == OK
    (copy / name).write_text('{"native_window": 128}')
    window = found(load(copy), "native window")
    assert window.level == NOTE and window.advice == "if L is another one, give it: --native-window 128"
    assert found(load(copy, native_window=128), "native window").level == OK


# ---- 6. remote code


def test_code_beside_a_class_that_transformers_has_is_not_run(copy: Path) -> None:
    change(copy / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.LlamaForCausalLM"})
    (copy / "modeling_evil.py").write_text("raise SystemExit('ran')")
    assert type(load(copy).hf) is LlamaForCausalLM


# ---- 7. templates


def test_a_template_gets_no_clock_and_no_dice(tiny_model: Model, tmp_path: Path) -> None:
    tokenizer = copies.deepcopy(tiny_model.tokenizer)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y %H:%M:%S') }} {{ messages[0].content }}"
    wrapper = chat_wrapper("auto", tokenizer)
    assert wrapper is not None and wrapper.apply("Hello") == "26 Jul 2024 00:00:00 Hello"
    tokenizer.chat_template = "{{ range(9999) | random }} {{ messages[0].content }}"
    wrapper = chat_wrapper("auto", tokenizer)
    assert wrapper is not None and len({wrapper.apply("Hello") for _ in range(5)}) == 1


def test_a_thinking_block_is_named_and_closed(tiny_model: Model) -> None:
    tokenizer = copies.deepcopy(tiny_model.tokenizer)
    tokenizer.chat_template = (
        "{{ messages[0].content }}<think>{% if enable_thinking is false %}\n\n</think>{% endif %}\n"
    )
    thinking, plain = chat_wrapper("auto", tokenizer), chat_wrapper("auto", tokenizer, thinking=False)
    assert thinking is not None and plain is not None
    assert thinking.opens_thinking and not plain.opens_thinking and thinking.sha256 != plain.sha256


def test_another_wrapper_of_the_same_name_is_another_run(copy: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    options = ("--model", copy, "--scale", 8, "--data", "demo", "--tasks", "qasper", "--out", tmp_path / "run")
    (copy / "chat_template.jinja").write_text("[user] {{ messages[0].content }}")
    assert cli("longbench", *options).code == 0
    (copy / "chat_template.jinja").write_text("[USER] {{ messages[0].content }}")
    ended = cli("longbench", *options)
    assert ended.code == 2 and "hashes" in ended.err


# ---- 9. data and predictions


def test_repeated_lines_are_said_and_repeated_ids_refused(tmp_path: Path, cli: Callable[..., Any]) -> None:
    line = {"pred": "Paris", "answers": ["Paris"], "all_classes": None, "length": float("nan")}
    (tmp_path / "qasper.jsonl").write_text(f"{json.dumps(line)}\n" * 250)
    ended = cli("score", tmp_path, "--json")
    assert ended.code == 0 and json.loads(ended.out)["tasks"] == {"qasper": 100.0}
    assert "249 lines equal another one" in ended.err and "the set has 200 samples" in ended.err
    (tmp_path / "qasper.jsonl").write_text(f"{json.dumps({**line, '_id': 'a'})}\n" * 2)
    ended = cli("score", tmp_path)
    assert ended.code == 2 and "two lines have the _id 'a'" in ended.err


# ---- the command


def test_doctor_lists_every_check_and_exits_2_where_a_number_would_be_wrong(
    copy: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    ended = cli("doctor", "--model", copy, "--data", "demo", "--json")
    said = json.loads(ended.out)
    assert ended.code == 0 and said["ok"]
    checks = {one["check"] for one in said["findings"]}
    assert checks >= {"weights", "tokenizer", "end of text", "attention", "scale", "native window", "true lengths"}
    assert checks >= {"scaled layers", "scaling in force", "chat template", "data"}
    assert "Traceback" not in ended.err
    weights = load_file(copy / "model.safetensors")
    save_file({**weights, "model.extra": torch.ones(4)}, copy / "model.safetensors", metadata={"format": "pt"})
    ended = cli("doctor", "--model", copy)
    assert ended.code == 2 and "WRONG" in ended.out and ended.err.count("\n") == 1


def test_what_was_found_stands_in_run_json_and_is_said_once(
    copy: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    change(copy / "config.json", model_max_length=4096)
    options = ("--model", copy, "--lengths", "200", "--depths", 1, "--trials", 1, "--out", tmp_path / "run")
    ended = cli("passkey", *options)
    assert ended.code == 0 and "native window: L = 128" in ended.err
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["checks"]
    assert {one["level"] for one in recorded} == {OK, NOTE}


def test_a_model_that_is_not_there_is_a_finding_not_a_traceback() -> None:
    (finding,) = examine(Common.read({"model": "/nowhere/at/all"}))
    assert finding.level == WRONG and "/nowhere/at/all" in finding.found


def test_qwen3_is_run_the_fast_way_and_right(tmp_path: Path) -> None:
    model = load(made(tmp_path, Qwen3Config(**SMALL, head_dim=16)))
    assert model.grouped and model.croppable
    ids = ids_of(200)
    torch.testing.assert_close(model.token_nll(ids)[0], reference(tmp_path, ids), atol=1e-4, rtol=1e-4)


def test_where_no_scale_can_be_set_g_1_is_the_model_as_it_was_built(tmp_path: Path) -> None:
    config = FalconConfig(**{**SMALL, "num_key_value_heads": None}, alibi=True, new_decoder_architecture=False)
    model = load(made(tmp_path, config))
    ids = ids_of(60)
    own = model.token_nll(ids)
    with model.scaled("linear", 1):
        assert torch.equal(model.token_nll(ids), own)
