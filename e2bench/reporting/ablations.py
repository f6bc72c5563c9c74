"""Tables 4 and 5, and the points of Figure 4: runs on checkpoints of `e2bench train`, by how they were tuned."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from e2bench.reporting import labels, tables
from e2bench.reporting.runs import Results, Run, number
from e2bench.reporting.selection import budget
from e2bench.reporting.table import EXACT, Column, Row, Table
from e2bench.tasks.passkey import TEMPLATES

PAPER_FACTOR = 8  # the paper evaluates its ablations at 32k with L = 4k
_IDENTITY = ("base", "method", "offset", "scale", "g_max", "native_window", "train_window", "per_sample", "steps")
_TASKS = ("EN", "ZH", "All")
RETRIEVAL = {**{f"passkey {name}": f"Passkey, {name}" for name in TEMPLATES}, "key-value": "Key-value"}


@dataclass(frozen=True)
class Measure:
    """One number measured on a checkpoint.

    name: EN, ZH, All, `passkey TEMPLATE`, key-value (0-100) or perplexity.
    """

    run: Run
    name: str
    window: int | None
    scale: float | None
    value: float

    @property
    def e2(self) -> dict[str, Any]:
        """The training settings of the checkpoint; {} where it was not trained by us."""
        return self.run.e2 or {}

    @property
    def training(self) -> tuple[str, ...]:
        """Recipe and budget, without seed and step: the measures of one row of a table."""
        return tuple(str(self.e2.get(key)) for key in _IDENTITY)

    @property
    def seed(self) -> str:
        """Of the training, as text."""
        return str(self.e2.get("seed"))

    @property
    def step(self) -> int:
        """Optimizer steps trained; 0 where unknown."""
        step = self.e2.get("step")
        return int(step) if number(step) else 0


def measures(found: Results) -> list[Measure]:
    """Every number that was measured on a checkpoint of ours, but for plain extrapolation."""
    tuned = [run for run in found.runs if run.e2 is not None and not run.manifest.get("extrapolate")]
    return [measure for run in tuned for measure in _of_run(run)]


def _of_run(run: Run) -> list[Measure]:
    if run.experiment == "longbench":
        averages = (run.scores.get("averages") or {}).get("e2") or {}
        return [Measure(run, name, None, None, averages[name]) for name in _TASKS if number(averages.get(name))]
    name, length, value, factor = {
        "ppl": ("perplexity", "window", "perplexity", 1.0),
        "passkey": (f"passkey {run.resolved.get('template')}", "length", "accuracy", 100.0),
        "attention": ("key-value", "length", "success", 100.0),
    }.get(run.experiment, ("", "", "", 0.0))
    if not name:
        return []
    return [
        Measure(run, name, int(cell[length]), cell.get("scale"), factor * cell[value])
        for cell in run.cells
        if number(cell.get(value))
    ]


def last_steps(found: Sequence[Measure]) -> list[Measure]:
    """The measures of each training's last measured checkpoint."""
    last: dict[tuple[Any, ...], int] = defaultdict(int)
    for measure in found:
        last[measure.training, measure.seed] = max(last[measure.training, measure.seed], measure.step)
    return [measure for measure in found if measure.step == last[measure.training, measure.seed]]


def table_4(found: Results) -> list[Table]:
    """E², without t, without g: the augmentations' worth."""
    final = [m for m in last_steps(measures(found)) if m.e2.get("method") == "e2"]
    ablated = {m.e2.get("g_max") for m in final if "on t" in labels.tuning(m.e2)}
    final = [m for m in final if labels.tuning(m.e2) != "E²-LLM" or not ablated or m.e2.get("g_max") in ablated]
    chosen = _comparable(final, lambda m: labels.tuning(m.e2))
    if not chosen:
        return []
    columns = [tables.SOURCE, Column("method", "Method"), *_columns(chosen)]
    title = "Table 4. Ablation on the augmentation strategies"
    notes = [tables.OTHER_MODELS, *_notes(chosen)]
    return [Table("table4", title, columns, tables.published("table4") + _rows(chosen), notes)]


