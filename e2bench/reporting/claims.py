"""The paper's claims, each beside what the runs at hand say: holds, does not hold, open, or not measured.

Every number is computed: the paper's come from published/*.csv, ours from the runs. A verdict follows from the 95 %
interval of a paired difference, over documents or over seeds; `open` where the interval holds 0, or there is none.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from e2bench.reporting import ablations, labels
from e2bench.reporting.runs import Results, Run, number
from e2bench.reporting.selection import budget, primary
from e2bench.reporting.table import Column, Row, Table
from e2bench.reporting.tables import is_auto, protocol, published
from e2bench.scoring.statistics import interval, mean

VERDICTS = HOLDS, FAILS, OPEN, UNMEASURED = "holds", "does not hold", "open", "not measured"
WHOLE = "E²-LLM"  # with both augmentations

COLUMNS = [Column("claim", "Claim"), Column("paper", "Paper"), Column("model", "Model"), Column("ours", "Measured")]
COLUMNS += [Column("difference", "Difference", 3), Column("low", "Low", 3), Column("high", "High", 3)]
COLUMNS += [Column("unit", "Unit"), Column("verdict", "Verdict"), Column("run", "Run"), Column("data", "Data")]


@dataclass(frozen=True)
class Claim:
    """paper: its own numbers, in words.    evidence: a row a model: `model, ours, difference, low, high, unit, …`."""

    text: str
    paper: Callable[[], str]
    evidence: Callable[[Results], Iterator[Row]]

    def rows(self, found: Results) -> list[Row]:
        """The rows of the table; one that says `not measured` where nothing was."""
        rows = list(self.evidence(found)) or [{"verdict": UNMEASURED, "data": "no run"}]
        return [{"claim": self.text, "paper": self.paper(), **row} for row in rows]


def claims(found: Results) -> list[Table]:
    """The list, where any of it was measured."""
    rows = [row for claim in CLAIMS for row in claim.rows(found)]
    if all(row["verdict"] == UNMEASURED for row in rows):
        return []
    note = (
        "Difference: measured as the claim says, after less before or without less with; low and high: its 95 % "
        "bootstrap interval, paired over documents or seeds. open: the interval holds 0, or there is none."
    )
    return [Table("claims", "What the paper claims, and what was measured", COLUMNS, rows, [note])]


def verdict(ends: Sequence[float] | None, *, below: bool) -> str:
    """What an interval says of the claim that a difference is below 0, or else above."""
    if ends is None:
        return OPEN
    low, high = ends if below else (-ends[1], -ends[0])
    return HOLDS if high < 0 else FAILS if low > 0 else OPEN


def _judged(differences: Sequence[float], unit: str, *, below: bool) -> Row:
    ends = interval(differences)
    low, high = ends or (None, None)
    row: Row = {"difference": mean(differences), "low": low, "high": high, "unit": unit}
    return row | {"verdict": verdict(ends, below=below)}


# perplexity by window


def _nats(run: Run, cell: Row) -> dict[str, float]:
    """Document: nats a token of one cell, from its lines."""
    return {
        str(line["document"]): line["nll_sum"] / line["scored_tokens"]
        for line in run.lines("ppl")
        if (line["window"], line["scale"]) == (cell["window"], cell["scale"])
    }


def _falls(run: Run, first: Row, last: Row, untuned: Run | None = None) -> Row:
    """Whether perplexity at the second cell is below that at the first, over the same documents.

    untuned: the run of the first cell, where it is another one.
    """
    before, after = _nats(untuned or run, first), _nats(run, last)
    shown = [f"{c['perplexity']:.4g} at {labels.tokens(c['window'])} (g = {c['scale']:g})" for c in (first, last)]
    shown[0] += " untuned" if untuned else ""
    names = ", ".join(one.name for one in (untuned, run) if one)
    row: Row = {"model": run.model, "ours": ", ".join(shown), "run": names, "data": labels.data(run)}
    return row | _judged([after[name] - before[name] for name in before if name in after], "nats a token", below=True)


def _tuned(found: Results, *, extrapolated: bool = False) -> Iterator[tuple[Run, list[Row]]]:
    """Perplexity runs on E²-tuned models, of each recipe the best trained, with their cells by window."""
    runs = [run for run in found.of("ppl") if bool(run.manifest.get("extrapolate")) is extrapolated]
    for run in primary(runs):
        if run.e2 and labels.tuning(run.e2) == WHOLE and run.native_window:
            yield run, sorted(run.cells, key=lambda cell: float(cell["window"]))


def one_scale(found: Results) -> Iterator[Row]:
    """Of each model the fixed g that was measured to the longest window within g·L; of equals the smallest."""
    best: dict[str, tuple[tuple[float, float], Run, list[Row]]] = {}
    for run, every in _tuned(found):
        for scale in {cell["scale"] for cell in every if cell["scale"] > 1 and not is_auto(run, every)}:
            cells = [c for c in every if c["scale"] == scale and c["window"] <= scale * (run.native_window or 0)]
            if len(cells) > 1:
                candidate = ((float(cells[-1]["window"]), -scale), run, cells)
                best[run.model] = max(best.get(run.model, candidate), candidate, key=lambda one: one[0])
    for _, run, cells in best.values():
        yield _falls(run, cells[0], cells[-1])


def one_training(found: Results) -> Iterator[Row]:
    """The longest window at g = L'/L against L of the untuned model; without it, of the tuned one at g = 1."""
    for run, cells in _tuned(found):
        if not is_auto(run, cells) or cells[-1]["window"] == run.native_window:
            continue
        bases = [other for other in found.of("ppl") if not other.e2 or other.model == (run.e2 or {}).get("base")]
        rivals = [other for other in bases if _alike(other, run)]
        for other in (*rivals, run):
            at = [cell for cell in other.cells if (cell["window"], cell["scale"]) == (run.native_window, 1)]
            if at:
                yield _falls(run, at[0], cells[-1], other if other is not run else None)
                break


