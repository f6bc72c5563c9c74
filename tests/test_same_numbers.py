"""The same numbers everywhere: whatever the place, the language, the neighbours' packages or the batches.

The processes below run a small bench and leave its files; what may differ between two such folders is the time taken.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2bench.files import read_rows
from e2bench.tasks.demo import write_longbench

ROOT = Path(__file__).parents[1]
TASKS = "narrativeqa,gov_report,trec,passage_count,lcc,multifieldqa_zh,vcsum"  # every kind of metric
# A small bench in one process: starting one a command would cost seconds of imports each.
BENCH = """
import contextlib, json, locale, os, sys
from pathlib import Path
locale.setlocale(locale.LC_ALL, "")
from e2bench import cli
from e2bench.tasks.demo import write_longbench
from e2bench.train.e2 import E2Settings, draw

def run(*arguments):
    sys.argv = ["e2bench", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        assert ended.code == 0, (arguments, ended.code)

model, text, out = sys.argv[1:]
write_longbench(Path(out) / "data", examples=2)
shared = ["--model", model, "--seed", "3"]
run("longbench", *shared, "--data", out + "/data", "--tasks", TASKS, "--window", "600", "--out", out + "/longbench")
run("ppl", *shared, "--data", text, "--lengths", "128,256", "--stride", "32", "--min-tokens", "1", "--docs", "2",
    "--out", out + "/ppl")
run("passkey", *shared, "--lengths", "256,512", "--depths", "3", "--trials", "2", "--out", out + "/passkey")
os.chdir(out)  # compare prints the folders' names
for name, runs in (("score", ["longbench"]), ("compare", ["longbench", "longbench"])):
    with open(f"{name}.json", "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        run(name, *runs, "--json")
settings = E2Settings(native_window=128, train_window=128, per_sample=True, seed=3)
draws = [[d.scale, d.offset] for d in (draw(settings, step, row) for step in range(50) for row in range(4))]
Path("draws.json").write_text(json.dumps(draws), encoding="utf-8")
""".replace("TASKS", repr(TASKS))
# Packages that LongBench's own scorer takes its formulas from, when they are there, here with formulas of nobody's.
SHADOWS = {
    "rouge": "class Rouge:\n    def get_scores(self, *a, **k): return [{'rouge-l': {'f': 0.123}}]\n",
    "Levenshtein": "def ratio(a, b): return 0.123\n",
    "rapidfuzz": "class fuzz:\n    ratio = staticmethod(lambda a, b: 12.3)\n",
    "fuzzywuzzy": "class fuzz:\n    ratio = staticmethod(lambda a, b: 12)\n",
    "thefuzz": "class fuzz:\n    ratio = staticmethod(lambda a, b: 12)\n",
}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def bench(model: Path, text: Path, out: Path, *, cwd: Path, **variables: str) -> dict[str, Any]:
    """What a process with these environment variables leaves, without the times."""
    settled = ("LC_ALL", "LANG", "LANGUAGE", "TZ", "PYTHONHASHSEED", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in settled} | variables
    where = os.path.relpath(out, cwd)
    done = subprocess.run(
        [sys.executable, "-c", BENCH, str(model), str(text), where],
        cwd=cwd,
        env=environment,
        capture_output=True,
        check=False,
    )
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert done.returncode == 0, said[-3000:]
    return numbers(out)


def numbers(out: Path) -> dict[str, Any]:
    """File name -> its bytes, or its lines without `seconds`; of run.json what names the run."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if path.name == "run.json":
            run = json.loads(path.read_text(encoding="utf-8"))
            found[name] = [run["resolved"], run["rope"], run["model"]["fingerprint"]]
        elif path.suffix == ".jsonl" and not name.startswith("data/"):
            lines = [json.loads(line) for line in path.read_bytes().splitlines()]
            # as text: 1 and 1.0, and the digits of a float, count as well
            found[name] = [json.dumps({k: v for k, v in line.items() if k != "seconds"}) for line in lines]
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two documents."""
    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    words = ["Anna keeps the map. 小明把地图放在图书馆里。 ", "def add(first, second):\n    return first + second\n"]
    lines = [json.dumps({"text": one * 60}, ensure_ascii=False) + "\n" for one in words]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def expected(tiny_folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The files of a run in this environment, in UTF-8."""
    folder = tmp_path_factory.mktemp("plain")
    found = bench(tiny_folder, text, folder / "out", cwd=folder, PYTHONUTF8="1", PYTHONHASHSEED="0")
    assert len(found["longbench/trec.jsonl"]) == 2 and len(found["passkey/passkey.jsonl"]) == 12
    return found


def shadowing(folder: Path) -> str:
    """A PYTHONPATH with the packages of SHADOWS in front of all installed ones."""
    for name, source in SHADOWS.items():
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
    return str(folder)


def comma_locale(folder: Path) -> dict[str, str]:
    """Variables of a locale that writes 0,5 for one half, made here; the test is skipped where none can be made."""
    if shutil.which("localedef") is None:
        pytest.skip("no localedef")
    name = folder / "de_DE.UTF-8"
    made = subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", str(name)], capture_output=True, check=False)
    if not name.exists():
        pytest.skip(f"localedef cannot make de_DE: {made.stderr.decode(errors='replace')[:100]}")
    return {"LOCPATH": str(folder), "LC_ALL": "de_DE.UTF-8"}


def test_everything_else_at_once_changes_no_number(
    tiny_folder: Path, text: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    """A plain C locale with ASCII streams, another time zone, hash seed and folder, other packages; a rerun besides."""
    folder = tmp_path / "ein Ordner – 文件夹 (2)"
    folder.mkdir()
    packages = tmp_path / "packages"
    packages.mkdir()
    other = {**ASCII, "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "4711", "PYTHONPATH": shadowing(packages)}
    found = bench(tiny_folder, text, tmp_path / "out", cwd=folder, **other)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.slow
def test_a_decimal_comma_changes_no_number(
    tiny_folder: Path, text: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    variables = comma_locale(tmp_path)
    asked = "import locale; locale.setlocale(locale.LC_ALL, ''); print(locale.str(0.5))"
    half = subprocess.run([sys.executable, "-c", asked], env=os.environ | variables, capture_output=True, check=True)
    assert half.stdout.strip() == b"0,5"  # the locale is really in force
    found = bench(tiny_folder, text, tmp_path / "out", cwd=tmp_path, **variables)
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}, id="rerun"),
        pytest.param({"PYTHONHASHSEED": "1"}, id="hash-seed"),
        pytest.param({"LC_ALL": "C"}, id="C-locale"),
        pytest.param(ASCII, id="ASCII-streams"),
        pytest.param({"TZ": "America/St_Johns"}, id="time-zone"),
        pytest.param({"PYTHONPATH": "SHADOWS"}, id="packages"),
        pytest.param({"OMP_NUM_THREADS": "2"}, id="two-threads"),
    ],
)
def test_each_alone_changes_no_number(
    tiny_folder: Path, text: Path, expected: dict[str, Any], tmp_path: Path, variables: dict[str, str]
) -> None:
    if "PYTHONPATH" in variables:
        (tmp_path / "packages").mkdir()
        variables = {"PYTHONPATH": shadowing(tmp_path / "packages")}
    found = bench(tiny_folder, text, tmp_path / "out", cwd=tmp_path, **variables)
    assert [name for name in expected if found[name] != expected[name]] == []


# ---- batches and processes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three examples of every task."""
    return write_longbench(tmp_path_factory.mktemp("data"), examples=3)


def arguments(command: str, model: Path, text: Path, data: Path, out: Path, *more: str) -> list[str]:
    """A small run of a command."""
    own = {
        "longbench": ["--data", str(data), "--tasks", TASKS, "--window", "600"],
        "ppl": ["--data", str(text), "--lengths", "128,256", "--stride", "32", "--min-tokens", "1"],
        "passkey": ["--lengths", "256,512", "--depths", "3", "--trials", "2"],
    }
    return [command, "--model", str(model), "--dtype", "float32", *own[command], "--out", str(out), *more]


def lines_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every file's lines, without the time they took."""
    return {
        path.name: [{k: v for k, v in line.items() if k != "seconds"} for line in read_rows(path)]
        for path in sorted(folder.glob("*.jsonl"))
    }


@pytest.mark.parametrize("command", ["longbench", "passkey"])
def test_answers_and_scores_do_not_depend_on_the_batch_size(
    command: str, tiny_folder: Path, text: Path, data: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    for size in ("1", "3", "auto"):
        ended = cli(*arguments(command, tiny_folder, text, data, tmp_path / size, "--batch-size", size))
        assert ended.code == 0, ended.err
    single = lines_of(tmp_path / "1")
    assert sum(map(len, single.values())) >= 12
    assert lines_of(tmp_path / "3") == single and lines_of(tmp_path / "auto") == single
    scores = (tmp_path / "1" / "scores.json").read_bytes()
    assert (tmp_path / "3" / "scores.json").read_bytes() == scores == (tmp_path / "auto" / "scores.json").read_bytes()


def test_perplexity_does_not_depend_on_the_batch_size(
    tiny_folder: Path, text: Path, data: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    for size in ("1", "4"):
        ended = cli(*arguments("ppl", tiny_folder, text, data, tmp_path / size, "--batch-size", size))
        assert ended.code == 0, ended.err
    single, batched = (lines_of(tmp_path / size)["ppl.jsonl"] for size in ("1", "4"))
    for one, other in zip(single, batched, strict=True):
        # float32 matrix products of other shapes round differently, in the seventh digit of a loss
        assert other.pop("nll_sum") == pytest.approx(one.pop("nll_sum"), rel=1e-6)
        assert other == one


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ppl", "passkey"])  # longbench: test_processes.py
def test_two_processes_leave_the_numbers_of_one(
    command: str, tiny_folder: Path, text: Path, data: Path, tmp_path: Path
) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for launcher, out in (([], "one"), (torchrun, "two")):
        wanted = arguments(command, tiny_folder, text, data, tmp_path / out, "--batch-size", "1")
        started = [sys.executable, *launcher, "-m", "e2bench", *wanted]
        done = subprocess.run(started, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    assert lines_of(tmp_path / "two") == lines_of(tmp_path / "one")
    assert (tmp_path / "two" / "scores.json").read_bytes() == (tmp_path / "one" / "scores.json").read_bytes()
