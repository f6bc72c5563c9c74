"""Public data sets that load without a script: where they are, at which revision, with which checksum."""

from __future__ import annotations

from e2bench.data.fetch import Archive
from e2bench.errors import UnknownName
from e2bench.tasks.longbench2 import PROMPT_SHA256, REVISION

OWN_TEXT = "files of your own under `data` in the recipe"

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
            bytes=114_000_000,  # as the hub's listing at this commit rounds it
        ),
        Archive(
            "longbench2",
            "zai-org/LongBench-v2",
            "data.json",
            "2b48e494f2c7a2f0af81aae178e05c7e1dde0fe9",  # this and the size are read off public code that fetched it
            "15d61c22d92c96900b3c4948b6aeea218d3214b676a65df48e7b8555604c7fe2",
            None,
            "LongBench v2, 503 questions (formerly THUDM/LongBench-v2), and its prompts from GitHub",
            without="--data FOLDER with its data.json, and --prompts FOLDER with the prompts; or --data demo",
            bytes=465_490_535,
        ),
        Archive(
            "proof-pile",
            "hoskinson-center/proof-pile",
            "test/proofpile_test.jsonl.gz",
            "490b980249446f2f3bd2df3a8cf085d0f2de240a",
            None,
            None,
            "proof-pile's test split, read as a file (its loading script is not run)",
            without="--data FILE (documents of your own) or --data demo (comes with e2bench)",
        ),
    )
}


# What RULER's samples are made from (tasks/ruler.py), by what `Sources` calls it. Its own script fetches the essays page
# by page from addresses whose texts change; these are the ones that lm-eval's port reads.
RULER = {
    archive.name.removeprefix("ruler-"): archive
    for archive in (
        Archive(
            "ruler-essays",
            "baber/paul_graham_essays",
            "essays.parquet",
            "792d672b77d1a67720f7e9820d646358fc18792e",
            "825448033be010042ffd6fc77c32bbcab61f2ef63196f0fc4bfbf5b388a1660e",
            None,
            "essays by Paul Graham",
            part_of="ruler",
        ),
        Archive(
            "ruler-hotpotqa",
            "namlh2004/hotpotqa",
            "hotpot_dev_distractor_v1.json",
            "7e54db4656209750ff487f6fdf8e39a66dba136b",
            "e3da074df24e8369009918aa5cdbdd254dadcde4c63f7569d36afd6f2268caa8",
            None,
            "HotpotQA's development set, distractor setting (CC BY-SA 4.0), from the mirror that RULER names",
            part_of="ruler",
            bytes=61_065_698,  # of the file with this SHA-256, as public code that checks it says
        ),
        Archive(
            "ruler-squad",
            "SQuAD",
            "dev-v2.0.json",
            "2.0",
            "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
            None,
            "SQuAD 2.0's development set (CC BY-SA 4.0)",
            "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json",
            "ruler",
            bytes=4_370_528,  # likewise
        ),
        Archive(
            "ruler-english_words",
            "NVIDIA/RULER",
            "english_words.json",
            "c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a",
            "affcd6d45fdf3cc843d585c99c97ad615094e760e6c4756b654bab6c73bc2eca",
            None,
            "RULER's word list for cwe in long windows (Apache-2.0)",
            "https://media.githubusercontent.com/media/NVIDIA/RULER/c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a/"
            "scripts/data/synthetic/json/english_words.json",
            "ruler",
            bytes=8_564_991,  # likewise
        ),
        Archive(
            "ruler-punkt",
            "nltk/nltk_data",
            "punkt_tab.zip",
            "4f15a3d89eefe9748ec1c05be495d91289197155",
            "e57f64187974277726a3417ca6f181ec5403676c717672eef6a748a7b20e0106",
            "punkt_tab/english/*",
            "NLTK's sentence tokenizer",
            "https://raw.githubusercontent.com/nltk/nltk_data/4f15a3d89eefe9748ec1c05be495d91289197155/"
            "packages/tokenizers/punkt_tab.zip",
            "ruler",
            bytes=4_319_076,  # likewise
        ),
    )
}


