"""Public data sets that load without a script: where they are, at which revision, with which checksum."""

from __future__ import annotations

from e2bench.data.fetch import Archive
from e2bench.errors import UnknownName
from e2bench.tasks.longbench2 import PROMPT_FILES, REVISION

DATASETS = {
    archive.name: archive
    for archive in (
        Archive(
            "longbench",
            "zai-org/LongBench",
            "data.zip",
            "5e628be450b7e67fb7ae6e201bd6d8f7056f7672",
            "cb45b11a4133c6bc1d6a44b0f8e701335ff1e543195db1103472e575857f7f64",
            "data/*.jsonl",
            "LongBench v1, all tasks and LongBench-E (formerly THUDM/LongBench)",
        ),
        Archive(
            "longbench2",
            "zai-org/LongBench-v2",
            "data.json",
            "main",
            None,
            None,
            "LongBench v2, 503 questions (formerly THUDM/LongBench-v2), and its prompts from GitHub",
            without="--data FOLDER with its data.json, and --prompts FOLDER with the files of "
            f"github.com/THUDM/LongBench/tree/{REVISION[:7]}/prompts",
            beside=PROMPT_FILES,
        ),
        Archive(
            "proof-pile",
            "hoskinson-center/proof-pile",
            "test/proofpile_test.jsonl.gz",
            "main",
            None,
            None,
            "proof-pile's test split, read as a file (its loading script is not run)",
        ),
    )
}


def find(name: str) -> Archive:
    """The public data set of that name. Raises UnknownName."""
    if name not in DATASETS:
        raise UnknownName("data set", name, list(DATASETS))
    return DATASETS[name]
