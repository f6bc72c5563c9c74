"""RULER (arXiv 2404.06654): 13 synthetic tasks at any length, and the length up to which a model really reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from e2bench.errors import DataError
from e2bench.experiments import sharing
from e2bench.experiments.base import Experiment, Line, Plan, Sample, TaskFacts
from e2bench.experiments.grid import grid_facts, grid_of, grouped, named
from e2bench.prompts.wording import Wording
from e2bench.rope.methods import BY_LENGTH, RopeScaling
from e2bench.rope.windows import ScaleRule, parse_lengths, short_length, short_number
from e2bench.runs.items import Item, Measure, Row
from e2bench.runs.lines import names_of, stored_rows
from e2bench.settings import setting
from e2bench.terminal import say

if TYPE_CHECKING:
    from e2bench.experiments.haystacks import Feed, Haystack, Maker
    from e2bench.experiments.options import Common
    from e2bench.models.protocols import Generation, Generator, Prompt
    from e2bench.runs.folder import RunFolder
    from e2bench.tasks.ruler import RulerTask

# Of the task lines in tasks/ruler.py (a test compares), here so that the command line needs no generators.
WORDING = Wording(
    "ruler",
    (
        "hidden within the following text. Make sure to memorize it. I will quiz you about the",
        "Memorize and track the chain(s) of variable assignment hidden in the following text.",
        "Below is a numbered list of words. In these words, some appear more often than others.",
        "Read the following coded text and track the frequency of each coded word.",
        "Answer the question based on the given documents. Only give me the answer and do not output any other words.",
    ),
)
SHOWN_CHARS = 300  # of each end of the prompt, kept for the report
Scores = dict[int, list[float]]  # length: scores in [0, 1] of a task's samples


@dataclass(frozen=True)
class Ruler(Experiment):
    """RULER: 13 synthetic tasks, each sample as long as fits, and the effective length."""

    name: ClassVar[str] = "ruler"
    about: ClassVar[str] = "RULER: 13 synthetic tasks at any length, and the effective length."
    examples: ClassVar[tuple[str, ...]] = (
        "e2bench ruler --lengths 1k --samples 1 --tasks niah_single_1,vt",
        "e2bench ruler --model meta-llama/Llama-2-7b-hf --lengths 4k..32k --samples 50 --out results/ruler",
    )
    agree: ClassVar[Mapping[str, bool]] = {"grid": True, "versions": True, "data": False, "hashes": True}
    benchmark: ClassVar[str] = "RULER"
    wordings: ClassVar[tuple[Wording, ...]] = (WORDING,)
    demo_text: ClassVar[str] = "made-up texts in the tasks named so"
    cells: ClassVar[str] = "lengths"
    cell_needs: ClassVar[tuple[str, ...]] = ("length", "score")

    lengths: tuple[int, ...] = setting(
        "4k..128k", "Prompt and answer in tokens: 4k..128k doubles, commas list.", parse=parse_lengths, lines="grid"
    )
    tasks: str = setting("all", "all, or task names separated by commas.", lines="tasks")
    samples_: int = setting(500, "Samples of a task at a length; RULER has 500.", minimum=1, lines="samples")
    data: Path | None = setting(
        None, "RULER's own files, samples as LENGTH/TASK.jsonl, or demo. Default: the public files, else demo."
    )
    chat_template: str = setting("auto", "auto, none, llama2, vicuna, longchat or FILE.jinja.")
    thinking: bool = setting(True, "Leave a template's thinking block on; --no-thinking asks for none.")
    early_stop: bool = setting(True, "Stop a sample once its score cannot change.")
    write_samples: Path | None = setting(
        None, "Write the samples as LENGTH/TASK.jsonl below this folder, and stop: only a tokenizer is needed."
    )

    @classmethod
    def tasks_facts(cls) -> Iterator[TaskFacts]:
        """RULER's tasks, with the samples of a length by default."""
        from e2bench.tasks.ruler import RULER, SAMPLES

        for task in RULER:
            yield TaskFacts(task.name, task.metric.__name__, "en", SAMPLES, task.max_new_tokens)

    def without_model(self, common: Common) -> bool:
        """Write the samples where `write_samples` asks for them."""
        if self.write_samples is None:
            return False
        from e2bench.experiments.haystacks import write_samples
        from e2bench.experiments.loading import load_tokenizer_alone
        from e2bench.tasks.ruler import select

        codec = load_tokenizer_alone(common)
        maker = self._maker(codec, common, template=self.given.get("chat_template", "none"))
        write_samples(maker, select(self.tasks), self.lengths, self.samples_, self.write_samples)
        return True

    def inputs(self, common: Common) -> list[RulerTask]:
        """The chosen tasks."""
        from e2bench.tasks.ruler import select

        return select(self.tasks)

    def plan(self, model: Generator, rule: ScaleRule, common: Common, inputs: list[RulerTask]) -> Plan:
        """Every sample of every task at every length, which has its own scale."""
        from e2bench.models.memory import require_memory

        require_memory(model, self.lengths[-1])
        grid = grid_of(self.lengths, rule)
        say(
            f"ruler: {len(inputs)} tasks × {len(grid)} lengths × {self.samples_} samples, "
            f"{len(inputs) * self.samples_ * sum(self.lengths):,} tokens at most"
        )
        maker = self._maker(model, common, template=self.chat_template)
        made = maker.make(inputs, self.lengths, self.samples_)
        wrapper = maker.feed.wrapper
        rows = rows_together(model, common.batch_size, dict(grid))
        may_share = common.batch_size is None and model.device is not None
        facts = grid_facts(grid, rule, common, self.name)
        uncounted = 0 if wrapper else len(model.encode(""))  # BOS, where the tokenizer adds it
        facts["scalings"] = [(length + uncounted, scaling) for length, scaling in grid]
        return Plan(
            items=items_of(made, dict(grid)),
            measure=asking(model, maker.feed, dict(grid), rows, early_stop=self.early_stop, may_share=may_share),
            batch_size=rows_looked_at(made, rows, dict(grid)) if may_share else rows,
            note=lambda row: f"{row['dataset']}, {row['length']:,} tokens",
            resolved={
                "tasks": list(dict.fromkeys(one.task.name for one in made)),
                "versions": {one.task.name: one.task.version for one in made},
                "grid": named(grid),
                "samples": self.samples_,
                "seed": common.seed,
                "chat_template": wrapper.name if wrapper else "none",
                "hashes": {"chat_template": wrapper.sha256} if wrapper else {},
                "early_stop": self.early_stop,
            },
            source=maker.source(made),
            data=maker.hashes({one.task for one in made}),
            facts={"shared_beginnings": may_share},
            **facts,
        )

    def _maker(self, model: Any, common: Common, *, template: str) -> Maker:
        from e2bench.experiments.answers import wrapper_of
        from e2bench.experiments.haystacks import Feed, Maker, tokenizer_key
        from e2bench.tasks.ruler import SEED

        wrapper = wrapper_of(model, common, template, thinking=self.thinking)
        return Maker(Feed(model, wrapper), tokenizer_key(model.tokenizer), SEED + common.seed, self.data)

    # stored lines

    @classmethod
    def summarise(cls, folder: Path, **options: Any) -> dict[str, Any]:
        """Scores by task and length, means by length, effective length and weighted averages."""
        from e2bench.scoring.ruler import effective_length, weighted_mean
        from e2bench.scoring.statistics import mean
        from e2bench.tasks.ruler import BY_NAME, RULER, THRESHOLD

        present = names_of(folder)
        stored = {name: stored_rows(folder, name) for name in BY_NAME if name in present}
        lines = [line for rows in stored.values() for line in rows]
        if not lines:
            raise DataError(f"{folder} holds no finished line of a RULER task; run the experiment first")
        lengths = sorted({line["length"] for line in lines})
        scored = {name: scores_of(name, rows, folder) for name, rows in stored.items() if rows}
        cells = [_of_length(length, scale, scored, lines) for (length, scale), _ in grouped(lines, "length", "scale")]
        means = [(cell["length"], cell["score"]) for cell in cells]
        is_whole = all(length in scored.get(task.name, {}) for task in RULER for length in lengths)
        return {
            "lengths": cells,
            "tasks": {name: mean([100 * s for one in found.values() for s in one]) for name, found in scored.items()},
            "effective_length": effective_length(means, THRESHOLD) if is_whole else None,
            "averages": {
                "ruler": {
                    "Avg": mean([score for _, score in means]) if is_whole else None,
                    "wAvg (inc)": weighted_mean(means, increasing=True) if is_whole else None,
                    "wAvg (dec)": weighted_mean(means, increasing=False) if is_whole else None,
                }
            },
            "details": {name: _details(name, found, stored[name], lengths) for name, found in scored.items()},
        }

    @classmethod
    def samples(cls, folder: Path, name: str, lines: Sequence[Line], *, strict: bool) -> Iterator[tuple[Line, Sample]]:
        """Answers with their scores; of one length they are one task of `compare`."""
        from e2bench.tasks.ruler import BY_NAME

        if name not in BY_NAME:
            raise DataError(f"{name} is no task of RULER")
        for line in lines:
            score = None if line["finish"] == "error" else BY_NAME[name].metric(line["pred"], line["outputs"])
            task, label = f"{name} {short_length(line['length'])}", str(line["_id"])
            grade = None if score is None else 100 * score
            yield line, Sample(task, label, score, line["outputs"], line["pred"], label, grade)

    @classmethod
    def table(cls, scores: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
        """A row a task, a column a length, the mean and its interval below."""
        cells = scores["lengths"]
        head = ["task", *(f"{short_length(cell['length'])}, g = {cell['scale']:g}" for cell in cells)]
        rows = [
            [name, *(_shown(entry["by_length"].get(str(cell["length"]))) for cell in cells)]
            for name, entry in scores["details"].items()
        ]
        means = [["mean", *(f"{cell['score']:.2f}" for cell in cells)]]
        return head, [*rows, *means, ["95 % interval", *(_bounds(cell["interval"]) for cell in cells)]]

    @classmethod
    def closing(cls, scores: Mapping[str, Any]) -> list[str]:
        """The effective length, or why there is none."""
        from e2bench.tasks.ruler import RULER, THRESHOLD

        averages = scores["averages"]["ruler"]
        if averages["Avg"] is None:
            present = sum(task.name in scores["details"] for task in RULER)
            return [
                f"No effective length and no averages over lengths: {present} of RULER's {len(RULER)} tasks are "
                "here under its own names, and all are needed at every length."
            ]
        length = scores["effective_length"]
        effective = "below the shortest length" if length is None else short_length(length)
        shown = ", ".join(f"{name} {value:.2f}" for name, value in averages.items())
        return [f"effective length (mean at least {THRESHOLD}): {effective}; {shown}"]


def _shown(cell: Mapping[str, Any] | None) -> str:
    return "" if cell is None or cell["score"] is None else f"{cell['score']:.2f}"


def _bounds(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:.1f} – {interval[1]:.1f}" if interval else ""


def scores_of(name: str, rows: Sequence[Line], folder: Path) -> Scores:
    """Scores in [0, 1] of a task's lines by length; failed lines left out. Raises DataError naming a bad line."""
    from e2bench.tasks.ruler import BY_NAME

    metric = BY_NAME[name].metric
    found: Scores = {}
    for number, row in enumerate(rows, 1):
        outputs = row["outputs"]
        if (
            not isinstance(row["pred"], str)
            or not isinstance(outputs, list)
            or not all(isinstance(text, str) for text in outputs)
        ):
            raise DataError(f"{folder / name}.jsonl: line {number}: pred must be text and outputs a list of texts")
        scores = found.setdefault(row["length"], [])
        if row["finish"] != "error":
            try:
                scores.append(metric(row["pred"], outputs))
            except DataError as error:
                raise DataError(f"{folder / name}.jsonl: line {number}: {error}") from None
    return found


def _of_length(length: int, scale: float, scored: Mapping[str, Scores], lines: Sequence[Line]) -> dict[str, Any]:
    """The mean over tasks at a length, in percent."""
    from e2bench.scoring.statistics import mean, stratified_interval

    groups = [found[length] for found in scored.values() if found.get(length)]
    bounds = stratified_interval(groups)
    score = mean([mean(group) or 0.0 for group in groups])
    return {
        "length": length,
        "scale": scale,
        "score": 100 * (score or 0.0),
        "interval": bounds and [100 * bound for bound in bounds],
        "tasks": len(groups),
        "samples": sum(map(len, groups)),
        "failed": sum(line["length"] == length and line["finish"] == "error" for line in lines),
    }


def _details(name: str, found: Scores, rows: Sequence[Line], lengths: Sequence[int]) -> dict[str, Any]:
    """Scores of a task in percent, and how much of it was scored. expected: RULER's 500 samples at each length."""
    from e2bench.scoring.statistics import interval, mean
    from e2bench.tasks.ruler import BY_NAME, SAMPLES

    cells = {}
    for length, values in sorted(found.items()):
        share, bounds = mean(values), interval(values)
        cells[str(length)] = {
            "score": None if share is None else 100 * share,
            "interval": bounds and [100 * bound for bound in bounds],
            "scored": len(values),
        }
    return {
        "by_length": cells,
        "scored": sum(map(len, found.values())),
        "expected": SAMPLES * len(lengths),
        "failed": sum(row["finish"] == "error" for row in rows),
        "metric": BY_NAME[name].metric.__name__,
        "version": BY_NAME[name].version,
    }


# measuring

Scales = Mapping[int, RopeScaling]  # by length


def items_of(made: Sequence[Haystack], scales: Scales) -> list[Item]:
    """One item a sample; those of one task and length share a batch."""
    return [
        Item(one.task.name, one.id, one.length, (one.length, one.task.name, scales[one.length]), one, one.stored.sha256)
        for one in made
    ]


def rows_together(model: Generator, given: int | None, scales: Scales) -> Callable[[Item], int]:
    """How many prompts of an item's length to answer together."""

    def rows(item: Item) -> int:
        if scales[item.payload.length].method in BY_LENGTH:
            return 1
        return given or model.decode_rows(item.payload.length)

    return rows


def rows_looked_at(made: Sequence[Haystack], rows: Callable[[Item], int], scales: Scales) -> Callable[[Item], int]:
    """The same, or so many that a beginning can be read for all of them, where the samples of a task begin alike."""
    groups: dict[tuple[int, str], list[Haystack]] = {}
    for one in made:
        groups.setdefault((one.length, one.task.name), []).append(one)
    likely = {key for key, some in groups.items() if sharing.alike([one.stored.read()["input"] for one in some[:4]])}

    def looked_at(item: Item) -> int:
        one = item.payload
        most = sharing.LOOKED_AT if (one.length, one.task.name) in likely else 1
        return rows(item) if scales[one.length].method in BY_LENGTH else max(rows(item), most)

    return looked_at


def asking(
    model: Generator,
    feed: Feed,
    scales: Scales,
    rows: Callable[[Item], int],
    *,
    early_stop: bool,
    may_share: bool = False,
) -> Measure:
    """What answers a batch of samples and makes the lines of TASK.jsonl (docs/files.md).

    rows: how many to decode together.    may_share: whether a beginning of several prompts may be read once.
    """

    def measure(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        scaling = scales[batch[0].payload.length]
        prompts = [feed.prompt(item.payload, early_stop=early_stop) for item in batch]
        answers = sharing.generate(model, prompts, scaling, rows=rows(batch[0]), may_share=may_share)
        for index, generation in answers:
            yield batch[index], _line(batch[index].payload, prompts[index], generation, scaling)

    return measure


def _line(one: Haystack, prompt: Prompt, generation: Generation, scaling: RopeScaling) -> Row:
    outputs = one.stored.read()["outputs"]
    return {
        "_id": one.id,
        "dataset": one.task.name,
        "length": one.length,
        "scale": short_number(scaling.factor),
        "pred": generation.text,
        "outputs": outputs,
        **({"depths": depths_in(prompt.text, outputs)} if one.task.hides_needles else {}),
        "tokens": len(prompt.ids),
        "new_tokens": len(generation.ids),
        "finish": generation.finish,
        "seconds": round(generation.seconds, 4),
        "head": prompt.text[:SHOWN_CHARS],
        "tail": prompt.text[-SHOWN_CHARS:],
    }


def depths_in(text: str, needles: Sequence[str]) -> list[float]:
    """Where each needle begins in a prompt: 0 at its start, 1 at its end."""
    return [round(max(0, text.find(needle)) / len(text), 4) for needle in needles]
