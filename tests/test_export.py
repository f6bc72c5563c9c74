"""Export: plain transformers on the written folder gives the logits of `--scale g`; the config says what vLLM needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from e2bench.errors import E2BenchError, RunFolderError
from e2bench.models.export import check_target, export, stored_dtype
from e2bench.models.loading import ModelSpec
from e2bench.models.local import Model
from e2bench.models.scaled_config import scaled_parameters
from e2bench.rope.methods import RopeScaling


def load(folder: Path) -> Model:
    return Model.load(ModelSpec(model=str(folder)))


def logits(model: Model, ids: list[int], scaling: RopeScaling | None) -> torch.Tensor:
    with model.under(scaling, len(ids)), torch.inference_mode():
        return model.head(model.hidden(torch.tensor([ids])))


@pytest.mark.parametrize("scaling", [RopeScaling("linear", 8), RopeScaling("yarn", 4), RopeScaling("none")])
def test_plain_transformers_gives_the_logits_of_that_scale(
    tiny_folder: Path, tiny_model: Model, tmp_path: Path, scaling: RopeScaling
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = export(load(tiny_folder), scaling, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("The grass is green. The sky is blue. " * 40)["input_ids"]
    assert len(ids) > 2 * tiny_model.native_window
    with torch.inference_mode():
        found = plain(torch.tensor([ids])).logits
    torch.testing.assert_close(found, logits(tiny_model, ids, scaling), atol=1e-4, rtol=1e-4)


def test_the_config_keeps_theta_and_the_native_window(tiny_folder: Path, tmp_path: Path) -> None:
    out = export(load(tiny_folder), RopeScaling("linear", 16), tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    before = json.loads((tiny_folder / "config.json").read_text())
    assert config["rope_parameters"] == {
        "rope_type": "linear",
        "factor": 16.0,
        "rope_theta": before["rope_parameters"]["rope_theta"],
    }
    assert config["max_position_embeddings"] == before["max_position_embeddings"]  # vLLM's own product is then g·L
    assert list(out.glob("*.safetensors"))
    assert "--max-model-len 2048" in (out / "README.md").read_text()
    again = load(out)
    assert again.own_scaling == RopeScaling("linear", 16)
    assert again.native_window == 128


def test_exporting_an_export_replaces_its_scale(tiny_folder: Path, tiny_model: Model, tmp_path: Path) -> None:
    first = export(load(tiny_folder), RopeScaling("linear", 16), tmp_path / "first")
    second = load(export(load(first), RopeScaling("linear", 2), tmp_path / "second"))
    ids = tiny_model.encode("Here we go. " * 30)
    torch.testing.assert_close(
        logits(second, ids, None), logits(tiny_model, ids, RopeScaling("linear", 2)), atol=1e-4, rtol=1e-4
    )


def test_weights_keep_the_dtype_of_the_checkpoint(tiny_folder: Path, tmp_path: Path) -> None:
    half = export(load(tiny_folder), RopeScaling("linear", 2), tmp_path / "half", dtype=torch.bfloat16)
    assert stored_dtype(str(half)) == torch.bfloat16
    assert stored_dtype(str(tiny_folder)) == torch.float32
    assert stored_dtype("some/hub-id") is None


def test_folders_that_are_not_ours_are_left_alone(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="something else than an export"):
        export(load(tiny_folder), None, tmp_path)
    with pytest.raises(RunFolderError, match="is a file"):
        check_target(tmp_path / "notes.txt")
    out = export(load(tiny_folder), None, tmp_path / "out")
    assert export(load(tiny_folder), RopeScaling("linear", 2), out) == out  # our own is written anew


@pytest.mark.parametrize("method", ["ntk", "dynamic"])
def test_methods_without_a_fixed_form_are_refused(method: str) -> None:
    with pytest.raises(E2BenchError, match="no fixed form"):
        scaled_parameters({"rope_theta": 10000.0}, RopeScaling(method, 4), 128)


@pytest.mark.smollm2
@pytest.mark.slow
def test_a_gguf_is_written_unpacked(smollm2: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = load(smollm2)
    ids = model.encode("The grass is green. The sky is blue. Here we go. " * 8)
    want = logits(model, ids, RopeScaling("linear", 4))
    plain = AutoModelForCausalLM.from_pretrained(export(model, RopeScaling("linear", 4), tmp_path / "out"))
    assert plain.config.rope_parameters["rope_theta"] == 100000.0
    assert not hasattr(plain.config, "quantization_config")
    with torch.inference_mode():
        found = plain(torch.tensor([ids])).logits
    torch.testing.assert_close(found, want, atol=2e-3, rtol=1e-3)
