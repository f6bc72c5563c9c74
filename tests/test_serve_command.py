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


OWN = {"nodes": 1, "port": 8000}


def printed(capsys, common, nodes=1):
    run(common, nodes=nodes, port=8000)
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

    (words,) = printed(capsys, given(model=str(tiny_folder), scale="8", method=method, engine=engine))
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
    # the folder is in float32, which vLLM's own auto would make float16
    own = ["--generation-config", "vllm", "--dtype", "float32"]
    assert words == ["vllm", "serve", str(tiny_folder), "--max-model-len", "128", *own, "--port", "8000"]
    config = json.loads((tiny_folder / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "linear", "factor": 4.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (words,) = printed(capsys, given(model=str(tmp_path)))
    assert "--hf-overrides" not in words
    assert value(words, "--max-model-len") == "512"
    (words,) = printed(capsys, given(model=str(tmp_path), scale="8"))
    assert json.loads(value(words, "--hf-overrides"))["rope_parameters"]["factor"] == 8


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_beyond_g_times_l_the_engine_gets_positions_to_rotate_and_the_same_frequencies(tiny_folder, capsys, engine):
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    common = given(model=str(tiny_folder), scale="2", window="1k", engine=engine)
    (words,) = printed(capsys, common)
    option = "--hf-overrides" if engine == "vllm" else "--json-model-override-args"
    override = json.loads(value(words, option))
    assert override["max_position_embeddings"] * 2 == 1024
    beyond, within = (AutoConfig.from_pretrained(tiny_folder, **one) for one in (override, {**override}))
    within.max_position_embeddings = 128
    assert torch.equal(LlamaRotaryEmbedding(beyond).inv_freq, LlamaRotaryEmbedding(within).inv_freq)
    with pytest.raises(
        E2BenchError, match="has no positions beyond 256 tokens at this scaling, and the window is 1024"
    ):
        run(common.replaced(method="yarn"), **OWN)


@pytest.mark.parametrize(
    ("engine", "variable"),
    [("vllm", "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1"), ("sglang", "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1")],
)
def test_one_token_more_needs_no_position_but_the_engines_leave(tiny_folder, capsys, engine, variable):
    common = given(model=str(tiny_folder), scale="2", window="257", engine=engine)
    (words,) = printed(capsys, common)
    assert words[0] == variable
    assert "max_position_embeddings" not in " ".join(words)


def test_options_of_the_engine_are_added(tiny_folder, capsys):
    common = given(model=str(tiny_folder), scale="2", engine_options="--gpu-memory-utilization 0.8")
    (words,) = printed(capsys, common)
    assert value(words, "--gpu-memory-utilization") == "0.8"


def test_gpus_and_nodes_are_spelled_as_each_engine_wants_them(tiny_folder, capsys):
    common = given(model=str(tiny_folder), scale="2", dtype="bfloat16")
    head, worker, serve = printed(capsys, common.replaced(tensor_parallel=8, pipeline_parallel=2), nodes=2)
    assert (head[:3], worker[:2]) == (["ray", "start", "--head"], ["ray", "start"])
    assert (value(serve, "--tensor-parallel-size"), value(serve, "--pipeline-parallel-size")) == ("8", "2")
    lines = printed(capsys, common.replaced(engine="sglang", tensor_parallel=8), nodes=2)
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
