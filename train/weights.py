"""Stored weights in another precision: a training keeps float32 weights, the model that it gives does not need them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from e2bench.files import read_json, write_json

INDEX = "model.safetensors.index.json"


def store_as(folder: Path, dtype: torch.dtype) -> None:
    """Convert the float32 tensors of a checkpoint folder to `dtype`, file by file, and let its config say so.

    Adapters too: in bfloat16 they take half the space, and a base that is evaluated in it rounds more than they do.
    Holds one file's converted tensors in memory.
    """
    for path in sorted(folder.glob("adapter_model*.safetensors")):
        _convert(path, dtype)
    total = 0
    for path in sorted(folder.glob("model*.safetensors")):
        total += _convert(path, dtype)
    if total:
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", {**config, "dtype": str(dtype).removeprefix("torch.")})
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        write_json(folder / INDEX, {**index, "metadata": {**index.get("metadata", {}), "total_size": total}})


def _convert(path: Path, dtype: torch.dtype) -> int:
    """Write one file anew; returns the bytes of its tensors."""
    tensors, metadata = _converted(path, dtype)
    beside = path.with_name(f".{path.name}.tmp")
    save_file(tensors, beside, metadata=metadata)
    beside.replace(path)
    return sum(tensor.nbytes for tensor in tensors.values())


def _converted(path: Path, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        tensors = {}
        for name in file.keys():  # noqa: SIM118  # no mapping: it has no __iter__
            tensor = file.get_tensor(name)
            tensors[name] = tensor.to(dtype) if tensor.dtype == torch.float32 else tensor
        return tensors, file.metadata() or {"format": "pt"}
