"""docs/files.md and docs/reference/recipes.md name the fields that are really written and read, and no others."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2bench.reporting import write_report
from e2bench.tasks.demo import corpus_file, write_longbench
from e2bench.train.data import Source
from e2bench.train.recipe import Lora, Recipe

DOCS = Path(__file__).parents[1] / "docs"
PIQA = {"goal": "To warm water", "sol1": "put it on a stove", "sol2": "put it into a freezer", "label": 0}
V2 = dict.fromkeys(("_id", "domain", "sub_domain", "question", "context", *(f"choice_{x}" for x in "ABCD")), "a text")
V2 |= {"difficulty": "easy", "length": "short", "answer": "A"}
V2_PROMPT = "$DOC$ $Q$ $C_A$ $C_B$ $C_C$ $C_D$ $COT$"
QUESTION = {"question": "where is the sun", "answer": ["in the sky"]}
RACE = {"article": "The sun is hot.", "question": "What is hot?", "options": ["sun", "ice"], "answer": "A"}
PROFILE = [
    {"method": method, "length": length, "window": 256, "seconds_per_step": 1.0, "peak_bytes": 1, "device": "cpu"}
    | {"attention": "sdpa", "precision": "bfloat16", "compile": False}
    for method, length in (("pi", 256), ("e2", 128))
]
CODE = re.compile(r"`([^`]+)`")


def sections(page: str) -> dict[str, list[list[str]]]:
    """Heading: the rows of the tables below it, as cells."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| `"):
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def first_code(cell: str) -> str:
    found = CODE.search(cell)
    assert found is not None
    return found.group(1)


FIELDS = {
    heading: {first_code(row[0]): row[-1].strip(" |") for row in rows} for heading, rows in sections("files.md").items()
}


