"""Packages that only some commands need: checked before anything is loaded, named with the extra that brings them."""

from __future__ import annotations

import importlib.util

from e2bench.errors import E2BenchError


def require(package: str, extra: str, purpose: str) -> None:
    """Raises E2BenchError, one line, where `package` (its import name) is not installed."""
    if importlib.util.find_spec(package) is None:
        raise E2BenchError(f"{purpose} needs the package {package}, which is missing: pip install 'e2bench[{extra}]'")
