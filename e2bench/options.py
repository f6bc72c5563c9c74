"""The options that every experiment shares, declared once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

MODEL = "Model, scale and machine"
RUN = "The run"


def _option(
    default: Any, *names: str, help: str, panel: str = MODEL
) -> Any:  # a dataclass field that carries its option
    return field(default=default, metadata={"option": typer.Option(*names, help=help, rich_help_panel=panel)})


@dataclass(frozen=True)
class Common:
    """Values of the shared options, as given."""

    model: str | None = _option(
        None,
        "--model",
        "-m",
        help="Hub id, folder, .gguf file, adapter folder, preset or http(s)://HOST/v1. Default: the embedded model.",
    )
    scale: str | None = _option(
        None, "--scale", help="g: a number, a list (ppl), auto or per-input. Default: the checkpoint's own, else auto."
    )
    method: str | None = _option(None, "--method", help="linear (PI, E²), ntk, dynamic, yarn or none.")
    window: str | None = _option(None, "--window", help="Tokens of input and answer together. Default: g·L.")
    native_window: str | None = _option(None, "--native-window", help="L, where the config does not tell it right.")
    dtype: str = _option("auto", "--dtype", help="float32, bfloat16, float16 or auto (float32 on a CPU).")
    device: str = _option("auto", "--device", help="cpu, cuda, cuda:N or auto.")
    device_map: str | None = _option(None, "--device-map", help="auto spreads a large model over the GPUs.")
    attn: str = _option("sdpa", "--attn", help="Attention: sdpa, eager, flash_attention_2, …")
    revision: str | None = _option(None, "--revision", help="Commit, tag or branch of a hub id.")
    tokenizer: str | None = _option(None, "--tokenizer", help="Where the model has none, or is served.")
    served_model_name: str | None = _option(None, "--served-model", help="The model's name at an http(s) endpoint.")
    served_api: str | None = _option(
        None, "--served-api", help="Of the endpoint: completions or chat. Default: the preset's, else completions."
    )
    concurrency: int = _option(8, "--concurrency", help="Requests in flight to a served model.")
    trust_remote_code: bool = _option(False, "--trust-remote-code", help="Run Python code that a checkpoint brings.")
    allow_pickle: bool = _option(False, "--allow-pickle", help="Read pickled weights (tensors alone).")
    batch_size: str = _option("auto", "--batch-size", help="auto or a number; 1 in float32 is the reference mode.")
    out: Path | None = _option(None, "--out", "-o", help="The run's folder. Default: below results/.", panel=RUN)
    seed: int = _option(0, "--seed", help="Of every random choice.", panel=RUN)
    resume: bool = _option(
        False, "--resume", help="Insist on a run to continue (what is there is always used).", panel=RUN
    )
    fresh: bool = _option(False, "--fresh", help="Drop what an earlier run left in the folder.", panel=RUN)


def with_common(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `(common, *, own options)` the shared options as its own; typer reads them from the signature."""
    hints = get_type_hints(Common)
    shared = [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=f.default,
            annotation=Annotated[hints[f.name], f.metadata["option"]],
        )
        for f in fields(Common)
        if f.default is not MISSING
    ]
    own = [p for name, p in inspect.signature(command, eval_str=True).parameters.items() if name != "common"]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        common = Common(**{f.name: values.pop(f.name) for f in fields(Common)})
        command(common, **values)

    wrapper.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in [*own, *shared]}
    return wrapper