@pytest.fixture(scope="module")
def made(tiny_folder: Path, engine_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every experiment and a training, small enough for seconds, one folder each."""
    from e2bench.cli import app

    root = tmp_path_factory.mktemp("made")
    patch = pytest.MonkeyPatch()
    patch.setenv("E2BENCH_CACHE", str(root / "cache"))
    patch.chdir(root)
    data = write_longbench(root / "longbench-data", examples=2)
    texts = corpus_file()
    told = root / "told.jsonl"
    told.write_text(json.dumps({"text": "What is the pass key? " * 9}) + "\n", encoding="utf-8")
    (root / "short-data").mkdir()
    for name, row in (("piqa", PIQA), ("nq_open", QUESTION), ("race_high", RACE)):
        (root / "short-data" / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * 2, encoding="utf-8")

    (root / "longbench2-data").mkdir()
    (root / "longbench2-data" / "data.json").write_text(json.dumps([V2]), encoding="utf-8")
    for name in ("0shot_cot.txt", "0shot_cot_ans.txt"):
        (root / "longbench2-data" / name).write_text(V2_PROMPT, encoding="utf-8")

    def e2bench(*arguments: object) -> None:
        app([str(argument) for argument in arguments], standalone_mode=False)

    recipe = [
        f"base={tiny_folder}",
        "native_window=128",
        "train_window=128",
        f"data=[{{files: [{texts}]}}, {{files: [{told}], weight: 3}}]",
        "steps=2",
    ]
    recipe += [
        "batch_size=1",
        "save_every=1",
        "log_every=1",
        "sharding=none",
        "warmup_steps=0",
        "gradient_checkpointing=false",
    ]
    e2bench("train", "llama2-7b", *recipe, "--out", "training")
    model = ("--model", "training")
    tasks = ("--tasks", "gov_report,trec,qasper", "--data", data)
    e2bench(
        "longbench", *model, *tasks, "--limit", 2, "--window", 600, "--tokenizer", tiny_folder, "--out", "longbench"
    )
    e2bench("score", "longbench", "--rouge-score")
    questions = ("--data", "longbench2-data")
    thoughts = ("--cot", "--prompts", "longbench2-data", "--scale", 9)
    e2bench("longbench2", *model, *questions, *thoughts, "--out", "longbench2-cot")
    e2bench("longbench2", *model, *questions, "--scoring", "letters", "--out", "longbench2-letters")
    row = {"task": "own", "data": str(data / "trec.jsonl"), "prompt": "{input}", "metric": "qa_f1", "max_new_tokens": 4}
    (root / "own.yaml").write_text(json.dumps(row), encoding="utf-8")  # JSON is YAML
    e2bench("longbench", *model, "--include", "own.yaml", "--limit", 1, "--window", 600, "--out", "own")
    lengths = ("--lengths", "128,256", "--docs", 1, "--max-windows", 1, "--stride", 64)
    e2bench("ppl", *model, *lengths, "--extrapolate", "--token-losses", "--out", "ppl")
    for trials in (1, 2):  # the second call continues the first one's run
        e2bench("passkey", *model, "--lengths", 512, "--depths", 1, "--trials", trials, "--out", "passkey")
    engine = ("--engine", "vllm", "--engine-command", engine_program)
    e2bench("passkey", *engine, "--lengths", 512, "--depths", 1, "--trials", 1, "--out", "engine")
    e2bench("ruler", *model, "--lengths", 1024, "--tasks", "vt,niah_single_1", "--samples", 1, "--out", "ruler")
    short = ("--lengths", 384, "--depths", 1, "--trials", 1)
    e2bench("needle", *model, *short, "--data", "demo", "--batch-invariant", "--out", "needle")
    e2bench("attention", *model, "--lengths", 256, "--keys", "short", "--keep-heads", "--out", "attention")
    for suite in ("paper", "lm-eval"):
        tasks = ("--tasks", "piqa") if suite == "lm-eval" else ()
        e2bench("short", *model, *tasks, "--suite", suite, "--data", "short-data", "--out", f"short-{suite}")
    for step in (1, 2):
        e2bench("ppl", "--model", f"training/checkpoint-{step}", *lengths, "--scale", "auto", "--out", f"step-{step}")
    e2bench("export", *model, "--scale", 2, "--out", "exported")
    patch.undo()
    return root


def read(*paths: Path) -> list[Any]:
    """The JSON values of files, one a line of `.jsonl` files."""
    values: list[Any] = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        values += [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    assert values
    return values


def names_in(value: Any, documented: set[str], before: str = "") -> Iterator[str]:
    """Names of the fields of a value as the page writes them, as deep as the page goes."""
    if isinstance(value, list):
        for entry in value:
            yield from names_in(entry, documented, f"{before}[]")
        return
    assert isinstance(value, dict), before
    for key, inner in value.items():
        path = f"{before}.{key}" if before else key
        any_key = f"{before}.*" if before else "*"
        if not _known(path, documented) and _known(any_key, documented):
            path = any_key
        deeper = any(name.startswith((f"{path}.", f"{path}[]")) for name in documented)
        if deeper and isinstance(inner, dict | list):
            yield from names_in(inner, documented, path)
        else:
            yield path


def _known(path: str, documented: set[str]) -> bool:
    return any(name == path or name.startswith((f"{path}.", f"{path}[]")) for name in documented)


def compare(heading: str, values: list[Any]) -> None:
    """The section's fields are those of the values; those that are "Only …" somewhere at least once."""
    documented = FIELDS[heading]
    found = [set(names_in(value, set(documented))) for value in values]
    written = set[str]().union(*found)
    assert written == set(documented), f"{heading}: {sorted(written ^ set(documented))}"
    for name, meaning in documented.items():
        if not meaning.startswith("Only") and not name.endswith("*") and "*" not in name:
            assert all(name in one for one in found), f"{heading}: {name} is not always there; write Only …"


V2_RUNS = ("longbench2-cot", "longbench2-letters")
EXPERIMENTS = ("longbench", "own", *V2_RUNS, "ruler", "ppl", "passkey", "engine", "needle", "attention")
EXPERIMENTS += ("short-paper", "short-lm-eval")
FILES: dict[str, Callable[[Path], list[Path]]] = {
    "run.json": lambda root: [root / name / "run.json" for name in EXPERIMENTS],
    "LongBench prediction lines": lambda root: [*(root / "longbench").glob("*.jsonl")],
    "LongBench v2 lines": lambda root: [path for name in V2_RUNS for path in (root / name).glob("*.jsonl")],
    "RULER lines": lambda root: [*(root / "ruler").glob("*.jsonl")],
    "Perplexity lines": lambda root: [root / "ppl" / "ppl.jsonl"],
    "Passkey lines": lambda root: [root / "passkey" / "passkey.jsonl"],
    "Needle lines": lambda root: [root / "needle" / "needle.jsonl"],
    "Attention lines": lambda root: [root / "attention" / "attention.jsonl"],
    "Short benchmark lines": lambda root: [*root.glob("short-*/*.jsonl")],
    "scores.json of longbench": lambda root: [root / "longbench" / "scores.json"],
    "scores.json of longbench2": lambda root: [root / name / "scores.json" for name in V2_RUNS],
    "scores.json of ruler": lambda root: [root / "ruler" / "scores.json"],
    "scores.json of ppl": lambda root: [root / "ppl" / "scores.json"],
    "scores.json of passkey": lambda root: [root / "passkey" / "scores.json"],
    "scores.json of needle": lambda root: [root / "needle" / "scores.json"],
    "scores.json of attention": lambda root: [root / "attention" / "scores.json"],
    "scores.json of short": lambda root: [root / f"short-{suite}" / "scores.json" for suite in ("paper", "lm-eval")],
    "e2_config.json": lambda root: [
        root / "training" / "e2_config.json",
        root / "training/checkpoint-1/e2_config.json",
    ],
    "train.jsonl": lambda root: [root / "training" / "train.jsonl"],
    "e2bench_export.json": lambda root: [root / "exported" / "e2bench_export.json"],
}


@pytest.mark.parametrize("heading", FILES)
def test_the_page_names_the_fields_of_a_real_file(heading: str, made: Path) -> None:
    paths = [path for path in FILES[heading](made) if "-data" not in str(path.relative_to(made))]
    compare(heading, read(*paths))


def test_the_page_names_the_settings_that_decide_a_run(made: Path) -> None:
    rows = {first_code(row[0]): row for row in sections("files.md")["resolved in run.json"]}
    for name in EXPERIMENTS:
        (run,) = read(made / name / "run.json")
        experiment = run["experiment"]
        documented = {field for field, row in rows.items() if row[1] == "all" or experiment in row[1].split(", ")}
        optional = {field for field in documented if rows[field][2].startswith("Only")}
        assert documented - optional <= run["resolved"].keys() <= documented, name
    assert "tokenizer" in read(made / "longbench" / "run.json")[0]["resolved"]


def test_the_page_names_the_arrays_of_an_attention_run(made: Path) -> None:
    with np.load(made / "attention" / "attention-256.npz") as arrays:
        assert set(arrays.files) == set(FIELDS["attention-LENGTH.npz"])


def test_the_page_names_the_fields_of_a_profile(made: Path) -> None:
    source = (Path(__file__).parents[1] / "train" / "profiling.py").read_text(encoding="utf-8")
    assert all(f'"{key}"' in source for key in PROFILE[0])
    compare("profile.json", [PROFILE])


def test_the_page_names_the_columns_of_a_report(made: Path) -> None:
    (made / "profile").mkdir()
    (made / "profile" / "profile.json").write_text(json.dumps(PROFILE), encoding="utf-8")
    write_report(made, made / "report")
    headings = sections("report.md")["Columns of the CSV files"]
    documented = {file: CODE.findall(row[1])[0].split(", ") for row in headings for file in CODE.findall(row[0])}
    for path in (made / "report").glob("*.csv"):
        header = path.read_text(encoding="utf-8").splitlines()[0].split(",")
        if path.name in documented:
            named = documented[path.name]
            assert header[: len(named)] == named if named[-1] != "…" else header[: len(named) - 1] == named[:-1]
            assert len(header) == len(named) or named[-1] == "…", path.name
        else:
            assert path.stem.startswith("table") and header[0] == "source", path.name
    assert {file for file in documented if not (made / "report" / file).exists()} <= {"figure5.csv"}
    line = next(
        line for line in (DOCS / "report.md").read_text("utf-8").splitlines() if line.startswith("`report.json")
    )
    assert set(read(made / "report" / "report.json")[0]) == set(CODE.findall(line)[1].split(", "))


RECIPE_TABLES = ("What to train", "Positions", "Data", "Optimisation", "Machine and checkpoints")


def test_the_page_of_recipes_names_every_key_and_its_default() -> None:
    tables = sections("reference/recipes.md")
    rows = [row for heading in RECIPE_TABLES for row in tables[heading]]
    sources = [row for row in rows if first_code(row[0]) in {f.name for f in dataclasses.fields(Source)}]
    adapters = [row for row in rows if first_code(row[0]) in {f.name for f in dataclasses.fields(Lora)}]
    check_keys([row for row in rows if row not in sources and row not in adapters], Recipe)
    check_keys(sources, Source)
    check_keys(adapters, Lora)


def check_keys(rows: list[list[str]], kind: type) -> None:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    assert sorted(first_code(row[0]) for row in rows) == sorted(fields)
    for row in rows:
        name, shown = first_code(row[0]), row[1].strip("`")
        default = fields[name].default
        if default is dataclasses.MISSING:
            assert shown in ("needed", "", "the file's name"), f"{name}: {shown}"
        elif default in ("", None):
            assert shown in ("", "null", "the base's"), f"{name}: {shown}"
        else:
            assert shown == (json.dumps(default) if isinstance(default, bool) else str(default)), f"{name}: {shown}"
