"""A plain Hugging Face checkpoint with its RoPE scale in the config, for any server or library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from e2bench.errors import E2BenchError, RunFolderError
from e2bench.files import disk_errors, read_json, write_atomic, write_json
from e2bench.models.local import Model
from e2bench.rope.config import SCALED_LAYERS, rope_config, text_config
from e2bench.rope.methods import ROWS, RopeScaling
from e2bench.rope.windows import short_length, short_number

MARK = "e2bench_export.json"


def scaled_parameters(parameters: dict[str, Any], scaling: RopeScaling, native: int) -> dict[str, Any]:
    """`rope_parameters` for a scaling: theta and what else describes the rotation kept, the type and factor replaced.

    Raises E2BenchError for a method whose frequencies transformers cannot read from a config the same way.
    """
    kept = {k: v for k, v in parameters.items() if k in ("rope_theta", "partial_rotary_factor")}
    if scaling.method == "none" or (scaling.factor == 1 and scaling.row.plain_at_one):
        return {**kept, "rope_type": "default"}
    if not scaling.row.in_config or scaling.row.own:
        takes = [row.name for row in ROWS if row.in_config and not row.own and row.name != "none"]
        raise E2BenchError(
            f"method {scaling.method!r} has no fixed form in a config; export takes {', '.join(takes)} or none"
        )
    return {**kept, **scaling.row.parameters(scaling.factor, native)}


def set_scaling(config: Any, scaling: RopeScaling, native: int) -> None:
    """Write a scaling into a config in place.

    `max_position_embeddings` stays L for a linear factor: vLLM multiplies it by the factor, and so do we
    (`native_window`), so that the window is g·L everywhere. YaRN's is L as well, and named once more in its parameters.
    """
    text = text_config(config)
    new = scaled_parameters(rope_config(config), scaling, native)
    all_parameters = text.rope_parameters
    per_layer = any(isinstance(value, dict) for value in all_parameters.values())
    text.rope_parameters = {**all_parameters, SCALED_LAYERS: new} if per_layer else new
    text.max_position_embeddings = native


def export(model: Model, scaling: RopeScaling | None, out: Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write config, weights (safetensors), tokenizer and a card into `out`. The model is used up: its config changes.

    scaling: None keeps the checkpoint's own. A `.gguf` is written with its weights unpacked, an adapter merged.
    dtype: of the written weights; None as loaded.
    Raises RunFolderError for a folder that holds something else than an earlier export.
    """
    check_target(out)
    hf, native = model.hf, model.native_window
    if scaling is not None:
        set_scaling(hf.config, scaling, native)
    if hasattr(hf.config, "quantization_config"):  # of a GGUF file: what is written is unpacked
        del hf.config.quantization_config
    if dtype is not None:
        hf = hf.to(dtype)
    in_force = scaling or model.own_scaling or RopeScaling("none")
    window = int(in_force.factor * native)
    hf.config.use_cache = True
    facts = {"source": model.name, "method": in_force.method, "scale": short_number(in_force.factor)}
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / MARK, {**facts, "native_window": native, "window": window})
        hf.save_pretrained(out)
        model.tokenizer.model_max_length = window
        model.tokenizer.save_pretrained(out)
        write_atomic(out / "README.md", _card(model, in_force, window))
    return out


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
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        raise RunFolderError(f"{out} holds something else than an export; give a new folder with --out")


def _card(model: Model, scaling: RopeScaling, window: int) -> str:
    name, native, g = model.name, model.native_window, short_number(scaling.factor)
    kind, dtype = model.config.model_type, str(model.dtype).removeprefix("torch.")
    how = "no scaling" if g == 1 else f"RoPE scaling `{scaling.method}`, factor {g}"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# {name} at {short_length(window)} tokens

The weights of `{name}` ({kind}, {dtype}) with the window extended from {native:,} to {window:,} tokens by {how}.
The weights are unchanged; only the config says how positions are rotated.

`max_position_embeddings` is {native:,}, the window of pretraining. vLLM multiplies it by the factor:

    vllm serve . --max-model-len {window}

transformers needs no option. A checkpoint that was fine-tuned as E²-LLM describes (arXiv 2401.06951) serves any window:
write another `factor` into `rope_parameters` of config.json.

Made by `e2bench export`. The licence is that of the original weights.
"""