def _alike(one: Run, other: Run) -> bool:
    """Models of one size, measured alike on the same documents."""
    return _size(one) == _size(other) and protocol(one) == protocol(other)


def _size(run: Run) -> tuple[object, object]:
    return run.native_window, run.part("model").get("parameters")


def extrapolation(found: Results) -> Iterator[Row]:
    """2 L against L, both at g = 1."""
    for run, cells in _tuned(found, extrapolated=True):
        at = {cell["window"]: cell for cell in cells if cell["scale"] == 1}
        native = run.native_window or 0
        if native in at and 2 * native in at:
            yield _falls(run, at[native], at[2 * native])


# ablations, cost, benchmarks


def augmentation(without: str) -> Callable[[Results], Iterator[Row]]:
    """Perplexity at 8 L of tunings of one budget, paired by seed: without one augmentation less with both."""

    def evidence(found: Results) -> Iterator[Row]:
        groups: dict[tuple[str, ...], dict[str, dict[str, ablations.Measure]]] = defaultdict(lambda: defaultdict(dict))
        for one in ablations.last_steps(ablations.measures(found)):
            native = one.e2.get("native_window")
            if one.name == "perplexity" and number(native) and one.window == 8 * native == (one.scale or 0) * native:
                documents = str(one.run.part("resolved").get("documents"))
                key = (str(one.e2.get("base")), str(budget(one.e2)), str(one.e2.get("g_max")), documents)
                groups[key][one.seed][labels.tuning(one.e2)] = one
        for (base, *_), seeds in groups.items():
            pairs = [(both[WHOLE], both[without]) for both in seeds.values() if {WHOLE, without} <= both.keys()]
            if pairs:
                means = [mean([pair[at].value for pair in pairs]) for at in (0, 1)]
                ours = f"perplexity at 8 L: {means[0]:.1f}, without {means[1]:.1f}; {len(pairs)} seeds"
                row = _judged([less.value - whole.value for whole, less in pairs], "perplexity", below=False)
                names = ", ".join(one.run.name for pair in pairs for one in pair)
                data = labels.data_of(whole.run for whole, _ in pairs)
                yield row | {"model": base, "ours": ours, "run": names, "data": data}

    return evidence


