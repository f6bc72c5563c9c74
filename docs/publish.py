"""What `mkdocs build` does besides the docs (mkdocs.yml): the pages of the committed runs, whole, below reports/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2bench.reporting import write_report

ROOT = Path(__file__).parents[1]
REPORTS = {"smollm2": ["results/smollm2", "results/smollm2-e2"], "tiny": ["results/tiny"]}
_commands: list[str] = []


def on_startup(command: str, **_: Any) -> None:
    """Remember whether the site is built or served."""
    _commands.append(command)


def on_post_build(config: Mapping[str, Any], **_: Any) -> None:
    """Write the pages, half a minute's work, unless the docs are served to somebody who writes them."""
    if _commands[-1:] != ["serve"]:
        for name, folders in REPORTS.items():
            write_report([ROOT / folder for folder in folders], Path(config["site_dir"]) / "reports" / name)
