"""`e2bench serve-command`: the line that starts vLLM or SGLang with a RoPE scaling."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from e2bench.errors import E2BenchError
from e2bench.experiments.loading import with_preset
from e2bench.experiments.options import Common
from e2bench.models.loading import check_hub_id
from e2bench.models.serving import BY_NAME, Command, Engine, Serving, check_servable
from e2bench.rope.config import checkpoint_scaling, native_window
from e2bench.rope.windows import PER_INPUT, scale_rule
from e2bench.terminal import quoted, say, say_next


def run(common: Common, *, nodes: int, port: int) -> None:
    """Print the command on stdout, and how to evaluate what it serves on stderr. No weights are read."""
    engine = BY_NAME[common.engine if common.has_engine else "vllm"]
    if common.model is None:
        raise E2BenchError("serve-command needs --model: a hub id, a folder or a preset's name")
    common = with_preset(common)
    name = str(common.model)
    check_servable(name)
    config = _config(common, name)
    native = common.native_window or native_window(config)
    rule = scale_rule(common.scale, common.method, native, checkpoint_scaling(config))
    if rule.kind == PER_INPUT or len(rule.values) > 1:
        raise E2BenchError(f"--scale {common.scale} is several scales; a server has one: give a number or auto")
    window = rule.window(common.window)
    scaling = None if rule.kind == "own" else rule.scaling(window)
    serving = Serving(
        engine,
        name,
        config,
        native,
        dtype=common.dtype,
        revision=common.revision,
        trust_remote_code=common.trust_remote_code,
        tensor=common.tensor_parallel,
        pipeline=common.pipeline_parallel,
    )
    command = serving.command(scaling, window).with_words(*shlex.split(common.engine_options or ""))
    for line in _lines(engine, command.with_words("--port", str(port)), nodes):
        print(line)
    if caveat := serving.caveat(scaling):
        say(caveat)
    served = f"--served-model {quoted(name)} --tokenizer {quoted(name)}"
    evaluate = f"e2bench longbench --model http://127.0.0.1:{port}/v1 {served}"
    say_next(f"{evaluate} --native-window {native} --window {window} in another terminal")


def _config(common: Common, name: str) -> Any:
    from transformers import AutoConfig

    if not Path(name).is_dir():
        check_hub_id(name)
    try:
        return AutoConfig.from_pretrained(
            name, revision=common.revision or "main", trust_remote_code=common.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise E2BenchError(f"the config of {name} cannot be read: {' '.join(str(error).split())[:200]}") from None


def _lines(engine: Engine, command: Command, nodes: int) -> list[str]:
    """One line a node. vLLM spans nodes through a Ray cluster, SGLang through ranks that meet at node 0."""
    words = command.shown()
    if nodes == 1:
        return [shlex.join(words)]
    if engine.name == "vllm":
        first = "ray start --head --port=6379   # on node 0"
        others = "ray start --address=NODE0:6379   # on every other node"
        return [first, others, shlex.join([*words, "--distributed-executor-backend", "ray"]) + "   # on node 0"]
    meet = ["--nnodes", str(nodes), "--dist-init-addr", "NODE0:5000"]
    return [f"{shlex.join([*words, *meet, '--node-rank', str(n)])}   # on node {n}" for n in range(nodes)]
