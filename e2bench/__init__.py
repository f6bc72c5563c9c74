"""e2bench: extend the window of a rotary-position language model, and measure what that gave.

model = e2bench.load("meta-llama/Llama-2-7b-hf", dtype="bfloat16")
with model.scaled("linear", 8): losses = model.token_nll(ids)      # (B, T) ids -> (B, T - 1) nats
run = e2bench.run("ppl", model, lengths="4k..64k", scale="auto", out="results/ppl")
run.scores; run.rows()
e2bench.compare("results/a", "results/b"); e2bench.report("results", out="report")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e2bench.errors import E2BenchError
    from e2bench.library import Run, compare, load, report, run, score
    from e2bench.models.protocols import Prompt
    from e2bench.rope.methods import RopeScaling

__version__ = "0.1.0"
__all__ = ["E2BenchError", "Prompt", "RopeScaling", "Run", "compare", "load", "report", "run", "score"]

_HOMES = {"E2BenchError": "errors", "Prompt": "models.protocols", "RopeScaling": "rope.methods"}


def __getattr__(name: str) -> Any:
    """Imported when first asked for: `import e2bench` alone must stay quick."""
    if name not in __all__:
        raise AttributeError(f"module 'e2bench' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"e2bench.{_HOMES.get(name, 'library')}"), name)


def __dir__() -> list[str]:
    """What there is to use, for completion."""
    return [*__all__, "__version__"]