def table_5(found: Results) -> list[Table]:
    """E² with both augmentations at several g_max."""
    final = [m for m in last_steps(measures(found)) if m.e2.get("method") == "e2" and labels.tuning(m.e2) == "E²-LLM"]
    chosen = _comparable(final, lambda m: str(m.e2.get("g_max")))
    if not chosen:
        return []
    columns = [tables.SOURCE, Column("method", "Method"), *_columns(chosen)]
    note = "The text of the paper holds no numbers of its Table 5 (g_max 5 to 30 on LongBench at 32k)."
    title = "Table 5. Ablation on the maximum scale g_max"
    return [Table("table5", title, columns, _rows(chosen), [note, *_notes(chosen)])]


def _comparable(final: Sequence[Measure], variant: Any) -> list[Measure]:
    """Rows of one budget (base, tokens, L): only budgets with two variants or more compare anything.

    Where no budget has two, all are kept: one row beside the paper's is better than none.
    """
    budgets: dict[tuple[str, ...], list[Measure]] = defaultdict(list)
    for measure in final:
        shared = [str(measure.e2.get(key)) for key in ("base", "native_window")]
        budgets[(*shared, str(budget(measure.e2)))].append(measure)
    several = [group for group in budgets.values() if len({variant(m) for m in group}) > 1]
    return [m for group in several or budgets.values() for m in group]


def _columns(chosen: Sequence[Measure]) -> list[Column]:
    retrieval = [Column(name, f"{label} (%)", 1, best="max") for name, label in RETRIEVAL.items() if _any(chosen, name)]
    return [
        Column("g_max", "g_max"),
        Column("steps", "Steps"),
        Column("tokens", "Tokens tuned on"),
        Column("seeds", "Seeds"),
        tables.OVER,
        *(Column(name, name, 2, best="max") for name in _TASKS),
        Column("window", "Window"),
        Column("g", "g"),
        *retrieval,
        Column("perplexity", "Perplexity", 2, best="min"),
        tables.DATA,
    ]


def _any(chosen: Iterable[Measure], name: str) -> bool:
    return any(measure.name == name for measure in chosen)


def _rows(chosen: Sequence[Measure]) -> list[Row]:
    groups: dict[tuple[str, ...], list[Measure]] = defaultdict(list)
    for measure in chosen:
        groups[measure.training].append(measure)
    ordered = sorted(groups.values(), key=lambda group: (_ablated(group[0].e2), group[0].e2.get("g_max") or 0))
    return [_row(group, window) for group in ordered for window in _windows(group)]


def _ablated(e2: dict[str, Any]) -> tuple[bool, bool]:
    """Sorts as the paper's Table 4 does: whole, without t, without g."""
    return number(e2.get("scale")), e2.get("offset") is False


def _windows(group: Sequence[Measure]) -> list[int | None]:
    """The window a row is about: 8 L as in the paper, and g·L where g is fixed in training; else the nearest found."""
    measured = sorted({measure.window for measure in group if measure.window is not None})
    if not measured:
        return [None]
    native = int(group[0].e2.get("native_window") or measured[0])
    fixed = group[0].e2.get("scale")
    targets = [PAPER_FACTOR * native, *([int(fixed * native)] if number(fixed) else [])]
    hits = [target for target in targets if target in measured]
    return [*sorted(hits)] if hits else [min(measured, key=lambda window: abs(window - targets[0]))]


