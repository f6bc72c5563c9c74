"""What a run would cost, from its plan over config and tokenizer alone: inputs, tokens, hours, memory.

The plan is the run's own (`Experiment.plan`), made over an `Outline` where the run has the loaded model. What cannot be
known that way is None, and `unknown` says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2bench.errors import DataError
from e2bench.experiments.base import Experiment, Plan
from e2bench.experiments.loading import check_model, factors_of, load_model, quiet_libraries, spec_of, with_preset
from e2bench.experiments.options import Common
from e2bench.files import read_json
from e2bench.models.loading import device_name
from e2bench.runs.folder import work_of
from e2bench.runs.items import Item
from e2bench.runs.lines import RUN, merged
from e2bench.runs.manifest import shareable
from e2bench.runs.processes import launched

SAMPLE = 16  # items of a part whose tokens are counted where that takes a tokenizer


@dataclass(frozen=True)
class Part:
    """A task or a length. tokens: of all its inputs; None: unknown.    done: inputs that the folder holds already."""

    name: str
    inputs: int
    done: int
    tokens: int | None


@dataclass(frozen=True)
class Rate:
    """Cost worked off a second by one process.    source: the run in which that was measured, in words."""

    per_second: float
    source: str


@dataclass(frozen=True)
class Forecast:
    """sampled: token counts are means over SAMPLE inputs a part.    hours: of what is not done, None: unknown.

    weight_bytes, input_bytes: of the model, and beside it for one input of `longest` tokens.
    unknown: why something is not known, a sentence each.
    """

    folder: Path
    parts: tuple[Part, ...]
    sampled: bool
    hours: float | None
    rate: Rate | None
    weight_bytes: int | None
    input_bytes: int | None
    longest: int | None
    unknown: tuple[str, ...]

    @property
    def inputs(self) -> int:
        """Of all parts."""
        return sum(part.inputs for part in self.parts)

    @property
    def done(self) -> int:
        """Inputs that need no work any more."""
        return sum(part.done for part in self.parts)

    @property
    def tokens(self) -> int | None:
        """Of all parts; None where one of them is unknown."""
        counts = [part.tokens for part in self.parts if part.tokens is not None]
        return sum(counts) if len(counts) == len(self.parts) else None

    @property
    def gib(self) -> float | None:
        """Weights and one longest input, in GiB."""
        if self.weight_bytes is None or self.input_bytes is None:
            return None
        return (self.weight_bytes + self.input_bytes) / 2**30


def outline_of(common: Common, experiment: Experiment) -> Any:
    """What stands for the model in a forecast: its outline; a served model itself, which is loaded elsewhere."""
    check_model(common)
    named = with_preset(common)
    if named.is_served or named.has_engine:
        return load_model(common, needs=experiment.needs)
    from e2bench.models.outline import Outline

    quiet_libraries()
    return Outline(spec_of(named))


def forecast(
    experiment: Experiment,
    common: Common,
    outline: Any,
    results: Path | None = None,
    otherwise: Rate | None = None,
) -> Forecast:
    """What `experiment` would cost. Raises what the run would, as far as it can be seen without the weights.

    outline: from `outline_of`.    results: folder whose finished runs tell the rate; None: the run's own and beside it.
    otherwise: the rate where they tell none.
    """
    return forecasts(experiment, [common], outline, results, otherwise)[0]


def forecasts(
    experiment: Experiment,
    runs: Sequence[Common],
    outline: Any,
    results: Path | None = None,
    otherwise: Rate | None = None,
) -> list[Forecast]:
    """`forecast` of runs that differ in their folders alone, and so have one plan, which is made once."""
    first = runs[0]
    rule = experiment.rule(outline, with_preset(first)).searched(factors_of(first))
    plan = experiment.plan(outline, rule, first, experiment.inputs(first))
    try:
        found = []
        for common in runs:
            folder = common.out or Path("results") / experiment.folder_name(outline.name, rule, plan)
            rate = rate_of(experiment, outline, results or folder.parent, invariant=common.batch_invariant) or otherwise
            found.append(_forecast(experiment, plan, outline, folder, rate, fresh=common.fresh))
        return found
    finally:
        plan.close()


def _forecast(
    experiment: Experiment, plan: Plan, outline: Any, folder: Path, rate: Rate | None, *, fresh: bool
) -> Forecast:
    stored = (folder / RUN).exists() and not fresh
    done = {name: merged(folder, name) for name in {item.file for item in plan.items}} if stored else {}
    left = [item for item in plan.items if item.id not in done.get(item.file, {})]
    open_ones = _parts(plan, left)
    parts = tuple(
        Part(name, len(items), len(items) - len(open_ones.get(name, ())), _tokens(plan, items))
        for name, items in _parts(plan, plan.items).items()
    )
    sampled = plan.tokens is not None and any(part.inputs > SAMPLE and part.tokens is not None for part in parts)
    longest = plan.longest or plan.window or _longest(plan)
    weights = getattr(outline, "weight_bytes", None)
    unknown = []
    if None in [part.tokens for part in parts]:
        unknown.append(f"tokens: {experiment.name} makes its inputs while it runs")
    if rate is None and left:
        unknown.append(
            "hours: no finished run of this experiment, model and device to take a rate from; a small one will do"
        )
    if outline.device is None:
        unknown.append("memory: the server's own")
    elif weights is None or longest is None:
        what = "weights cannot be counted from the config" if weights is None else "longest input is not known"
        unknown.append(f"memory: the {what}")
    cost = sum(item.cost for item in left)
    return Forecast(
        folder,
        parts,
        sampled,
        _hours(cost, rate),
        rate,
        weights,
        None if longest is None or outline.device is None else plan.needed or outline.needed_bytes(longest),
        longest,
        tuple(unknown),
    )


def _hours(cost: int, rate: Rate | None) -> float | None:
    """Of all processes that this command runs in, side by side."""
    if not cost:
        return 0.0
    return None if rate is None else cost / rate.per_second / launched()[1] / 3600


def _parts(plan: Plan, items: Sequence[Item]) -> dict[str, list[Item]]:
    """Items by the row of the forecast that they belong to, in the plan's order."""
    parts: dict[str, list[Item]] = {}
    for item in items:
        parts.setdefault(plan.part(item), []).append(item)
    return parts


