"""The scoring pass through torch.compile: fewer, larger kernels, where a small model is bound by launching them.

The compiled pass is tried at loading against the plain one. Whatever fails, there or later at another shape (no
compiler, no Triton, code that cannot be traced), the plain pass is used from then on: other speed, the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch

from e2bench.models.body import Body
from e2bench.models.findings import NOTE, OK, find
from e2bench.models.memory import is_exhausted
from e2bench.models.probe import TOKENS, probe_ids, rounding
from e2bench.terminal import say

BACKEND = "inductor"


class CompiledBody:
    """A model's body, each layer compiled; at the first failure, and from then on, the body as it is.

    The layers have one code, which is compiled once, for inputs of any shape: a whole body takes minutes.
    """

    def __init__(self, body: Any) -> None:
        self.body, self.failure = body, ""
        self._compiled: Any = None

    def __call__(self, **inputs: Any) -> Any:
        """The body's output."""
        if not self.failure:
            try:
                if self._compiled is None:
                    from accelerate.utils import compile_regions

                    self._compiled = compile_regions(self.body, dynamic=True, backend=BACKEND)
                return self._compiled(**inputs)
            except Exception as error:  # compilers raise many kinds
                if is_exhausted(error):
                    raise
                self.failure = " ".join(str(error).split())[:160] or type(error).__name__
                say(f"--compile: the pass cannot be compiled and runs as it is ({self.failure})")
        return self.body(**inputs)


@torch.inference_mode()
def compile_pass(model: Body) -> None:
    """Set `model.compiled` if a compiled pass gives the plain one's logits; the finding says what came of it."""
    if not model.one_pass:
        find("compile", NOTE, f"not compiled: {model.scoring}")
        return
    ids = probe_ids(model, TOKENS).expand(2, -1)
    want = model.head(model.hidden(ids))
    model.compiled = CompiledBody(model.hf.base_model)
    found = model.head(model.hidden(ids))
    limit = 1e-4 if model.dtype.itemsize >= 4 else rounding(model)
    difference = float((found - want).norm() / want.norm())
    if model.compiled.failure:
        find("compile", NOTE, f"not compiled: {model.compiled.failure}", "other speed, the same numbers")
    elif not difference <= limit:
        find("compile", NOTE, f"not compiled: the compiled pass gives other logits (by {difference:.1g})")
    else:
        find("compile", OK, f"the scoring pass is compiled; its logits are the plain pass's (to {difference:.1g})")
        return
    model.compiled = None
