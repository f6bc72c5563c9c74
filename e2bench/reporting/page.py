"""`index.html`: one page that needs no network and opens from disk.

Two walls stand between a model's output and the reader's browser: Jinja2 escapes every value, and the examples are JSON
that the page's one script writes through textContent alone. A third, the content security policy, lets nothing run but
that script, known by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from importlib import resources
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from e2bench import __version__
from e2bench.reporting import examples, labels
from e2bench.reporting.figures import Figure
from e2bench.reporting.runs import Results, Run, number
from e2bench.reporting.table import Column, Table
from e2bench.runs.manifest import now


def render(found: Results, tables: Sequence[Table], details: Sequence[Table], figures: Sequence[Figure]) -> str:
    """The page. Collects the examples first: what cannot be read of them becomes a warning on the page, too."""
    gathered = examples.collect(found)
    style, script = _template("page.css"), _template("page.js")
    environment = Environment(
        loader=DictLoader({"page.html": _template("page.html")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        version=__version__,
        written=now(),
        warnings=found.warnings,
        runs=[_run(run) for run in found.runs],
        tables=tables,
        details=details,
        figures=[(figure, _data_url(figure.png)) for figure in figures],
        examples=gathered,
        data=Markup(examples.to_json(gathered)),
        number=number,
        shown=_shown,
    )


def _shown(table: Table) -> list[Column]:
    """Run and data stand under the model, where there is one: columns of their own would make wide tables wider."""
    with_model = any(column.key == "model" for column in table.shown)
    return [column for column in table.shown if column.key not in ("run", "data") or not with_model]


def _template(name: str) -> str:
    return (resources.files("e2bench.reporting") / "templates" / name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing from anywhere, but this style, this script and embedded pictures."""
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _run(run: Run) -> dict[str, Any]:
    window = run.part("resolved").get("window")
    scales = sorted({cell.get("scale", 1) for cell in run.cells}) if run.about.cells else []
    return {
        "name": run.name,
        "experiment": run.experiment,
        "model": run.model,
        "method": labels.method(run),
        "scale": ", ".join(map(labels.scale, scales)) if scales else labels.scale(labels.run_scale(run)),
        "window": labels.tokens(window) if number(window) else "",
        "hardware": ", ".join(
            str(run.manifest[key]) for key in ("device", "dtype", "attention") if run.manifest.get(key)
        ),
        "started": str(run.manifest.get("started") or "")[:16].replace("T", " "),
        "minutes": _minutes(run),
        "data": labels.data(run),
        "complete": run.complete,
        "record": json.dumps(_record(run), ensure_ascii=False, indent=1),
    }


def _minutes(run: Run) -> str:
    try:
        started, ended = (datetime.fromisoformat(str(run.manifest.get(key))) for key in ("started", "ended"))
        return f"{(ended - started).total_seconds() / 60:.1f}"
    except (ValueError, TypeError):
        return ""


def _record(run: Run) -> Any:
    """run.json without what is long (the inverse frequencies) and without where things lay on the machine."""
    kept = {key: value for key, value in run.manifest.items() if key != "rope"}
    kept["model"] = {key: value for key, value in run.part("model").items() if key != "path"}
    kept["rope"] = {key: value for key, value in run.part("rope").items() if key != "inv_freq"}
    return _without_folders(kept)


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
        return PureWindowsPath(value).name or value
    return value
