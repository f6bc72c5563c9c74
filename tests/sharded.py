"""`torchrun sharded.py train …`: e2bench with FSDP on CPUs, over gloo.

torch and accelerate can shard there as on GPUs, but accelerate's state turns it on for GPUs alone. This turns it on;
everything else is what runs on GPUs: accelerate's `fully_shard` calls, Trainer's checkpoints.
"""

from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from e2bench.cli import main
from e2bench.train import finetune

made = AcceleratorState.__init__


def sharded(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = sharded  # type: ignore[method-assign]
    finetune.check_sharding = lambda recipe: None
    main()
