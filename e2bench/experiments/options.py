"""The settings that every experiment shares: the model, its scale, the machine, the run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from e2bench.errors import E2BenchError
from e2bench.models.names import ATTENTIONS, DTYPES, ENGINES
from e2bench.rope.methods import METHODS, parse_method
from e2bench.rope.windows import Scale, parse_length, parse_scale
from e2bench.settings import Settings, setting

MODEL = "Model, scale and machine"
ENGINE = "A server that e2bench starts"
RUN = "The run"
TRACKERS = ("tensorboard", "wandb")  # also the names of their folders in a run's
APIS = ("completions", "chat")
LOCAL = "local"
IN_FLIGHT = 32  # requests to each server that e2bench starts, where --concurrency is not given; engines queue the rest
OF_AN_ENGINE = (
    "engine",
    "engine_command",
    "engine_servers",
    "engine_options",
    "engine_wait",
    "tensor_parallel",
    "pipeline_parallel",
)
# Of what answers with texts only.
OF_A_SERVER = ("served_model_name", "served_api", "concurrency", "insecure", *OF_AN_ENGINE)
# Of commands that make no run.
SCALING = ("scale", "method", "window")
SERVED = (
    "model", "native_window", "dtype", "revision", "trust_remote_code", "engine", "engine_options", "tensor_parallel",
    "pipeline_parallel",
)  # fmt: skip
WEIGHTS = (
    "model", "native_window", "dtype", "device", "device_map", "revision", "tokenizer", "trust_remote_code",
    "allow_pickle",
)  # fmt: skip
# What a loaded model keeps; the rest can change from run to run.
OF_A_MODEL = (
    "model",
    "dtype",
    "device",
    "device_map",
    "attn",
    "revision",
    "tokenizer",
    "native_window",
    "served_model_name",
    "served_api",
    "concurrency",
    "trust_remote_code",
    "allow_pickle",
    "batch_invariant",
    *OF_AN_ENGINE,
)


def parse_batch_size(text: str) -> int | None:
    """A number of at least 1, None for `auto`. Raises E2BenchError for anything else."""
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise E2BenchError(f"batch size {text!r} is not possible; give auto or a number of at least 1")
    return int(text)


@dataclass(frozen=True)
class Common(Settings):
    """The shared settings, typed. Lengths and windows are in tokens; None: not given."""

    model: str | None = setting(
        None,
        "Hub id, folder, .gguf file, adapter folder, preset or http(s)://HOST/v1. Default: the embedded model.",
        flags=("--model", "-m"),
        panel=MODEL,
    )
    scale: Scale | None = setting(
        None,
        "g: a number, a list (ppl), auto or per-input. Default: the checkpoint's own, else auto.",
        parse=parse_scale,
        panel=MODEL,
    )
    method: str | None = setting(
        None,
        "linear (PI, E²), ntk, dynamic, yarn, dynamic-yarn, longrope or none.",
        parse=parse_method,
        choices=METHODS,
        panel=MODEL,
    )
    factors: Path | None = setting(
        None, "LongRoPE's factors: a JSON file, or a checkpoint that has some; with --method longrope.", panel=MODEL
    )
    window: int | None = setting(
        None, "Tokens of input and answer together. Default: g·L.", parse=parse_length, panel=MODEL
    )
    native_window: int | None = setting(
        None, "L, where the config does not tell it right.", parse=parse_length, panel=MODEL
    )
    dtype: str = setting("auto", "float32, bfloat16, float16 or auto (float32 on a CPU).", choices=DTYPES, panel=MODEL)
    device: str = setting("auto", "cpu, cuda, cuda:N or auto.", panel=MODEL)
    device_map: str | None = setting(None, "auto spreads a large model over the GPUs.", panel=MODEL)
    attn: str = setting("sdpa", "Attention: sdpa, eager, flash_attention_2, …", choices=ATTENTIONS, panel=MODEL)
    revision: str | None = setting(None, "Commit, tag or branch of a hub id.", panel=MODEL)
    tokenizer: str | None = setting(None, "Where the model has none, or is served.", panel=MODEL)
    served_model_name: str | None = setting(
        None, "The model's name at an http(s) endpoint.", flags=("--served-model",), panel=MODEL
    )
    served_api: str | None = setting(
        None,
        "Of the endpoint: completions or chat. Default: the preset's, else completions.",
        choices=APIS,
        panel=MODEL,
    )
    concurrency: int = setting(8, "Requests in flight to a served model.", minimum=1, panel=MODEL)
    insecure: bool = setting(
        False, "Send a key over plain http to other machines too.", flags=("--insecure",), panel=MODEL
    )
    trust_remote_code: bool = setting(
        False, "Run Python code that a checkpoint brings.", flags=("--trust-remote-code",), panel=MODEL
    )
    allow_pickle: bool = setting(False, "Read pickled weights (tensors alone).", flags=("--allow-pickle",), panel=MODEL)
    compile: bool = setting(
        False, "Compile the scoring pass: for small models on a GPU.", flags=("--compile",), panel=MODEL
    )
    batch_invariant: bool = setting(
        False,
        "The same bits whatever is answered or scored beside an item; slower.",
        flags=("--batch-invariant",),
        panel=MODEL,
    )
    engine: str = setting(
        LOCAL,
        "local, or vllm or sglang: started for the run, used, stopped. For what needs answers only.",
        choices=(LOCAL, *ENGINES),
        panel=ENGINE,
    )
    engine_command: str | None = setting(
        None, "Executable in another environment: its vllm, or its python for sglang.", panel=ENGINE
    )
    engine_servers: int = setting(1, "Servers on this machine, which share its GPUs out.", minimum=1, panel=ENGINE)
    engine_options: str | None = setting(
        None, "More of the engine's own options, in one text: '--gpu-memory-utilization 0.8'.", panel=ENGINE
    )
    engine_wait: int = setting(1800, "Seconds that a start may take.", minimum=1, panel=ENGINE)
    tensor_parallel: int = setting(1, "GPUs of a server that share every layer.", minimum=1, panel=ENGINE)
    pipeline_parallel: int = setting(
        1, "Groups of GPUs of a server that share the layers out.", minimum=1, panel=ENGINE
    )
    batch_size: int | None = setting(
        "auto", "auto or a number; 1 in float32 is the reference mode.", parse=parse_batch_size, panel=MODEL
    )
    out: Path | None = setting(None, "The run's folder. Default: below results/.", flags=("--out", "-o"), panel=RUN)
    log: str | None = setting(
        None, "Also give the scores to tensorboard (below the run's folder) or wandb.", choices=TRACKERS, panel=RUN
    )
    seed: int = setting(0, "Of every random choice.", panel=RUN)
    resume: bool = setting(
        False, "Insist on a run to continue (what is there is always used).", flags=("--resume",), panel=RUN
    )
    fresh: bool = setting(False, "Drop what an earlier run left in the folder.", flags=("--fresh",), panel=RUN)
    dry_run: bool = setting(
        False,
        "Print inputs, tokens, hours and memory of the work, and stop; no weights are read.",
        flags=("--dry-run",),
        panel=RUN,
    )

    @property
    def is_served(self) -> bool:
        """Whether `model` is an endpoint."""
        return (self.model or "").startswith(("http://", "https://"))

    @property
    def has_engine(self) -> bool:
        """Whether a server is to be started for `model`."""
        return self.engine != LOCAL


SHARED = tuple(Common.named())