def _tokens(plan: Plan, items: Sequence[Item]) -> int | None:
    """Tokens of a part: its items' costs, or counted; of many items, evenly spread over their sizes, SAMPLE are."""
    if plan.tokens is None:
        return sum(item.cost for item in items)
    ordered = sorted(items, key=lambda item: item.cost)
    chosen = ordered
    if len(items) > SAMPLE:
        chosen = [ordered[(2 * at + 1) * len(ordered) // (2 * SAMPLE)] for at in range(SAMPLE)]
    counts = [plan.tokens(item) for item in chosen]
    known = [count for count in counts if count is not None]
    return round(sum(known) / len(chosen) * len(items)) if len(known) == len(chosen) else None


def _longest(plan: Plan) -> int | None:
    """Tokens of the item of the largest cost; None where they are unknown."""
    largest = max(plan.items, key=lambda item: item.cost)
    return largest.cost if plan.tokens is None else plan.tokens(largest)


# rates


def rate_of(experiment: Experiment, outline: Any, results: Path, *, invariant: bool) -> Rate | None:
    """The rate of the largest finished run of this experiment, model and device at most two folders below `results`.

    invariant: whether of one with --batch-invariant, which is slower, or without.
    """
    path = getattr(outline, "path", None) or outline.describe()["path"]
    dtype = str(outline.dtype).removeprefix("torch.")
    now = {"path": shareable(path), "device": device_name(outline.device), "dtype": dtype, "invariant": invariant}
    best: tuple[float, Rate] | None = None
    for folder, run in _finished(results):
        work, then = work_of(run), _conditions(run)
        if then != now or not _same_kind(experiment, run) or not (work["tokens"] and work["seconds"]):
            continue
        if best is None or work["tokens"] > best[0]:
            best = work["tokens"], Rate(work["tokens"] / work["seconds"], f"the finished run in {folder}")
    return None if best is None else best[1]


def _finished(results: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(p for depth in ("*", "*/*") for p in results.glob(f"{depth}/{RUN}")):
        try:
            run = read_json(path)
        except DataError:  # a torn file tells no rate
            continue
        if run.get("ended"):
            yield path.parent, run


def _conditions(run: Mapping[str, Any]) -> dict[str, Any]:
    model = run.get("model")
    path = model.get("path") if isinstance(model, dict) else None
    invariant = isinstance(model, dict) and "batch_invariant" in model
    return {"path": path, "device": run.get("device"), "dtype": run.get("dtype"), "invariant": invariant}


def _same_kind(experiment: Experiment, run: Mapping[str, Any]) -> bool:
    """Whether a run counts its work in the same unit: same experiment, same protocol, suite, …"""
    settings = run.get("settings")
    if run.get("experiment") != experiment.name or not isinstance(settings, dict):
        return False
    kinds = [name for name, (_, about, _) in experiment.named().items() if about.choices]
    return all(settings.get(name) == getattr(experiment, name) for name in kinds)
