"""What an experiment is, and the list of those that there are. Imports no torch.

An experiment is one class in one file: its settings (fields), the work it plans over a model (`plan`), how its lines
add up (`summarise`), and how they are shown and compared (the class attributes and `samples`). Everything else is
derived from it: the command and its options, Python keywords, YAML keys, docs/reference, run.json, resume, `score`,
`compare`, the report's list of runs and its sample browser.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from e2bench.errors import E2BenchError, UnknownName
from e2bench.experiments.numbers import Number, cell_numbers, shown, task_numbers
from e2bench.experiments.options import OF_A_SERVER
from e2bench.prompts.wording import Wording
from e2bench.rope.windows import PER_INPUT, short_length, short_number
from e2bench.settings import SETTING, Settings

if TYPE_CHECKING:
    from e2bench.data.source import DataSource
    from e2bench.experiments.options import Common
    from e2bench.models.protocols import Generator
    from e2bench.rope.methods import RopeScaling
    from e2bench.rope.windows import ScaleRule
    from e2bench.runs.items import Item, Measure, Row

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """The work of one run over a loaded model, and what run.json says of it.

    items, measure, batch_size, note: see `runs.runner.run`.
    tokens: read and written for an item, for a forecast; None: cannot be told before. Without it an item's cost.
    part: the row of a forecast that an item belongs to.    longest: tokens of the longest input with its answer, where
        `window` and the items' tokens do not tell it.
    needed: bytes beside the weights for the longest input; None: those of reading it into a cache.
    resolved: settings as they came out; what is not in `Experiment.chooses` must be the same to resume.
    scaling, length: what stands in force when run.json is written; None: no single one.
    scalings: (length, scaling) of every part of the work, where there are several.
    rope: method and factor, as run.json shows them.    data: file or document: hash.    source: where the data is from.
    window: of the run in tokens, where it has one; part of the default folder's name.
    facts: further entries of run.json.    close: called when the run is over, or refused.
    """

    items: Sequence[Item]
    measure: Measure
    batch_size: Callable[[Item], int]
    resolved: dict[str, Any]
    rope: dict[str, Any]
    source: DataSource
    data: Mapping[str, str] = field(default_factory=dict)
    scaling: RopeScaling | None = None
    length: int | None = None
    scalings: Sequence[tuple[int, RopeScaling]] = ()
    window: int | None = None
    note: Callable[[Row], str] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    tokens: Callable[[Item], int | None] | None = None
    part: Callable[[Item], str] = lambda item: item.file
    longest: int | None = None
    needed: int | None = None
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Sample:
    """One line as `compare` pairs it and the page shows it.

    task: what is paired within: a task's name, or a length.    id: the same in every run of the same samples.
    score: in the experiment's unit before `factor`; None for a failed line.    reference: a text, a number or a list.
    label: the line's name on the page.    grade: 0 to 100 for the page; None where it cannot be graded alone.
    made_from: hash of what the line was made from, where its id does not say it.
    """

    task: str
    id: str
    score: float | None
    reference: Any
    prediction: str
    label: str = ""
    grade: float | None = None
    made_from: str | None = None

    @property
    def reference_text(self) -> str:
        """The reference as one reads it: several of them apart by a bar."""
        several = isinstance(self.reference, list)
        return " | ".join(map(str, self.reference)) if several else str(self.reference)


class TaskFacts(NamedTuple):
    """What `e2bench tasks` tells of one task.

    samples: of the public set, or at a length.    budget: tokens of an answer; None where none is written.
    """

    task: str
    metric: str
    language: str
    samples: int | None
    budget: int | None


@dataclass(frozen=True)
class Experiment(Settings):
    """Base of all experiments; a subclass is a frozen dataclass of the settings that belong to it alone.

    name: of the command, in run.json and in default folders.    about: one sentence for `--help`.
    examples: commands that its help ends with.
    needs: what the model must be: `Generator`, `Scorer` or `AttentionSource`, as text.
    several_scales, per_input: whether `--scale` may be a list, or `per-input`.
    agree: entries of `resolved` of which several calls may name different parts: True if parts that both name must
        agree (a task's version), False if every line says by its `sample` or id what it was made from.
    advice: what to do where a setting of that name differs from the folder's.
    implied: entries of `resolved` that older run.json files lack, with the value that those runs had.
    asks: entries of `resolved` that decide what is asked: runs that differ in one are of different samples.
    wordings: what its prompts say, by which a training's texts are known to hold them.
    unit, factor: of scores in `compare`.    benchmark: the public data set's name; empty where there is none.
    demo_text: what the demo data is.    amount: the field of a cell that says how much was measured.
    cells: the list in scores.json with one entry a length; empty where scores are by task.    cell_needs: numbers that
        every entry must have.    columns: field of an entry: heading, of the table in the terminal.
    fractions: fields of an entry from 0 to 1, which the terminal shows in percent.
    shows_samples: whether the page shows single lines.
    own_layout: fields of each line in the benchmark's own result files; a folder of such files needs no run.json.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    examples: ClassVar[tuple[str, ...]]
    needs: ClassVar[str] = "Generator"
    several_scales: ClassVar[bool] = False
    per_input: ClassVar[bool] = True
    agree: ClassVar[Mapping[str, bool]] = {}
    advice: ClassVar[Mapping[str, str]] = {}
    implied: ClassVar[Mapping[str, Any]] = {}
    asks: ClassVar[tuple[str, ...]] = ()
    wordings: ClassVar[tuple[Wording, ...]] = ()
    unit: ClassVar[str] = "points"
    factor: ClassVar[float] = 100
    benchmark: ClassVar[str] = ""
    demo_text: ClassVar[str] = "made-up"
    amount: ClassVar[str] = "samples"
    cells: ClassVar[str] = ""
    cell_needs: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[Mapping[str, str]] = {}
    fractions: ClassVar[Sequence[str]] = ()
    shows_samples: ClassVar[bool] = True
    own_layout: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def title(cls) -> str:
        """The experiment's name."""
        return cls.name

    @classmethod
    def tasks_facts(cls) -> Iterator[TaskFacts]:
        """The tasks that `--tasks` takes, where there is such a setting."""
        yield from ()

    # running

    def needed(self) -> str:
        """What the model must be for these settings."""
        return self.needs

    @classmethod
    def unused(cls) -> frozenset[str]:
        """Shared settings that no run of this experiment uses: its help need not name them."""
        served = () if cls.needs == "Generator" else OF_A_SERVER
        return frozenset(served if cls.needs == "Scorer" else (*served, "compile"))

    def check(self, common: Common) -> None:
        """Refuse shared settings that this experiment cannot take, before anything is loaded."""
        if common.has_engine and self.needed() != "Generator":
            which = " with these settings" if self.needs == "Generator" else ""
            raise E2BenchError(
                f"{self.name}{which} needs a model's losses, and --engine {common.engine} gives texts; leave --engine "
                "out"
            )
        scale = common.scale
        if scale is not None and len(scale.values) > 1 and not self.several_scales:
            raise E2BenchError(
                f"scale '{scale}' is a list, which {self.name} does not take; give one number"
                + (", auto or per-input" if self.per_input else " or auto")
            )
        if scale is not None and scale.kind == PER_INPUT and not self.per_input:
            raise E2BenchError(
                f"--scale {PER_INPUT} is several scales; a {self.name} run has one: give a number or auto"
            )

    def without_model(self, common: Common) -> bool:
        """Do what is asked for instead of a run and needs no model; False where there is no such thing."""
        return False

    def inputs(self, common: Common) -> Any:
        """Data and settings checked against each other, before the model is loaded; handed to `plan`."""

    def rule(self, model: Generator, common: Common) -> ScaleRule:
        """How this run chooses g."""
        return model.rule(common.scale, common.method)

    def plan(self, model: Any, rule: ScaleRule, common: Common, inputs: Any) -> Plan:
        """The work and what run.json says of it. For a forecast the model is an `Outline`, which has no weights."""
        raise NotImplementedError

    def chooses(self) -> dict[str, bool]:
        """Entries of `resolved` that only choose which lines there are, as `RunFolder` takes them."""
        lines = {f.metadata[SETTING].lines: False for f, _, _ in self.named().values()}
        return {**{name: way for name, way in lines.items() if name is not None}, **self.agree}

    def folder_name(self, model: str, rule: ScaleRule, plan: Plan) -> str:
        """The default folder's name below results/: one a setting that decides lines, as far as it can be seen."""
        return default_folder(self.name, model, rule, plan.window)

    # stored lines

    @classmethod
    def resolved_of(cls, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a run.json, those included that are younger than it."""
        resolved = manifest.get("resolved")
        return {**cls.implied, **(resolved if isinstance(resolved, dict) else {})}

    @classmethod
    def worded(cls, resolved: Mapping[str, Any]) -> Sequence[Wording]:
        """Those of `wordings` in which a run of these settings asks."""
        return cls.wordings

    @classmethod
    def summarise(cls, folder: Path, **options: Any) -> dict[str, Any]:
        """The contents of scores.json for a run's folder."""
        raise NotImplementedError

    @classmethod
    def samples(cls, folder: Path, name: str, lines: Sequence[Line], *, strict: bool) -> Iterator[tuple[Line, Sample]]:
        """Each line of NAME.jsonl with what `compare` and the page make of it.

        strict: raise for a line that cannot be scored; else its score and grade are None.
        """
        raise NotImplementedError

    @classmethod
    def numbers(cls, scores: Mapping[str, Any]) -> Iterator[Number]:
        """Every number of scores.json: of each cell those in `columns`, or each task's score and the averages."""
        if not cls.cells:
            return task_numbers(scores)
        return cell_numbers(cls.name, cls.columns, cls.amount, scores[cls.cells], cls.fractions)

    @classmethod
    def table(cls, scores: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
        """(headings, rows) of scores.json for the terminal."""
        return shown(cls.columns, scores[cls.cells], cls.fractions)

    @classmethod
    def closing(cls, scores: Mapping[str, Any]) -> list[str]:
        """Lines below that table."""
        return []


def default_folder(experiment: str, model: str, rule: ScaleRule, window: int | None = None) -> str:
    """EXPERIMENT-MODEL-SCALE, with the method and the window where they are not what the scale says."""
    name = re.sub(r"[^\w.-]+", "-", model)
    scale = "s" + "-".join(str(short_number(v)) for v in rule.values) if rule.kind == "fixed" else rule.kind
    parts = [experiment, name, *([] if rule.method in ("linear", "checkpoint") else [rule.method]), scale]
    return "-".join([*parts, *([] if window is None else [short_length(window)])])


# Name: module and class. The order is that of the page's sample browser and of `--help`.
_CLASSES = {
    "longbench": ("longbench", "LongBench"),
    "longbench2": ("longbench2", "LongBench2"),
    "ruler": ("ruler", "Ruler"),
    "short": ("short", "Short"),
    "ppl": ("perplexity", "Perplexity"),
    "passkey": ("passkey", "PassKey"),
    "needle": ("needle", "Needle"),
    "attention": ("attention", "Attention"),
}
EXPERIMENTS = tuple(_CLASSES)


def answerable() -> str:
    """The experiments that ask a model for texts only, in words: a served model or a function will do."""
    names = [name for name in EXPERIMENTS if experiment(name).needs == "Generator"]
    return " and ".join([", ".join(names[:-1]), names[-1]])


def experiment(name: str) -> type[Experiment]:
    """The class of an experiment. Raises UnknownName."""
    if name not in _CLASSES:
        raise UnknownName("experiment", name, list(_CLASSES))
    module, cls = _CLASSES[name]
    found: type[Experiment] = getattr(importlib.import_module(f"e2bench.experiments.{module}"), cls)
    return found
