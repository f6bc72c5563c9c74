"""LongBench v2 (arXiv 2412.15204): 503 four-way questions over long texts, answered with a letter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from e2bench.data.source import DEMO, OWN, PUBLIC, DataSource
from e2bench.errors import DataError, E2BenchError
from e2bench.experiments.base import Experiment, Line, Plan, Sample, default_folder
from e2bench.experiments.demo import demo_folder
from e2bench.files import check_folder, file_hashes
from e2bench.prompts.truncation import JOINED, MODES
from e2bench.rope.windows import PER_INPUT, ScaleRule
from e2bench.runs.lines import RUN, names_of, read_run, stored_rows
from e2bench.settings import flag, setting
from e2bench.terminal import say

if TYPE_CHECKING:
    from e2bench.experiments.options import Common
    from e2bench.tasks.longbench2 import Example

DATA = "data.json"
OFFICIAL, LETTERS, LM_EVAL = "official", "letters", "lm-eval"
# Settings of the official protocol, which lm-eval's does not have.
_NOT_LETTERS = (
    "cot",
    "no_context",
    "prompts",
    "input_limit",
    "truncation",
    "chat_template",
    "thinking",
    "early_stop",
)


@dataclass(frozen=True)
class Inputs:
    """examples: in the data's order.    texts: prompt templates by file.    prompts: as run.json names them.

    data: SHA-256 by file, when it was read.
    """

    examples: Sequence[Example]
    texts: Mapping[str, str]
    prompts: Any
    data: Mapping[str, str]
    source: DataSource


@dataclass(frozen=True)
class LongBench2(Experiment):
    """LongBench v2: 503 four-way questions over long texts. Greedy; the official script samples at temperature 0.1."""

    name: ClassVar[str] = "longbench2"
    about: ClassVar[str] = (
        "LongBench v2: 503 four-way questions over long texts. Greedy; the official script samples at temperature 0.1."
    )
    examples: ClassVar[tuple[str, ...]] = (
        "e2bench longbench2 --model meta-llama/Llama-3.1-8B-Instruct --cot --out results/longbench2",
        "e2bench longbench2 --data demo --window 2k",
    )
    agree: ClassVar[Mapping[str, bool]] = {"versions": True, "data": False, "hashes": True}
    benchmark: ClassVar[str] = "LongBench v2"
    own_layout: ClassVar[frozenset[str]] = frozenset(("_id", "sub_domain", "difficulty", "length", "answer", "judge"))

    cot: bool = setting(False, "Think first (1,024 tokens), then answer: two prompts a question.", flags=("--cot",))
    no_context: bool = setting(False, "Leave the document out: what the model knows already.", flags=("--no-context",))
    scoring: str = setting(
        OFFICIAL,
        "official (the letter in the answer) or letters (lm-eval's: log-likelihood of A to D; another number).",
        choices=(OFFICIAL, LETTERS),
    )
    data: Path | None = setting(None, "Folder with data.json, or demo. Default: the public data.")
    prompts: Path | None = setting(None, "Folder with 0shot.txt, … Default: the official ones.")
    limit: int | None = setting(None, "Only the first N questions.", minimum=1, lines="limit")
    input_limit: int | None = setting(
        None, "Tokens kept of a prompt. Default: 120,000, or what fits the window.", minimum=2
    )
    truncation: str = setting("official", "official (decode both ends together, re-encode) or ids.", choices=MODES)
    chat_template: str = setting("auto", "auto, none, llama2, vicuna, longchat or FILE.jinja.")
    thinking: bool = setting(True, "Leave a template's thinking block on; --no-thinking asks for none.")
    early_stop: bool = setting(True, "Stop an answer once its letter cannot change.")

    @classmethod
    def unused(cls) -> frozenset[str]:
        """None: letters are scored as losses, all else is answered."""
        return frozenset()

    def needed(self) -> str:
        """Log-likelihoods for letters, else texts."""
        return "Scorer" if self.scoring == LETTERS else self.needs

    def check(self, common: Common) -> None:
        """Refuse combinations that are no protocol."""
        super().check(common)
        if self.cot and self.no_context:
            raise E2BenchError("--cot and --no-context are two protocols of LongBench v2; give one of them")
        if self.scoring != LETTERS:
            return
        defaults = type(self)()
        for name in _NOT_LETTERS:
            if getattr(self, name) != getattr(defaults, name):
                raise E2BenchError(f"--scoring letters is lm-eval's own protocol, without {flag(name)}; leave that out")
        if common.scale is not None and common.scale.kind == PER_INPUT:
            raise E2BenchError(f"--scoring letters has one scale a run: give a number or auto, not {PER_INPUT}")

    def inputs(self, common: Common) -> Inputs:
        """Questions and prompts, checked."""
        from e2bench.experiments.questions import read_examples

        path, source = self._data_file()
        examples = read_examples(path, self.limit, whole=self.data is None)
        demo = path.parent if source.kind == DEMO else None
        texts, prompts = ({}, LM_EVAL) if self.scoring == LETTERS else self._texts(demo)
        return Inputs(examples, texts, prompts, file_hashes([path]), source)

    def plan(self, model: Any, rule: ScaleRule, common: Common, inputs: Inputs) -> Plan:
        """Every question; answers are read by the official rule, or letters are ranked by lm-eval's."""
        from e2bench.tasks.longbench2 import NAME, VERSION

        shared: dict[str, Any] = {"source": inputs.source, "data": inputs.data}
        resolved = {
            "versions": {NAME: VERSION},
            "limit": self.limit,
            "scoring": self.scoring,
            "prompts": inputs.prompts,
        }
        if self.scoring == LETTERS:
            from e2bench.experiments.letters import plan_of as letters_plan

            return letters_plan(inputs.examples, model, rule, common, resolved=resolved, **shared)
        from e2bench.experiments.answers import plan_of, wrapper_of
        from e2bench.experiments.questions import questions_of
        from e2bench.tasks.longbench2 import INPUT_LIMIT

        def kept(window: int | None, budget: int) -> int:
            most = self.input_limit or INPUT_LIMIT
            return most if window is None else min(most, window - budget)

        return plan_of(
            questions_of(inputs.examples, inputs.texts),
            model,
            rule,
            common,
            limit=kept,
            cut=JOINED if self.truncation == OFFICIAL else self.truncation,
            wrapper=wrapper_of(model, common, self.chat_template, thinking=self.thinking),
            early_stop=self.early_stop,
            resolved={
                **resolved,
                "input_limit": self.input_limit,
                "truncation": self.truncation,
                "context": not self.no_context,
                "cot": self.cot,
            },
            **shared,
        )

    def _texts(self, demo: Path | None) -> tuple[dict[str, str], Any]:
        """The protocol's prompts by file, and what run.json says of them. demo: folder of the demo data, with some."""
        from e2bench.data.fetch import fetch
        from e2bench.experiments.questions import read_prompts
        from e2bench.tasks.corpora import LONGBENCH2_PROMPTS
        from e2bench.tasks.longbench2 import ANSWER, COT, COT_ANSWER, NO_CONTEXT

        names = (COT, COT_ANSWER) if self.cot else (NO_CONTEXT,) if self.no_context else (ANSWER,)
        if (given := self.prompts or demo) is not None:
            folder = check_folder(given, f"--prompts takes a folder with {' and '.join(names)}")
            paths = {name: folder / name for name in names}
        else:
            paths = {name: fetch(LONGBENCH2_PROMPTS[name]) for name in names}
        texts, own = read_prompts(paths)
        if own and given != demo:
            say(f"{', '.join(own)}: prompts of your own, not LongBench v2's: not to be read beside published numbers")
        return texts, own or OFFICIAL

    def _data_file(self) -> tuple[Path, DataSource]:
        """data.json: in the folder given, the demo one, or the cached public one."""
        if self.data is None:
            from e2bench.data.fetch import fetch, is_verified
            from e2bench.tasks.corpora import find

            archive = find(self.name)
            fetched = fetch(archive)
            return fetched, DataSource(PUBLIC, self.benchmark, is_verified(archive, fetched))
        if str(self.data) == DEMO:
            return demo_folder(self.name) / DATA, DataSource(DEMO)
        check_folder(self.data, f"--data takes a folder with {DATA}, or demo")
        if not (self.data / DATA).is_file():
            raise DataError(f"{self.data} has no {DATA}; --data takes a folder with LongBench v2's {DATA}")
        return self.data / DATA, DataSource(OWN, self.data.resolve().name)

    def folder_name(self, model: str, rule: ScaleRule, plan: Plan) -> str:
        """The protocol is part of the name: its lines are other ones."""
        given = [name for name, on in (("cot", self.cot), ("no-context", self.no_context)) if on]
        kind = [LETTERS] if self.scoring == LETTERS else given
        return "-".join([default_folder(self.name, model, rule, plan.window), *kind])

    # stored lines

    @classmethod
    def summarise(cls, folder: Path, **options: Any) -> dict[str, Any]:
        """Both accuracies of a folder's one file, whole and by difficulty, length and domain."""
        from e2bench.experiments.four_choices import scores_of

        names = names_of(folder)
        if len(names) != 1:
            found = f"{len(names)} files ({', '.join(names[:3])}, …)" if names else "no .jsonl file"
            raise DataError(f"{folder} holds {found}; a run of LongBench v2 is a folder with one file of lines")
        run = read_run(folder) if (folder / RUN).exists() else {}
        return scores_of(stored_rows(folder, names[0]), str(folder / f"{names[0]}.jsonl"), run.get("resolved") or {})

    @classmethod
    def samples(cls, folder: Path, name: str, lines: Sequence[Line], *, strict: bool) -> Iterator[tuple[Line, Sample]]:
        """Responses with their grade. With `strict` raises DataError naming a bad line."""
        from e2bench.experiments.four_choices import grade, name_of

        for number, line in enumerate(lines, 1):
            score = None
            try:
                if line.get("finish") != "error":
                    score = grade(line, f"{folder / name}.jsonl:{number}").plain
            except E2BenchError:
                if strict:
                    raise
            said = [line[field] for field in ("response_cot", "response") if field in line] or [line.get("pred")]
            label = str(line["_id"])
            text = "\n\n".join(map(str, said))
            yield line, Sample(name_of(line), label, score, line["answer"], text, label, score and 100 * score)

    @classmethod
    def table(cls, scores: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
        """Both accuracies, whole and by group."""
        from e2bench.experiments.four_choices import rows

        return ["", "accuracy", "95 %", "compensated", "no answer", "scored"], rows(scores)
