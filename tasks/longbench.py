"""The 21 tasks of LongBench v1 (arXiv 2308.14508; THUDM/LongBench at 2e00731).

Order as in the official pred.py, groups as in its README, budgets from dataset2maxlen.json, chat and first-line rules
from pred.py:63-82 and eval.py:53. The templates themselves are read at run time (e2bench.prompts.task.templates).
"""

from __future__ import annotations

from dataclasses import replace

from e2bench.errors import E2BenchError, UnknownName
from e2bench.prompts.task import Task
from e2bench.scoring.metrics import (
    Metric,
    classification,
    code_similarity,
    count,
    qa_f1,
    qa_f1_zh,
    retrieval,
    retrieval_zh,
    rouge_l,
    rouge_l_zh,
)

REPOSITORY = "THUDM/LongBench"
REVISION = "2e00731"

# SHA-256 (UTF-8) of each official template in dataset2prompt.json.
PROMPT_SHA256 = {
    "narrativeqa": "aada7ed24b06abace5b0045ac3bcfe06fc831a6cf434f0ecfd99fb7b3d299e1c",
    "qasper": "0fbdd123fe7f83d6d6a9c583ca28cb29d68e523bf8fec01a0cf2dcd11037775d",
    "multifieldqa_en": "20b4666a2de8a1f701bdb6c4e015fa9f8758d64b361d841f7766df6c9ceba770",
    "multifieldqa_zh": "344b3a4e557cd5470c661b3d6b374339717e1257a6c01f628d22322d4a554b94",
    "hotpotqa": "9ec4ae308865bd0c62af20b3dc7b12b31f2b447f55684bd88c1aa40f2f636deb",
    "2wikimqa": "9ec4ae308865bd0c62af20b3dc7b12b31f2b447f55684bd88c1aa40f2f636deb",
    "musique": "9ec4ae308865bd0c62af20b3dc7b12b31f2b447f55684bd88c1aa40f2f636deb",
    "dureader": "ae53329f51b17908e08b8c6bf366987282b8b38c0ee35275ebd7b79e9b30eff2",
    "gov_report": "91c25d585b189ced91c9280efcb4ecb5dcff9548cd4e3bfae66c68025b569e95",
    "qmsum": "dca23b678fe0183bbd9555b57947022aed1b85739da5ad7e1b4708dd0c71c409",
    "multi_news": "2af3f28c40b902e6535d4910510d51653613c49de9b2fc287c5958395061101d",
    "vcsum": "3e5d8241bc9b512eb4929c1ba80882a44f50b446bc2b1d9d79eff030dd10dc27",
    "trec": "0eff8bebdba99d91e9d7d91b6ab39455ac74648bea92c9255c9f68c62175b2db",
    "triviaqa": "00a802e6377e72fca39b169cf6c28893bedf23ba7286b03ecd15867c3e27a7c4",
    "samsum": "a68d884234907eefcaa0eacf7b2997f60fa46603988dceae6a44f9b49f045b3f",
    "lsht": "f3edabdf7fae53d6cadfa7a10f3574d114302161c46dacecd5d30763204bbbf3",
    "passage_count": "986550b6c61009c629a4535766d94b7b51e2b2b9e1ed169e4ecb54417466e964",
    "passage_retrieval_en": "39b96b7fa52bdd2aa2bde34ea199158505201b9a0a2c3ce94e80249293f60431",
    "passage_retrieval_zh": "c1e2346e245eb365bc33a1503cde2e473948a2aad51c3e4c72893e61ab074d60",
    "lcc": "6a1f24cf0bb83cd90f1fca8f0dd24801626c2aaea29db834ddc83b950e71190e",
    "repobench-p": "ee9ec182ea5ffeb70a7140d55baea97264a8612d88226d323afa90859c36240c",
}


def first_line_settled(text: str) -> bool:
    """The first line is complete: leading newlines do not count (the scorer drops them)."""
    return "\n" in text.lstrip("\n")


def code_line_settled(text: str) -> bool:
    """A complete line without a backtick, '#' or '//' stands there: the scorer takes the first such line."""
    complete = text.lstrip("\n").split("\n")[:-1]
    return any("`" not in line and "#" not in line and "//" not in line for line in complete)


def _task(
    name: str,
    group: str,
    language: str,
    metric: Metric,
    max_new_tokens: int,
    samples: int,
    source: str,
    *,
    chat: bool = True,
    first_line: bool = False,
    newline: bool = False,
    e: bool = False,
    repair: tuple[str, str] | None = None,
) -> Task:
    settled = first_line_settled if first_line else code_line_settled if group == "code" else None
    return Task(
        name=name,
        group=group,
        language=language,
        metric=metric,
        max_new_tokens=max_new_tokens,
        samples=samples,
        chat_template=chat,
        first_line_only=first_line,
        stop_at_newline=newline,
        in_longbench_e=e,
        settled=settled,
        source=source,
        prompt_sha256=PROMPT_SHA256[name],
        repair=repair,
        version="1",
    )