# LongBench v2's prompts, by their file's name.
LONGBENCH2_PROMPTS = {
    name: Archive(
        f"longbench2-{name.removesuffix('.txt')}",
        "THUDM/LongBench",
        name,
        REVISION,
        sha256,
        None,
        "a prompt of LongBench v2",
        f"https://raw.githubusercontent.com/THUDM/LongBench/{REVISION}/prompts/{name}",
        "longbench2",
        f"--prompts FOLDER with the files of github.com/THUDM/LongBench/tree/{REVISION[:7]}/prompts, or --data demo",
    )
    for name, sha256 in PROMPT_SHA256.items()
}


# What the paper trains on (section 5.1), as near as public files come: its mixture and its copies are not published.
# Licences are what each data set's card says. Recipes name the same files.
TRAINING = {
    archive.name: archive
    for archive in (
        Archive(
            "pile",
            "monology/pile-uncopyrighted",
            "train/00.jsonl.zst",
            "3be90335b66f24456a5d6659d9c8d208c0357119",
            None,
            None,
            "the beginning of the Pile without its copyrighted parts (licence: other)",
            without=OWN_TEXT,
            megabytes=6000,
        ),
        Archive(
            "sharegpt",
            "anon8231489123/ShareGPT_Vicuna_unfiltered",
            "ShareGPT_V3_unfiltered_cleaned_split.json",
            "192ab2185289094fc556ec8ce5ce1e8e587154ca",
            "35f0e213ce091ed9b9af2a1f0755e9d39f9ccec34ab281cd4ca60d70f6479ba4",  # as public code that checks it says
            None,
            "ShareGPT conversations (Apache-2.0, says whoever collected them)",
            without=OWN_TEXT,
            bytes=672_837_942,  # likewise
        ),
        Archive(
            "arxiv-summaries",
            "ccdv/arxiv-summarization",
            "document/train-00000-of-00015.parquet",
            "240aaf1a969b3f8cd0ade6986bfad0cd730ee288",
            None,
            None,
            "arXiv articles and abstracts of Cohan et al. 2018, part 1 of 15 (no licence named)",
            without=OWN_TEXT,
            bytes=227_000_000,  # as the hub's listing at this commit rounds it
        ),
        Archive(
            "pubmed-summaries",
            "ccdv/pubmed-summarization",
            "document/train-00000-of-00005.parquet",
            "6b30a2cae59b11ed77cb19959bffccbbd18e1106",
            None,
            None,
            "PubMed articles and abstracts of Cohan et al. 2018, part 1 of 5 (no licence named)",
            without=OWN_TEXT,
            bytes=208_000_000,  # likewise
        ),
    )
}


def published(repo: str, filename: str, revision: str | None) -> Archive | None:
    """What is known about a file of the hub, if it is one of training's."""
    known = (repo, filename, revision)
    return next((one for one in TRAINING.values() if (one.repo, one.filename, one.revision) == known), None)


def find(name: str) -> Archive:
    """The public data set of that name. Raises UnknownName."""
    if name not in DATASETS:
        raise UnknownName("data set", name, list(DATASETS))
    return DATASETS[name]


# Of data sets of several files.
ABOUT = {"ruler": "what RULER's samples are made from: essays, questions, a word list, a sentence tokenizer"}


def every_set() -> list[Archive]:
    """All files of all public data sets."""
    return [*DATASETS.values(), *RULER.values(), *LONGBENCH2_PROMPTS.values(), *TRAINING.values()]


def find_all(name: str) -> list[Archive]:
    """The public data set of that name, all its files. Raises UnknownName."""
    every = every_set()
    found = [archive for archive in every if name in (archive.name, archive.part_of)]
    if not found:
        raise UnknownName("data set", name, list(dict.fromkeys(archive.part_of or archive.name for archive in every)))
    return found
