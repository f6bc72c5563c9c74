"""What --model may name: folders, adapters, shards, dtypes; what is refused before any weight is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from e2bench.errors import E2BenchError, ModelError
from e2bench.models.loading import ModelSpec
from e2bench.models.local import Model
from e2bench.models.protocols import Prompt
from e2bench.rope.config import checkpoint_scaling
from e2bench.rope.methods import RopeScaling


def load(path: Path, **options: object) -> Model:
    """A model as the bench loads it."""
    return Model.load(ModelSpec(model=str(path), **options))  # type: ignore[arg-type]


def answer(model: Model) -> list[int]:
    """Greedy ids after a fixed prompt."""
    return next(iter(model.generate([Prompt(model.encode("The grass is green."), 8)])))[1].ids


def set_config(folder: Path, **changes: object) -> Path:
    """Change fields of config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    return folder


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint folder that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


# ---- what loads


def test_a_folder_is_named_after_itself_and_described(tiny_folder: Path) -> None:
    model = load(tiny_folder)
    described = model.describe()
    assert (model.name, described["architecture"]) == ("tiny-llama", "LlamaForCausalLM")
    assert (described["native_window"], described["vocab_size"]) == (128, 512)
    assert described["parameters"] == sum(p.numel() for p in model.hf.parameters())
    assert not model.hf.training


def test_float32_is_the_reference_on_a_cpu_whatever_the_checkpoint_says(copy: Path) -> None:
    assert load(set_config(copy, dtype="bfloat16")).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_dtype_is_taken_and_the_frequencies_stay_float32(tiny_folder: Path, dtype: str) -> None:
    model = load(tiny_folder, dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    assert model.rope.in_force() == load(tiny_folder).rope.in_force()


def test_weights_in_shards_load(tiny_folder: Path, tiny_model: Model, tmp_path: Path) -> None:
    hf = AutoModelForCausalLM.from_pretrained(tiny_folder)
    hf.save_pretrained(tmp_path, max_shard_size="100KB")
    tiny_model.tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert answer(load(tmp_path)) == answer(tiny_model)


def test_an_adapter_is_merged_into_its_base(tiny_folder: Path, tiny_model: Model, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        want = adapted.eval()(ids).logits
        model = load(tmp_path)
        found = model.head(model.hidden(ids))
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    assert model.fingerprint() != tiny_model.fingerprint()
    assert not list(tmp_path.glob("tokenizer*"))  # the base's was taken


def test_a_checkpoints_own_linear_scaling_is_in_force_and_recorded(copy: Path) -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    model = load(set_config(copy, rope_parameters=rope))
    assert model.own_scaling == RopeScaling("linear", 4) == checkpoint_scaling(model.hf.config)
    assert model.native_window == 128 and model.rope.in_force()[0] == 0.25


def test_the_native_window_can_be_given(tiny_folder: Path) -> None:
    assert load(tiny_folder, native_window=64).native_window == 64


def test_another_tokenizer_can_be_given(tiny_folder: Path, copy: Path, tiny_model: Model) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert answer(load(copy, tokenizer=str(tiny_folder))) == answer(tiny_model)


def test_pickled_weights_load_as_tensors_alone_when_allowed(tiny_folder: Path, copy: Path, tiny_model: Model) -> None:
    weights = AutoModelForCausalLM.from_pretrained(tiny_folder).state_dict()
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle"):
        load(copy)
    assert answer(load(copy, allow_pickle=True)) == answer(tiny_model)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("open(__import__('os').environ['E2BENCH_EVIL'], 'w').close()",))


def test_code_in_a_pickle_is_not_run_even_when_pickles_are_allowed(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("E2BENCH_EVIL", str(tmp_path / "ran"))
    (copy / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Evil()}, copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load(copy, allow_pickle=True)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


# ---- what is refused


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not readable JSON"),
        ("[]", "is a JSON list"),
        ('{"model_type": "no-such-model"}', "cannot be loaded"),
        ("{}", "cannot be loaded"),
        ('{"model_type": "llama", "hidden_size": -1}', "cannot be loaded"),
        ('{"model_type": "llama", "num_hidden_layers": "many"}', "cannot be loaded"),
        ('{"model_type": "bert"}', "."),
    ],
)
def test_a_config_that_says_nothing_useful_is_one_line(copy: Path, config: str, message: str) -> None:
    (copy / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(E2BenchError, match=message) as caught:
        load(copy)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_weights_that_do_not_fit_the_config_are_refused(copy: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(set_config(copy, hidden_size=32, head_dim=8))


def test_weights_that_are_missing_are_not_made_up(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load(copy)


def test_an_adapter_without_a_base_or_weights_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "adapter_config.json"
    config.write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="names no base_model_name_or_path"):
        load(tmp_path)
    config.write_text(json.dumps({"base_model_name_or_path": str(tiny_folder), "peft_type": "LORA"}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        load(tmp_path)


def test_an_adapter_that_names_itself_as_its_base_is_refused(tmp_path: Path) -> None:
    config = {"base_model_name_or_path": str(tmp_path), "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match="base"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name", ["/nowhere", "./nowhere", "~/nowhere/model", "a/b/c", "nowhere.gguf", "no-such-user/no-such-model", "a b"]
)
def test_a_model_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(E2BenchError) as caught:
        Model.load(ModelSpec(model=name))
    assert "\n" not in str(caught.value) and name.strip("~") in str(caught.value)


def test_a_file_that_is_no_gguf_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(ModelError, match=r"model\.gguf cannot be (loaded|read)") as caught:
        load(tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)


def test_an_encoder_decoder_model_is_refused(tmp_path: Path, tiny_model: Model) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    t5 = T5Config(vocab_size=512, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path)
    tiny_model.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(tmp_path)
