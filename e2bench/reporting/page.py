"""`index.html`: the page. Needs no network and opens from disk, its pictures and samples in files beside it.

Two walls stand between a model's output and the reader's browser: Jinja2 escapes every value, and the samples are JSON
that the page's one script writes through textContent alone. A third, the content security policy, lets nothing run but
that script, known by its hash, and the files of samples that it loads.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from e2bench import __version__
from e2bench.reporting import labels
from e2bench.reporting.claims import UNMEASURED, VERDICTS
from e2bench.reporting.figures import Figure
from e2bench.reporting.runs import Results, Run, number
from e2bench.reporting.samples import Summary, to_json
from e2bench.reporting.settings import Settings
from e2bench.reporting.table import Column, Row, Table
from e2bench.runs.manifest import now

CLAIMS = "claims"  # the table of this name stands first, in a part of its own


@dataclass(frozen=True)
class Content:
    """What a report shows, but for the samples. details: what stands behind the tables; runs: of `overview`."""

    tables: Sequence[Table]
    details: Sequence[Table]
    figures: Sequence[Figure]
    runs: Sequence[dict[str, Any]]
    settings: Sequence[Settings]

    @property
    def claims(self) -> Table | None:
        """The claims that were measured, where there are any."""
        table = self._claims
        return table and replace(table, rows=[row for row in table.rows if row["verdict"] != UNMEASURED])

    @property
    def unmeasured(self) -> list[Row]:
        """The other claims."""
        return [row for row in (self._claims.rows if self._claims else ()) if row["verdict"] == UNMEASURED]

    @property
    def verdicts(self) -> list[tuple[str, int]]:
        """Verdict: how many rows of the claims have it."""
        found = Counter(row["verdict"] for row in (self._claims.rows if self._claims else ()))
        return [(verdict, found[verdict]) for verdict in VERDICTS if found[verdict]]

    @property
    def _claims(self) -> Table | None:
        return next((table for table in self.tables if table.name == CLAIMS), None)

    @property
    def results(self) -> list[Table]:
        """The tables that are none of claims."""
        return [table for table in self.tables if table.name != CLAIMS]


def sections(content: Content) -> tuple[Markup, Markup, Markup]:
    """The claims, the parts before and behind the samples. What a damaged run holds breaks here, if anywhere."""
    made = (
        _environment()
        .get_template("sections.html")
        .render(content=content, number=number, layout=_layout, key_of=_key_of, breakable=_breakable, size=_size)
    )
    claims, _, rest = made.partition("<!-- claims -->")
    before, _, behind = rest.partition("<!-- overview -->")
    return Markup(claims), Markup(before), Markup(behind)


def render(
    content: Content,
    parts: tuple[Markup, Markup, Markup],
    samples: Summary,
    files: Mapping[str, str],
    warnings: Sequence[str],
    *,
    live: bool,
) -> str:
    """The page around its `sections`. files: of samples, that the page holds itself; live: it asks for a newer one."""
    style, script = _template("page.css"), "\n".join(map(_template, ("page.js", "samples.js")))
    return (
        _environment()
        .get_template("page.html")
        .render(
            policy=_policy(style, script),
            style=Markup(style),
            script=Markup(script),
            version=__version__,
            written=now()[:16].replace("T", " "),
            warnings=warnings,
            content=content,
            claims=parts[0],
            sections=parts[1],
            overview=parts[2],
            samples=samples,
            live=live,
            data=_data({"live": live, "runs": samples.runs}, files),
        )
    )


def _data(head: dict[str, Any], files: Mapping[str, str]) -> Markup:
    """What the script reads: the head, and the files, which are JSON that may stand in a page already."""
    held = ",".join(f"{to_json(key)}:{text}" for key, text in files.items())
    return Markup(f'{to_json(head)[:-1]},"files":{{{held}}}}}')


def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# Columns that stand in the cell of another one, the first of these that the table has: run and data in small print.
_HOSTS = {"run": ("model",), "data": ("model", "method"), "verdict": ("claim",)}


_LONG_HEADING = 8  # characters: MuSiQue stays whole


def _layout(table: Table) -> tuple[list[Column], dict[str, list[str]], list[str]]:
    """Columns with a place of their own; for each of them by key the columns that stand in its cells; the notes."""
    there = {column.key for column in table.shown}
    hosts = {key: next((host for host in _HOSTS[key] if host in there), "") for key in _HOSTS if key in there}
    columns = [column for column in table.shown if not hosts.get(column.key)]
    notes = list(table.notes)
    if hosts.get("data") == "method":  # of Tables 4 and 5: long, and often the same in every row
        measured = {row["data"] for row in table.rows if row.get("data")}
        if len(measured) == 1:
            notes += [f"All measured rows: {measured.pop()}."]
            del hosts["data"]
    return columns, {column.key: [key for key in hosts if hosts[key] == column.key] for column in columns}, notes


def _key_of(columns: Sequence[Column]) -> str:
    """The column that stays in sight when a wide table is moved: what names the row."""
    keys = [column.key for column in columns]
    return next((key for key in ("claim", "model", "method") if key in keys), keys[0] if keys else "")


def _breakable(heading: str) -> Markup:
    """A long heading that may be broken where a word begins in it: 2Wiki Multihop QA."""
    words = re.split(r"(?<=[a-z])(?=[A-Z])", heading) if len(heading) > _LONG_HEADING else [heading]
    return Markup("<wbr>").join(words)


def _size(figure: Figure) -> Markup:
    """Width and height of the picture, so that the page does not jump when it is loaded."""
    width, height = struct.unpack(">II", figure.picture.light[16:24])  # PNG's first chunk
    return Markup(f'width="{width}" height="{height}"')


@cache
def _template(name: str) -> str:
    return (resources.files("e2bench.reporting") / "templates" / name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing from anywhere, but this style, this script, what this script loads, and pictures beside the page.

    Browsers differ in what 'self' means for a page on a disk: `file:` says it, and is nothing to a page on a server.
    """
    return (
        f"default-src 'none'; script-src {_hash(script)} 'strict-dynamic'; style-src {_hash(style)}; "
        "img-src 'self' file: data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def overview(found: Results) -> list[dict[str, Any]]:
    """A row of the list of runs for each of them."""
    return [_run(run) for run in found.runs]


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
    }


def _minutes(run: Run) -> str:
    try:
        started, ended = (datetime.fromisoformat(str(run.manifest.get(key))) for key in ("started", "ended"))
        return f"{(ended - started).total_seconds() / 60:.1f}"
    except (ValueError, TypeError):
        return ""
