"""`serve-command` prints what vLLM and SGLang need for the same rotary frequencies that the bench uses."""

import json
import shlex
from typing import Any

import pytest
import torch

from e2bench.cli.serve_command import run
from e2bench.errors import E2BenchError
from e2bench.experiments.options import Common
from e2bench.rope.methods import RopeScaling


def given(**values: Any) -> Common:
    """Shared settings of texts, as the command line gives them."""
    return Common.read(values)


OWN = {"engine": "vllm", "tensor_parallel": 1, "pipeline_parallel": 1, "nodes": 1, "port": 8000}


def printed(capsys, common, **own):
    run(common, **{**OWN, **own})
    return [shlex.split(line, comments=True) for line in capsys.readouterr().out.splitlines()]


def value(words, option):
    return words[words.index(option) + 1]


@pytest.mark.parametrize(("engine", "option"), [("vllm", "--hf-overrides"), ("sglang", "--json-model-override-args")])
@pytest.mark.parametrize("method", ["linear", "yarn"])
def test_a_config_with_the_override_gives_the_benchs_own_frequencies(
    tiny_folder, tiny_model, capsys, engine, option, method
):
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    (words,) = printed(capsys, given(model=str(tiny_folder), scale="8", method=method), engine=engine)
    override = json.loads(value(words, option))
    config = AutoConfig.from_pretrained(tiny_folder, **override)
    with tiny_model.rope.using(RopeScaling(method, 8)):
        ours = torch.tensor(tiny_model.rope.in_force(), dtype=torch.float32)
    assert torch.equal(LlamaRotaryEmbedding(config).inv_freq, ours)
    assert config.max_position_embeddings == 128
    assert value(words, "--max-model-len" if engine == "vllm" else "--context-length") == str(8 * 128)
    assert (
        override["rope_parameters"]["rope_theta"]
        == AutoConfig.from_pretrained(tiny_folder).rope_parameters["rope_theta"]
    )


def test_scale_one_and_a_checkpoint_with_its_own_scaling_need_no_override(tiny_folder, tmp_path, capsys):
    (words,) = printed(capsys, given(model=str(tiny_folder), scale="1"))
    assert words == ["vllm", "serve", str(tiny_folder), "--max-model-len", "128", "--port", "8000"]
    config = json.loads((tiny_folder / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "linear", "factor": 4.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (words,) = printed(capsys, given(model=str(tmp_path)))
    assert "--hf-overrides" not in words
    assert value(words, "--max-model-len") == "512"
    (words,) = printed(capsys, given(model=str(tmp_path), scale="8"))
    assert json.loads(value(words, "--hf-overrides"))["rope_parameters"]["factor"] == 8


def test_a_window_beyond_the_scale_is_said_to_be_meant(tiny_folder, capsys):
    common = given(model=str(tiny_folder), scale="2", window="1k")
    (words,) = printed(capsys, common)
    assert words[:3] == ["VLLM_ALLOW_LONG_MAX_MODEL_LEN=1", "vllm", "serve"]
    (words,) = printed(capsys, common, engine="sglang")
    assert words[0] == "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1"


def test_gpus_and_nodes_are_spelled_as_each_engine_wants_them(tiny_folder, capsys):
    common = given(model=str(tiny_folder), scale="2", dtype="bfloat16")
    head, worker, serve = printed(capsys, common, tensor_parallel=8, pipeline_parallel=2, nodes=2)
    assert (head[:3], worker[:2]) == (["ray", "start", "--head"], ["ray", "start"])
    assert (value(serve, "--tensor-parallel-size"), value(serve, "--pipeline-parallel-size")) == ("8", "2")
    lines = printed(capsys, common, engine="sglang", tensor_parallel=8, nodes=2)
    assert [value(line, "--node-rank") for line in lines] == ["0", "1"]
    assert {value(line, "--dtype") for line in lines} == {"bfloat16"}


@pytest.mark.parametrize(
    ("common", "message"),
    [
        (Common(), "needs --model"),
        (given(model="http://host/v1"), "is served already"),
        (given(model="x.gguf"), "e2bench export --model x.gguf"),
        (given(model="/nowhere/at/all"), "no folder or file /nowhere/at/all"),
        (given(model="TINY", scale="2,4"), "is several scales"),
        (given(model="TINY", scale="per-input"), "is several scales"),
        (given(model="TINY", scale="4", method="ntk"), "linear, yarn or none"),
    ],
)
def test_what_no_server_can_do_is_one_line(tiny_folder, common, message):
    if common.model == "TINY":
        common = common.replaced(model=str(tiny_folder))
    with pytest.raises(E2BenchError, match=message):
        run(common, **OWN)
