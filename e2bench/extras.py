"""Packages that only some commands need: checked before anything is loaded, named with the extra that brings them."""

from __future__ import annotations

import importlib.util

from e2bench.errors import E2BenchError


def is_installed(package: str) -> bool:
    """Whether a package, by its import name, is there."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the whole of which it is a part
        return False


def require(package: str, extra: str, purpose: str) -> None:
    """Raises E2BenchError, one line, where `package` (its import name) is not installed."""
    if not is_installed(package):
        raise E2BenchError(f"{purpose} needs the package {package}, which is missing: pip install 'e2bench[{extra}]'")