def cost(found: Results) -> Iterator[Row]:
    """A step of PI at the longest window profiled against one of E²."""
    for name, profile in found.profiles:
        last = {str(row["method"]): row for row in sorted(profile, key=lambda row: float(row["window"]))}
        if {"pi", "e2"} <= last.keys():
            pi, e2 = last["pi"], last["e2"]  # the same step of E² was measured beside every window of PI
            same = [row for row in profile if (row["method"], row["length"]) == ("e2", e2["length"])]
            time, memory = (
                pi[key] / statistics.median(row[key] for row in same) for key in ("seconds_per_step", "peak_bytes")
            )
            rows = f"PI at {labels.tokens(pi['length'])}, against rows of {labels.tokens(e2['length'])}"
            row: Row = {"ours": f"{time:.1f} times the time, {memory:.1f} times the memory ({rows})", "run": name}
            row |= {"data": f"one row a step of random tokens, {pi.get('device') or 'device not recorded'}"}
            yield row | {"verdict": HOLDS if min(time, memory) > 1 else FAILS}


def average(experiment: str, *keys: str) -> Callable[[Results], Iterator[Row]]:
    """Averages of a tuned and an untuned model of one size, over whole benchmarks only; without an interval."""

    def value(run: Run) -> float | None:
        part = run.scores.get("averages")
        for key in keys:
            part = part.get(key) if isinstance(part, dict) else None
        return float(part) if number(part) and not labels.averages_over(run, [part]) else None

    def evidence(found: Results) -> Iterator[Row]:
        whole = [(run, score) for run in found.of(experiment) if (score := value(run)) is not None]
        for run, after in whole:
            for other, before in whole:
                if run.e2 and not other.e2 and _size(run) == _size(other):
                    ours = f"{before:.2f} untuned, {after:.2f} tuned"
                    row: Row = {"model": run.model, "ours": ours, "difference": after - before, "unit": "points"}
                    row |= {"verdict": OPEN, "run": f"{other.name}, {run.name}", "data": labels.data(run)}
                    yield row

    return evidence


# what the paper says


def _table3(method: str) -> Row:
    return next(row for row in published("table3") if (row["size"], row["method"]) == ("7B", method))


def _of_one_scale() -> str:
    row = _table3("E²-LLM-64k")
    return f"7B, g = {row['scale']:g}: {row['4096']} at 4k, {row['65536']} at 64k (Table 3)"


def _of_one_training() -> str:
    return f"7B: {_table3('None')['4096']} at 4k untuned, {_table3('E²-LLM-64k')['65536']} at 64k, g = 16 (Table 3)"


def _of_augmentation(without: str) -> Callable[[], str]:
    def paper() -> str:
        scores = {row["method"]: row["All"] for row in published("table4")}
        return f"LongBench, All, at 32k: {scores[WHOLE]}, without {scores[without]} (Table 4)"

    return paper


def _of_longbench() -> str:
    scores = {row["model"]: row["All"] for row in published("table2")}
    return f"All: {scores['Llama2-7B-chat-4k']} (as printed), {scores['E²-LLM-Llama2-7B-32k']} at 32k (Table 2)"


def _of_short() -> str:
    scores = {(row["size"], row["model"]): row["Avg."] for row in published("table7")}
    return f"7B, Avg.: {scores['7B', 'Llama2-7B (4K)']} untuned, {scores['7B', 'E²-LLM-32K']} at 32k (Table 7)"


_T, _G = "E²-LLM (w/o aug on t)", "E²-LLM (w/o aug on g)"
CLAIMS = (
    Claim("One training on short rows serves longer windows: perplexity there is below that at L (untuned, if known)",
          _of_one_training, one_training),
    Claim("At one fixed g, a longer window lowers perplexity", _of_one_scale, one_scale),
    Claim("A training step costs less than one of PI at its window", lambda: "a drawing (Figure 1)", cost),
    Claim("Tuning without the augmentation on t is worse", _of_augmentation(_T), augmentation(_T)),
    Claim("Tuning without the augmentation on g is worse", _of_augmentation(_G), augmentation(_G)),
    Claim("LongBench rises over the untuned model", _of_longbench, average("longbench", "e2", "All")),
    Claim("Short benchmarks are kept", _of_short, average("short", "Avg.")),
    Claim("Asked in the paper's discussion: at g = 1 perplexity goes on falling beyond L, for free",
          lambda: "no number", extrapolation),
)  # fmt: skip
BUILDERS = (claims,)
