"""From a trained checkpoint to the folder that ships in the wheel: bfloat16 weights, tokenizer, what was held out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from e2bench.errors import DataError
from e2bench.files import read_json, write_json
from e2bench.train.callbacks import CONFIG_NAME
from e2bench.train.miniature.tokenizer import name_plain_class
from e2bench.train.weights import store_as

MODEL = ("model.safetensors", "config.json", "generation_config.json")
COPIED = (*MODEL, "tokenizer.json", "tokenizer_config.json", CONFIG_NAME)


def embed_model(checkpoint: Path, manifest: Path, out: Path) -> None:
    """Write `out` from a finished training folder; `manifest` is the corpus's `corpus.json`."""
    if not (checkpoint / CONFIG_NAME).exists():
        raise DataError(f"{checkpoint} holds no finished training; run its training step first")
    out.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copy(checkpoint / name, out / name)
    store_as(out, torch.bfloat16)
    write_json(out / "config.json", {**read_json(out / "config.json"), "use_cache": True})
    name_plain_class(out / "tokenizer_config.json")
    for path in out.iterdir():
        path.chmod(0o644)
    held_out = json.loads(manifest.read_text(encoding="utf-8"))["held_out"]
    (out / "held_out.json").write_text(json.dumps(held_out, indent=1) + "\n", encoding="utf-8")