# What lm-eval 0.4.13's copies of six templates lost.
BLANK = ("{context}\n{input}", "{context}\n\n{input}")
SPACE = ("answer is:", "answer is: ")
NEWLINE = ("line of code:", "line of code:\n")

# fmt: off
LONGBENCH: tuple[Task, ...] = (
    _task("narrativeqa", "single_doc_qa", "en", qa_f1, 128, 200, "Literature, Film"),
    _task("qasper", "single_doc_qa", "en", qa_f1, 128, 200, "Science", e=True),
    _task("multifieldqa_en", "single_doc_qa", "en", qa_f1, 64, 150, "Multi-field", e=True),
    _task("multifieldqa_zh", "single_doc_qa", "zh", qa_f1_zh, 64, 200, "Multi-field"),
    _task("hotpotqa", "multi_doc_qa", "en", qa_f1, 32, 200, "Wikipedia", e=True),
    _task("2wikimqa", "multi_doc_qa", "en", qa_f1, 32, 200, "Wikipedia", e=True),
    _task("musique", "multi_doc_qa", "en", qa_f1, 32, 200, "Wikipedia"),
    _task("dureader", "multi_doc_qa", "zh", rouge_l_zh, 128, 200, "Baidu Search"),
    _task("gov_report", "summarization", "en", rouge_l, 512, 200, "Government report", e=True),
    _task("qmsum", "summarization", "en", rouge_l, 512, 200, "Meeting"),
    _task("multi_news", "summarization", "en", rouge_l, 512, 200, "News", e=True),
    _task("vcsum", "summarization", "zh", rouge_l_zh, 512, 200, "Meeting"),
    _task("trec", "few_shot", "en", classification, 64, 200, "Web question", chat=False, first_line=True, e=True),
    _task("triviaqa", "few_shot", "en", qa_f1, 32, 200, "Wikipedia, Web", chat=False, first_line=True, e=True, repair=BLANK),
    _task("samsum", "few_shot", "en", rouge_l, 128, 200, "Dialogue", chat=False, first_line=True, newline=True, e=True, repair=BLANK),
    _task("lsht", "few_shot", "zh", classification, 64, 200, "News", chat=False, first_line=True),
    _task("passage_count", "synthetic", "en", count, 32, 200, "Wikipedia", e=True, repair=SPACE),
    _task("passage_retrieval_en", "synthetic", "en", retrieval, 32, 200, "Wikipedia", e=True, repair=SPACE),
    _task("passage_retrieval_zh", "synthetic", "zh", retrieval_zh, 32, 200, "C4 Dataset"),
    _task("lcc", "code", "code", code_similarity, 64, 500, "Github", chat=False, e=True, repair=NEWLINE),
    _task("repobench-p", "code", "code", code_similarity, 64, 500, "Github repository", chat=False, e=True, repair=NEWLINE),
)
# fmt: on

# LongBench-E: 13 of the tasks on other samples, chosen for an even spread of lengths (files NAME_e.jsonl).
E_SAMPLES = {"qasper": 224, "multifieldqa_en": 150, "multi_news": 294}  # the other ten: 300
LONGBENCH_E = tuple(
    replace(task, name=f"{task.name}_e", samples=E_SAMPLES.get(task.name, 300))
    for task in LONGBENCH
    if task.in_longbench_e
)
EVERY_TASK = (*LONGBENCH, *LONGBENCH_E)
BY_NAME = {task.name: task for task in EVERY_TASK}
SELECTIONS = {
    "all": [t.name for t in LONGBENCH],
    "en": [t.name for t in LONGBENCH if t.language == "en"],
    "zh": [t.name for t in LONGBENCH if t.language == "zh"],
    "code": [t.name for t in LONGBENCH if t.language == "code"],
    "e": [t.name for t in LONGBENCH_E],
}


def select(names: str) -> list[Task]:
    """Tasks of a comma-separated list of names and of `all`, `en`, `zh`, `code`, `e` (LongBench-E); none twice."""
    wanted: set[str] = set()
    for name in filter(None, (part.strip().lower() for part in names.split(","))):
        if name not in SELECTIONS and name not in BY_NAME:
            raise UnknownName("task", name, [*SELECTIONS, *BY_NAME])
        wanted.update(SELECTIONS.get(name, [name]))
    if not wanted:
        raise E2BenchError("--tasks names no task; give all, en, zh, code, e or task names separated by commas")
    return [task for task in EVERY_TASK if task.name in wanted]
