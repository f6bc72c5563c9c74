"""A plain Hugging Face checkpoint with its RoPE scale in the config, for any server or library."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from e2bench.errors import E2BenchError, ModelError, RunFolderError
from e2bench.files import disk_errors, read_json, write_atomic, write_json
from e2bench.models.findings import NOTE, OK, find
from e2bench.models.local import Model
from e2bench.models.probe import TOKENS, probe_ids
from e2bench.models.scaled_config import set_scaling
from e2bench.models.tokenizers import PROBES
from e2bench.models.windows_check import EXPORTED
from e2bench.rope.config import rope_config
from e2bench.rope.methods import RopeScaling
from e2bench.rope.own import fixed_angles
from e2bench.rope.windows import short_length, short_number


def export(model: Model, scaling: RopeScaling | None, out: Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write config, weights (safetensors), tokenizer and a card into `out`. The model is used up: its config changes.

    scaling: None keeps the checkpoint's own. A `.gguf` is written with its weights unpacked, an adapter merged.
    dtype: of the written weights; None as loaded.
    Raises RunFolderError for a folder that holds something else than an earlier export.
    """
    check_target(out)
    in_force = scaling or model.own_scaling or RopeScaling("none")
    window = int(in_force.factor * model.native_window)
    ids = probe_ids(model, TOKENS)
    with torch.inference_mode(), model.under(scaling, TOKENS):
        want = model.head(model.hidden(ids)).cpu()
    beside = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        with disk_errors(out):
            beside.mkdir(parents=True)
            _write(model, scaling, in_force, window, beside, dtype)
        _check_written(model, beside, ids, want)
        _move_into_place(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return out


def _write(
    model: Model, scaling: RopeScaling | None, in_force: RopeScaling, window: int, folder: Path, dtype: Any
) -> None:
    hf = model.hf
    try:
        if scaling is not None:
            set_scaling(hf.config, scaling, model.native_window)
        if hasattr(hf.config, "quantization_config"):  # of a GGUF file: what is written is unpacked
            del hf.config.quantization_config
        if dtype is not None:
            hf = hf.to(dtype)
        hf.config.use_cache = True
        facts = {"source": model.name, "method": in_force.method, "scale": short_number(in_force.factor)}
        write_json(folder / EXPORTED, {**facts, "native_window": model.native_window, "window": window})
        hf.save_pretrained(folder)
    except (OSError, E2BenchError):
        raise
    except Exception as error:  # a config class that takes no such scaling (Phi-3) says so in its own way
        raise ModelError(
            f"{model.name}: transformers writes no such config: {' '.join(str(error).split())[:200]}"
        ) from None
    model.tokenizer.model_max_length = window
    model.tokenizer.save_pretrained(folder)
    write_atomic(folder / "README.md", _card(model, in_force, window))


@torch.inference_mode()
def _check_written(model: Model, folder: Path, ids: torch.Tensor, want: torch.Tensor) -> None:
    """Load what was written and compare logits and ids. Raises ModelError where they are others."""
    size = sum(p.numel() * p.element_size() for p in model.hf.parameters())
    if size > 0.8 * model.free_bytes():
        find("export", NOTE, f"a second copy ({size / 2**30:.1f} GiB) does not fit: the config only was compared")
        return
    again: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    again = again.to(model.device).eval()
    found = again(input_ids=ids).logits.float().cpu()
    tolerance = 1e-3 if again.dtype.itemsize >= 4 and model.dtype.itemsize >= 4 else 5e-2
    if not bool((found - want).norm() <= tolerance * want.norm()):
        raise ModelError(
            f"{model.name}: the exported checkpoint gives other logits than the model here, so nothing was written; "
            "its config cannot carry this scaling"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in PROBES:
        if tokenizer(text)["input_ids"] != model.tokenizer(text)["input_ids"]:
            raise ModelError(
                f"{model.name}: the exported tokenizer gives other ids for {text[:24]!r}, so nothing was written"
            )
    find("export", OK, "loaded again, it gives the logits and ids of the model here")


def _move_into_place(made: Path, out: Path) -> None:
    """One whole folder for another: an interrupted export never leaves one's config over another's weights."""
    with disk_errors(out):
        old = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
        if out.exists():
            out.rename(old)
        made.rename(out)
        shutil.rmtree(old, ignore_errors=True)


def stored_dtype(path: str) -> torch.dtype | None:
    """In which dtype a checkpoint keeps its weights; None where its config does not say, as for a `.gguf` file."""
    config = Path(path) / "config.json"
    if not config.is_file():
        return None
    stored = read_json(config)
    found = getattr(torch, str(stored.get("dtype") or stored.get("torch_dtype")), None)
    return found if isinstance(found, torch.dtype) else None


def check_target(out: Path) -> None:
    """Refuse a file, or a folder that we did not write."""
    if out.is_file():
        raise RunFolderError(f"{out} is a file; give a new folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / EXPORTED).exists():
        raise RunFolderError(f"{out} holds something else than an export; give a new folder with --out")


_LINEAR = """`max_position_embeddings` is {native:,}, the window of pretraining. vLLM multiplies it by the factor:

    vllm serve . --max-model-len {window}

transformers needs no option. A checkpoint that was fine-tuned as E²-LLM describes (arXiv 2401.06951) serves any window:
write another `factor` into `rope_parameters` of config.json.
"""
_TABLE = """The rotation is that of a base with a RoPE scaling of its own, whose angles are divided by the factor. The
config says so as `longrope`, with one list of divisors for inputs of every length; `max_position_embeddings` is
{window:,}:

    vllm serve . --max-model-len {window}

transformers needs no option; it warns of `short_mscale` and `long_mscale`, which only engines read.
For another window export the tuned checkpoint again with another `--scale`.
"""


def _card(model: Model, scaling: RopeScaling, window: int) -> str:
    name, native, g = model.name, model.native_window, short_number(scaling.factor)
    kind, dtype = model.config.model_type, str(model.dtype).removeprefix("torch.")
    how = "no scaling" if g == 1 else f"RoPE scaling `{scaling.method}`, factor {g}"
    serving = _TABLE if fixed_angles(rope_config(model.hf.config)) else _LINEAR
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# {name} at {short_length(window)} tokens

The weights of `{name}` ({kind}, {dtype}) with the window extended from {native:,} to {window:,} tokens by {how}.
The weights are unchanged; only the config says how positions are rotated.

{serving.format(native=native, window=window)}
Made by `e2bench export`. The licence is that of the original weights.
"""
