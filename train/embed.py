"""From a trained checkpoint to the folder that ships in the wheel: bfloat16 weights, tokenizer, what was held out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from e2bench.errors import DataError
from e2bench.train.callbacks import CONFIG_NAME
from e2bench.train.tokenizer import name_plain_class

COPIED = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", CONFIG_NAME)


def embed_model(checkpoint: Path, manifest: Path, out: Path) -> None:
    """Write `out` from a finished training folder; `manifest` is the corpus's `corpus.json`."""
    if not (checkpoint / CONFIG_NAME).exists():
        raise DataError(f"{checkpoint} holds no finished training; run its training step first")
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(
        json.dumps({**config, "dtype": "bfloat16", "use_cache": True}, indent=1) + "\n", encoding="utf-8"
    )
    for name in COPIED:
        shutil.copy(checkpoint / name, out / name)
    name_plain_class(out / "tokenizer_config.json")
    for path in out.iterdir():
        path.chmod(0o644)
    held_out = json.loads(manifest.read_text(encoding="utf-8"))["held_out"]
    (out / "held_out.json").write_text(json.dumps(held_out, indent=1) + "\n", encoding="utf-8")