def _row(group: Sequence[Measure], window: int | None) -> Row:
    e2 = group[0].e2
    row: Row = {"source": "measured", "method": labels.tuning(e2), "g_max": labels.scale(e2.get("g_max"))}
    row |= {"steps": labels.scale(e2.get("steps")), "window": labels.tokens(window) if window else "", "errors": {}}
    row["tokens"] = labels.parameters(budget(e2)) if number(e2.get("tokens")) else ""
    if number(e2.get("scale")):
        row["g_max"] = ""
    seeds: set[str] = set()
    scales: set[float] = set()
    used: list[Run] = []
    for name in (*_TASKS, *RETRIEVAL, "perplexity"):
        by_seed = _by_seed([m for m in group if m.name == name and (m.window in (None, window))])
        if not by_seed:
            continue
        values = [measure.value for measure in by_seed.values()]
        used += [measure.run for measure in by_seed.values()]
        seeds |= set(by_seed)
        row[name] = statistics.fmean(values)
        if len(values) > 1:
            row["errors"][name] = statistics.stdev(values)
        scales |= {measure.scale for measure in by_seed.values() if measure.scale is not None}
    over = dict.fromkeys(
        labels.averages_over(run, [row.get(name) for name in _TASKS]) for run in used if run.experiment == "longbench"
    )
    row |= {tables.OVER.key: "; ".join(filter(None, over)), "data": labels.data_of(used)}
    return row | {"seeds": str(len(seeds)), "g": " / ".join(map(labels.scale, sorted(scales)))}


def _by_seed(group: Sequence[Measure]) -> dict[str, Measure]:
    """One measure a seed: where a window was read at several scales, the one that just covers it."""
    chosen: dict[str, Measure] = {}
    for measure in sorted(group, key=lambda m: (_excess(m), m.run.name)):
        chosen.setdefault(measure.seed, measure)
    return chosen


def _excess(measure: Measure) -> float:
    native = measure.e2.get("native_window")
    if measure.window is None or measure.scale is None or not number(native):
        return 0.0
    reach = measure.scale * native
    return reach - measure.window if reach >= measure.window else 1e9 + measure.window - reach


def _notes(chosen: Sequence[Measure]) -> list[str]:
    notes = []
    if len({measure.seed for measure in chosen}) > 1:
        notes.append("Mean over seeds ± standard deviation between them.")
    if any(number(measure.e2.get("scale")) and _no_room(measure.e2) for measure in chosen):
        notes.append(
            "Without augmentation on g the scale is fixed, and where g·L equals the trained length R there is no room "
            "for an offset (t_max = 0): that row has no augmentation at all."
        )
    if any(measure.window is not None for measure in chosen):
        notes.append(f"Windows: {PAPER_FACTOR} L as in the paper; g·L for a row whose g is fixed.")
    return notes


def _no_room(e2: dict[str, Any]) -> bool:
    return bool(e2["scale"] * (e2.get("native_window") or 0) <= (e2.get("train_window") or 0))


def steps_table(found: Results) -> list[Table]:
    """The points of Figure 4: what was measured alike (window, g, scored text) at two steps or more of one training."""
    lines: dict[tuple[Any, ...], list[Measure]] = defaultdict(list)
    for measure in measures(found):
        text = [str(measure.run.part("resolved").get(key)) for key in ("documents", "doc_tokens", "max_windows")]
        alike = (measure.name, measure.window or 0, measure.scale or 0, *text)
        lines[measure.training, measure.seed, alike].append(measure)
    rows = []
    for _, line in sorted(lines.items(), key=lambda item: item[0]):
        if len({measure.step for measure in line}) > 1:
            rows += [_step_row(measure) for measure in sorted(line, key=lambda m: m.step)]
    columns = [Column("run", "Run"), Column("method", "Method"), Column("g_max", "g_max"), Column("seed", "Seed")]
    columns += [Column("step", "Step", 0), Column("measure", "Measure"), Column("window", "Window", 0)]
    columns += [Column("scale", "g", 2), Column("value", "Value", EXACT), tables.DATA]
    return [Table("figure4", "Scores by tuning step", columns, rows)] if rows else []


def _step_row(measure: Measure) -> Row:
    row: Row = {"run": measure.run.name, "method": labels.tuning(measure.e2), "seed": measure.seed}
    row |= {"g_max": labels.scale(measure.e2.get("g_max")), "step": measure.step, "measure": measure.name}
    row |= {"window": measure.window, "scale": measure.scale, "value": measure.value, "excess": _excess(measure)}
    return row | {"data": labels.data(measure.run)}


BUILDERS = (table_4, table_5)
