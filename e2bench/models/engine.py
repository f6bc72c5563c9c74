"""A checkpoint whose answers are made by vLLM or SGLang, which is started here for as long as it is needed.

Config and tokenizer are read here, the weights by the engine. What an experiment plans is as for a model loaded here;
its prompts go to the server as to any served model. A server has one scaling: where the work needs another, it is
started anew. Nothing is started before the first prompt, so that a finished run costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from e2bench.errors import E2BenchError
from e2bench.models.callables import NoRope
from e2bench.models.endpoint import Endpoint
from e2bench.models.findings import NOTE, collected, find
from e2bench.models.identity import checkpoint_hash, config_of
from e2bench.models.loading import ModelSpec
from e2bench.models.outline import Outline
from e2bench.models.protocols import Generation, Prompt
from e2bench.models.served import QUEUED, ServedModel
from e2bench.models.server import Server, find_program, gpu_shares, new_key, version_of, wait_until_ready
from e2bench.models.serving import Command, Engine, Serving, check_servable
from e2bench.rope.methods import RopeScaling
from e2bench.rope.windows import PER_INPUT, Scale, ScaleRule
from e2bench.terminal import say


@dataclass(frozen=True)
class EngineSpec:
    """Which engine, and how many of it.

    program: its executable; None: found.    servers: on this machine, each on `tensor` × `pipeline` GPUs.
    options: further words of its command line.    concurrency: requests in flight, of all servers together.
    wait_s: how long a start may take.
    """

    engine: Engine
    program: str | None = None
    servers: int = 1
    tensor: int = 1
    pipeline: int = 1
    options: tuple[str, ...] = ()
    concurrency: int = 32
    wait_s: float = 1800.0


class EngineModel(Outline):
    """Does what LongBench, RULER and passkey ask of a model. `close` stops the servers.

    home: the folder of the servers' logs; None: one for temporary files.
    """

    def __init__(self, spec: ModelSpec, engine: EngineSpec) -> None:
        check_servable(spec.path)
        super().__init__(replace(spec, device="cpu"))
        self.spec, self.engine, self.attention = spec, engine, "server"
        self.rope = NoRope()
        self.serving = Serving(
            engine.engine,
            spec.path,
            self.config,
            self.native_window,
            dtype=spec.dtype,
            revision=spec.revision,
            trust_remote_code=spec.trust_remote_code,
            tensor=engine.tensor,
            pipeline=engine.pipeline,
        )
        if caveat := self.serving.caveat(None):
            with collected() as findings:
                find("scaling", NOTE, caveat, "answers to short inputs may differ", "give --method and --scale")
            self.findings += findings
        self._windows: dict[RopeScaling | None, int] = {}  # the longest input of each scaling of the run in progress
        self._scaling: RopeScaling | None = None  # of the servers that run, with their context
        self._window = 0
        self._servers: list[Server] = []
        self._served: ServedModel | None = None

    # what it is

    @property
    def device(self) -> Any:
        """None: the weights are not here."""
        return None

    @property
    def dtype(self) -> Any:
        """Of the weights, as text."""
        return self.serving.stored if self.serving.precision == "auto" else self.serving.precision

    @cached_property
    def program(self) -> str:
        """Path of the executable. Raises E2BenchError where there is none."""
        return find_program(self.engine.engine, self.engine.program)

    @cached_property
    def version(self) -> str:
        """Of the engine. Raises E2BenchError for an executable that does not tell."""
        return version_of(self.engine.engine, self.program)

    @cached_property
    def weights(self) -> str | None:
        """What tells the weights from others (`checkpoint_hash`)."""
        return checkpoint_hash(self.path, getattr(self.config, "_commit_hash", None))

    def describe(self) -> dict[str, Any]:
        """The `model` part of run.json, and `engine`, its own entry. Raises E2BenchError without an executable."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        identity = json.dumps([config_of(self.config), vocabulary], sort_keys=True, default=str)
        return {
            "name": self.name,
            "path": self.path,
            "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
            **({} if self.weights is None else {"weights": self.weights}),
            "architecture": "".join(self.config.architectures or [self.config.model_type]),
            "parameters": self.parameters,
            "native_window": self.native_window,
            "vocab_size": self.vocab_size,
            "engine": {
                "name": self.engine.engine.name,
                "version": self.version,
                "servers": self.engine.servers,
                "options": list(self.engine.options),
                "commands": [self.command(key, window).shown() for key, window in self._windows.items()],
            },
        }

    def expect(self, work: Sequence[tuple[int, RopeScaling]]) -> None:
        """What servers will be started with. Raises E2BenchError where one of them could not be."""
        self._windows = {}
        for length, scaling in work:
            key = _key(scaling)
            self._windows[key] = max(length, self._windows.get(key, 0))
            self.command(key, self._windows[key])

    def window_of(self, scaling: RopeScaling | None) -> int:
        """g·L of a scaling; None: of the checkpoint's own."""
        in_force = scaling or self.own_scaling or RopeScaling("none", 1)
        return int(in_force.factor * self.native_window)

    def command(self, scaling: RopeScaling | None, window: int) -> Command:
        """What starts a server, but for its address."""
        return self.serving.command(scaling, window).with_words(*self.engine.options)

    def rule(self, scale: Scale | None, method: str | None) -> ScaleRule:
        """As for a loaded model, but for a scale that follows each input."""
        rule = super().rule(scale, method)
        if rule.kind == PER_INPUT:
            raise E2BenchError(
                f"--scale {PER_INPUT} would start {self.engine.engine.label} anew for every other prompt; give a "
                "number or auto"
            )
        return rule

    def check_scaling(self, scaling: RopeScaling | None) -> None:
        """Raise E2BenchError for a scaling that no server can be started with."""
        self.command(_key(scaling), self.window_of(_key(scaling)))

    def needed_bytes(self, tokens: int, rows: int = 1) -> int:
        """The engine's own matter."""
        return 0

    def decode_rows(self, tokens: int) -> int:
        """Prompts handed over together; `concurrency` of them are in flight at any time."""
        return QUEUED * self.engine.concurrency

    # generation

    def generate(
        self, prompts: Sequence[Prompt], scaling: RopeScaling | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """Greedy continuations: (index of the prompt, result), from a server that has the scaling in force.

        Raises RunFailed where a server cannot be started, or is lost.
        """
        longest = max(len(prompt.ids) + prompt.max_new_tokens for prompt in prompts)
        try:
            yield from self._serve(_key(scaling), longest).generate(prompts)
        except E2BenchError:
            self._served = None  # its connections are closed
            for server in self._servers:
                if server.has_ended():
                    raise server.lost("ended in the middle of its work") from None
            raise
        except BaseException:
            self._served = None
            raise

    generate_sharing = generate  # servers keep common beginnings themselves

    def _serve(self, scaling: RopeScaling | None, longest: int) -> ServedModel:
        """A connection to servers with the scaling, and a context for `longest` tokens; started anew where needed."""
        window = max(self._windows.get(scaling) or self.window_of(scaling), longest)
        if not self._servers or self._scaling != scaling or self._window < window:
            self.close()
            self._start(scaling, window)
        if self._served is None:
            first, *others = self._servers
            self._served = ServedModel(
                Endpoint(first.url, key=first.key, others=[one.url for one in others]),
                self.tokenizer,
                served=self.path,
                native=self.native_window,
                concurrency=self.engine.concurrency,
                warn=say,
            )
        return self._served

    def _start(self, scaling: RopeScaling | None, window: int) -> None:
        engine, command = self.engine.engine, self.command(scaling, window)
        command = replace(command, words=(self.program, *command.words[1:]))
        shares = gpu_shares(self.engine.servers, self.engine.tensor * self.engine.pipeline)
        home = self.home or Path(tempfile.mkdtemp(prefix="e2bench-"))
        g = (scaling or self.own_scaling or RopeScaling("none", 1)).factor
        count = f"{len(shares)} × " if len(shares) > 1 else ""
        say(f"starting {count}{engine.label} for {window:,} tokens, g = {g:g}; its log: {home / engine.name}.log")
        key = new_key()
        try:
            for number, gpus in enumerate(shares, 1):
                log = home / (f"{engine.name}.log" if number == 1 else f"{engine.name}-{number}.log")
                self._servers.append(Server(engine, command, key, log, gpus))
            wait_until_ready(self._servers, self.engine.wait_s)
        except BaseException:
            self.close()
            raise
        self._scaling, self._window = scaling, window

    def close(self) -> None:
        """Stop the servers. A later prompt starts them again."""
        if self._served is not None:
            self._served.endpoint.close()
        servers, self._served, self._servers = self._servers, None, []
        for wait in (False, True):  # all of them together
            for server in servers:
                server.stop(wait=wait)


def _key(scaling: RopeScaling | None) -> RopeScaling | None:
    """None for the checkpoint's own scaling, which a server is not told."""
    return None if scaling is None or scaling.own else scaling
