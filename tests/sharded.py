"""`torchrun sharded.py train …`: e2bench with FSDP on CPUs, over gloo.

torch and accelerate can shard there as on GPUs, but accelerate's state turns it on for GPUs alone. This turns it on;
everything else is what runs on GPUs: accelerate's `fully_shard` calls, Trainer's checkpoints.
"""

import os
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from e2bench.cli import main
from e2bench.train import finetune
from e2bench.train.loading import load_model
from e2bench.train.recipe import Recipe

made = AcceleratorState.__init__


def sharded(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def one_reads(recipe: Recipe) -> Any:
    """The model, after a look at who has read its weights: one process, not every one."""
    model = load_model(recipe)
    weights = load_file(Path(recipe.base) / "model.safetensors")
    read = all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert read == (os.environ["RANK"] == "0"), f"process {os.environ['RANK']} has read the weights: {read}"
    return model


if __name__ == "__main__":
    finetune.load_model = one_reads
    AcceleratorState.__init__ = sharded  # type: ignore[method-assign]
    finetune.check_sharding = lambda recipe: None
    main()
