"""`e2bench serve-command`: the line that starts vLLM or SGLang with a RoPE scaling."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from e2bench.errors import E2BenchError, UnknownName
from e2bench.experiments.loading import with_preset
from e2bench.experiments.options import Common
from e2bench.models.loading import check_hub_id
from e2bench.rope.config import checkpoint_scaling, native_window, rope_config, text_config
from e2bench.rope.methods import RopeScaling
from e2bench.rope.windows import PER_INPUT, scale_rule

ENGINES = ("vllm", "sglang")
BEYOND = {"vllm": "VLLM_ALLOW_LONG_MAX_MODEL_LEN", "sglang": "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"}


def run(common: Common, *, engine: str, tensor_parallel: int, pipeline_parallel: int, nodes: int, port: int) -> None:
    """Print the command on stdout, and how to evaluate what it serves on stderr. No weights are read."""
    if engine not in ENGINES:
        raise UnknownName("engine", engine, list(ENGINES))
    if common.model is None:
        raise E2BenchError("serve-command needs --model: a hub id, a folder or a preset's name")
    common = with_preset(common)
    name = _servable(common)
    config = _config(common, name)
    native = common.native_window or native_window(config)
    rule = scale_rule(common.scale, common.method, native, checkpoint_scaling(config))
    if rule.kind == PER_INPUT or len(rule.values) > 1:
        raise E2BenchError(f"--scale {common.scale} is several scales; a server has one: give a number or auto")
    window = rule.window(common.window)
    scaling = None if rule.kind == "own" else rule.scaling(window)
    parts = _vllm(name, window) if engine == "vllm" else _sglang(name, window)
    factor = rule.own.factor if rule.own is not None else rule.scaling(window).factor
    if window > int(factor * native):  # both refuse a window beyond g·L unless told that it is meant
        parts = [f"{BEYOND[engine]}=1", *parts]
    if scaling is not None and (override := overrides(config, scaling, native)):
        parts += ["--hf-overrides" if engine == "vllm" else "--json-model-override-args", json.dumps(override)]
    parts += _common(common, port)
    for line in _parallel(parts, engine, tensor_parallel, pipeline_parallel, nodes):
        print(line)
    evaluate = f"e2bench longbench --model http://127.0.0.1:{port}/v1 --served-model {name} --tokenizer {name}"
    print(f"then: {evaluate} --native-window {native} --window {window}", file=sys.stderr)


def overrides(config: Any, scaling: RopeScaling, native: int) -> dict[str, Any]:
    """What replaces the config's RoPE, theta kept; {} where it already says the same.

    vLLM takes nothing else since `--rope-scaling` is gone (docs.vllm.ai, features/context_extension). The window a
    server allows is `max_position_embeddings` × factor, so L must stay there.
    """
    from e2bench.models.scaled_config import scaled_parameters

    if any(isinstance(value, dict) for value in (text_config(config).rope_parameters or {}).values()):
        raise E2BenchError(
            f"{config.model_type!r} has one RoPE per layer type, which servers override in their own ways; write a "
            "checkpoint with e2bench export and serve that"
        )
    current = rope_config(config)
    new = scaled_parameters(current, scaling, native)
    same = {k: current.get(k) for k in new} == new and current.get("rope_type", "default") == new["rope_type"]
    changed: dict[str, Any] = {} if same else {"rope_parameters": new}
    if text_config(config).max_position_embeddings != native:
        changed["max_position_embeddings"] = native
    return changed


def _servable(common: Common) -> str:
    model = str(common.model)
    path = Path(model)
    if model.startswith(("http://", "https://")):
        raise E2BenchError(f"{model} is served already; --model takes what the server is to load")
    if path.suffix == ".gguf" or (path / "adapter_config.json").exists():
        raise E2BenchError(
            f"{model}: servers take a .gguf or an adapter in their own ways; write a checkpoint with "
            f"e2bench export --model {model} --out FOLDER and serve that"
        )
    return model


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


def _vllm(name: str, window: int) -> list[str]:
    return ["vllm", "serve", name, "--max-model-len", str(window)]


def _sglang(name: str, window: int) -> list[str]:
    return ["python", "-m", "sglang.launch_server", "--model-path", name, "--context-length", str(window)]


def _common(common: Common, port: int) -> list[str]:
    parts = ["--port", str(port)]
    if common.dtype != "auto":
        parts += ["--dtype", common.dtype]
    if common.revision:
        parts += ["--revision", common.revision]
    if common.trust_remote_code:
        parts += ["--trust-remote-code"]
    return parts


def _parallel(parts: list[str], engine: str, tensor: int, pipeline: int, nodes: int) -> list[str]:
    """One line a node. vLLM spans nodes through a Ray cluster, SGLang through ranks that meet at node 0."""
    if engine == "vllm":
        if tensor > 1:
            parts = [*parts, "--tensor-parallel-size", str(tensor)]
        if pipeline > 1:
            parts = [*parts, "--pipeline-parallel-size", str(pipeline)]
        if nodes == 1:
            return [shlex.join(parts)]
        first = "ray start --head --port=6379   # on node 0"
        others = "ray start --address=NODE0:6379   # on every other node"
        return [first, others, shlex.join([*parts, "--distributed-executor-backend", "ray"]) + "   # on node 0"]
    if tensor > 1:
        parts = [*parts, "--tp-size", str(tensor)]
    if pipeline > 1:
        parts = [*parts, "--pp-size", str(pipeline)]
    if nodes == 1:
        return [shlex.join(parts)]
    meet = ["--nnodes", str(nodes), "--dist-init-addr", "NODE0:5000"]
    return [f"{shlex.join([*parts, *meet, '--node-rank', str(n)])}   # on node {n}" for n in range(nodes)]
