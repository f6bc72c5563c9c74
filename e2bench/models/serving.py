"""The command that starts vLLM or SGLang with a RoPE scaling: printed by `serve-command`, run by `--engine`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2bench.errors import E2BenchError
from e2bench.models.scaled_config import scaled_parameters, table_length
from e2bench.rope.config import checkpoint_scaling, rope_config, text_config
from e2bench.rope.methods import BY_LENGTH, RopeScaling


@dataclass(frozen=True)
class Engine:
    """How one engine spells what we ask of it.

    package: its distribution.    program, load: words before and behind the executable, up to the model's name.
    beyond: the environment variable that allows a context beyond what the config says.
    own: options that keep the model's own sampling defaults out of greedy answers.
    key: the variable that holds the key which clients must send, or the option where there is none.
    """

    name: str
    label: str
    package: str
    program: str
    load: tuple[str, ...]
    context: str
    override: str
    beyond: str
    tensor: str
    pipeline: str
    key: str
    own: tuple[str, ...] = ()


ROWS = (
    Engine(
        "vllm",
        "vLLM",
        "vllm",
        program="vllm",
        load=("serve",),
        context="--max-model-len",
        override="--hf-overrides",
        beyond="VLLM_ALLOW_LONG_MAX_MODEL_LEN",
        tensor="--tensor-parallel-size",
        pipeline="--pipeline-parallel-size",
        key="VLLM_API_KEY",
        own=("--generation-config", "vllm"),  # else a checkpoint's max_new_tokens caps every answer
    ),
    Engine(
        "sglang",
        "SGLang",
        "sglang",
        program="python",
        load=("-m", "sglang.launch_server", "--model-path"),
        context="--context-length",
        override="--json-model-override-args",
        beyond="SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN",
        tensor="--tp-size",
        pipeline="--pp-size",
        key="--api-key",
    ),
)
BY_NAME = {row.name: row for row in ROWS}


@dataclass(frozen=True)
class Command:
    """Words of a command line, and the variables of the environment that it needs."""

    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def with_words(self, *more: str) -> Command:
        """The same with more words at its end."""
        return Command((*self.words, *more), self.environment)

    def shown(self) -> list[str]:
        """As one types it: variables first."""
        return [*(f"{name}={value}" for name, value in self.environment.items()), *self.words]


@dataclass(frozen=True)
class Serving:
    """What a server is to load, and how.

    config: the checkpoint's.    native: L in tokens.    dtype: `auto`: the checkpoint's own.
    tensor, pipeline: GPUs that share every layer; groups that share the layers out.
    """

    engine: Engine
    model: str
    config: Any
    native: int
    dtype: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    tensor: int = 1
    pipeline: int = 1

    def command(self, scaling: RopeScaling | None, window: int) -> Command:
        """What serves `window` tokens of prompt and answer together. scaling: None keeps the checkpoint's own.

        Raises E2BenchError for a scaling that a config cannot say, and for a window that the engine could not rotate.
        """
        engine, environment = self.engine, {}
        covered, override = self._override(scaling, window)
        if window > covered:  # refused by the engine unless told that it is meant
            environment[engine.beyond] = "1"
        words = [engine.program, *engine.load, self.model, engine.context, str(window)]
        if override:
            words += [engine.override, json.dumps(override)]
        words += engine.own
        if self.precision != "auto":
            words += ["--dtype", self.precision]
        if self.revision:
            words += ["--revision", self.revision]
        if self.trust_remote_code:
            words += ["--trust-remote-code"]
        if self.tensor > 1:
            words += [engine.tensor, str(self.tensor)]
        if self.pipeline > 1:
            words += [engine.pipeline, str(self.pipeline)]
        return Command(tuple(words), environment)

    @property
    def precision(self) -> str:
        """For `--dtype`: what was asked for. A float32 checkpoint stays so, where `auto` of an engine is float16."""
        if self.dtype == "auto" and self.stored == "float32":
            return self.stored
        return self.dtype

    @property
    def stored(self) -> str:
        """The precision of the checkpoint's weights; `auto` where its config does not say it."""
        found = getattr(self.config, "dtype", None) or getattr(text_config(self.config), "dtype", None)
        return "auto" if found is None else str(found).removeprefix("torch.")

    def caveat(self, scaling: RopeScaling | None) -> str:
        """What the engine does otherwise than the checkpoint means it; empty where it does the same."""
        own = checkpoint_scaling(self.config)
        if scaling is not None or own is None or own.method not in BY_LENGTH:
            return ""
        return (
            f"the checkpoint's own scaling ({own.method}) follows the length of each input; {self.engine.label} fixes "
            "it when it starts, so that short inputs are answered otherwise than by a model loaded here"
        )

    def _override(self, scaling: RopeScaling | None, window: int) -> tuple[int, dict[str, Any]]:
        """(tokens that the engine takes without being told so, what replaces the config's RoPE).

        Engines make a table of positions, `max_position_embeddings` × factor long; beyond it answers are noise. Only a
        linear factor and the plain rotation can be had at any length.
        """
        own = checkpoint_scaling(self.config)
        in_force = scaling or own or RopeScaling("none", 1)
        covered = int(in_force.factor * self.native)
        positions = self.native
        if window - 1 > covered:  # the last token is read by nobody
            if (scaling is None and own is not None) or not (in_force.is_plain or in_force.method == "linear"):
                raise E2BenchError(
                    f"{self.engine.label} has no positions beyond {covered} tokens at this scaling, and the window is "
                    f"{window}; give a larger --scale, or a shorter window or --lengths"
                )
            positions = math.ceil((window - 1) / in_force.factor)
            covered = int(in_force.factor * positions)
        if scaling is None and own is not None:
            return covered, {}
        return covered, overrides(self.config, in_force, self.native, positions)


def overrides(config: Any, scaling: RopeScaling, native: int, positions: int) -> dict[str, Any]:
    """What replaces the config's RoPE, theta kept; {} where it already says the same.

    vLLM takes nothing else since `--rope-scaling` is gone (docs.vllm.ai, features/context_extension). The window a
    server allows is `max_position_embeddings` × factor: `positions`, which is L but for a window beyond g·L.
    """
    if any(isinstance(value, dict) for value in (text_config(config).rope_parameters or {}).values()):
        raise E2BenchError(
            f"{config.model_type!r} has one RoPE per layer type, which servers override in their own ways; write a "
            "checkpoint with e2bench export and serve that"
        )
    current = rope_config(config)
    new = scaled_parameters(current, scaling, native)
    same = {k: current.get(k) for k in new} == new and current.get("rope_type", "default") == new["rope_type"]
    changed: dict[str, Any] = {} if same else {"rope_parameters": new}
    if text_config(config).max_position_embeddings != (table := table_length(new, scaling, positions)):
        changed["max_position_embeddings"] = table
    return changed


def check_servable(model: str) -> None:
    """Raise E2BenchError for what is served already, and for what engines load in their own ways."""
    if model.startswith(("http://", "https://")):
        raise E2BenchError(f"{model} is served already; --model takes what the server is to load")
    path = Path(model)
    if path.suffix == ".gguf" or (path / "adapter_config.json").exists():
        raise E2BenchError(
            f"{model}: servers take a .gguf or an adapter in their own ways; write a checkpoint with "
            f"e2bench export --model {model} --out FOLDER and serve that"
        )
