"""What run.json says of a run: settings, versions, commit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import e2bench
from e2bench.runs.lines import FORMAT

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "peft", "lm-eval", "jieba", "numpy")


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """Versions of what decides numbers, and the commit of the checkout this code runs from, if any."""
    versions = {"e2bench": e2bench.__version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = _git("rev-parse", "HEAD")
    return {"versions": versions, "commit": commit, "dirty": bool(_git("status", "--porcelain")) if commit else None}


def _git(*arguments: str) -> str | None:
    root = Path(e2bench.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def manifest(
    experiment: str, *, settings: Mapping[str, Any], resolved: Mapping[str, Any], **rest: Any
) -> dict[str, Any]:
    """The contents of run.json but for its times."""
    head = {"format": FORMAT, "experiment": experiment, "settings": dict(settings), "resolved": dict(resolved)}
    return {**head, **rest, **environment()}


def shareable(value: Path | str) -> str:
    """A path as others may read it: below the current folder relative, the user's home as `~`; other text as it is."""
    path = Path(value)
    for folder, shown in ((Path.cwd(), Path()), (Path.home(), Path("~"))):
        if path.is_absolute() and path != folder and path.is_relative_to(folder) and folder != Path("/"):
            return str(shown / path.relative_to(folder))
    return str(value)
