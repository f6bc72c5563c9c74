"""Run folders that others made: lines, run.json and scores.json with values of any kind."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_cases import bounded_memory, case, hostile, little_memory, mutated, numbers, objects, texts, values
from hypothesis import strategies as st
from report_folders import attention_run, longbench_run, passkey_run, ppl_run, short_run

from e2bench.errors import DataError
from e2bench.experiments.compare import compare
from e2bench.experiments.stored import score_folder
from e2bench.files import read_json, read_rows
from e2bench.reporting import write_report
from e2bench.reporting.runs import scan
from e2bench.runs.folder import RunFolder
from e2bench.runs.lines import merged
from e2bench.runs.manifest import manifest

__all__ = ["little_memory"]
LINES: dict[str, dict[str, Any]] = {
    "longbench": {
        "pred": "a",
        "answers": ["a"],
        "all_classes": ["a", "b"],
        "length": 3,
        "_id": "1",
        "finish": "eos",
        "kept_tokens": 3,
        "prompt_tokens": 3,
    },
    "ppl": {
        "document": "d",
        "window": 512,
        "scale": 1,
        "method": "linear",
        "stride": 8,
        "protocol": "press",
        "nll_sum": 3.5,
        "scored_tokens": 9,
        "windows": 1,
        "mean_sum": 0.4,
    },
    "passkey": {
        "length": 512,
        "scale": 1,
        "depth": 0.5,
        "trial": 0,
        "key": "1",
        "pred": "1",
        "success": True,
        "strict": 1,
    },
    "attention": {
        "length": 512,
        "scale": 1,
        "depth": 0.5,
        "trial": 0,
        "success": True,
        "gold_share": 0.4,
        "input_share": 0.1,
        "top_heads": [[0, 1, 0.5]],
        "answer": "a",
        "pred": "a",
        "npz": "attention-512.npz",
    },
    "short": {"_id": "1", "suite": "paper", "prediction": "a", "gold": "a", "correct": 1, "scale": 1, "scoring": "x"},
}
MANIFEST = manifest("longbench", settings={}, resolved={"scale": 8})
FILES = {"longbench": "trec", "short": "piqa"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def dumped(*objects: Any) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in objects)


def line_of(experiment: str) -> st.SearchStrategy[dict[str, Any]]:
    return objects({name: st.just(value) for name, value in LINES[experiment].items()})


runs = st.sampled_from(sorted(LINES)).flatmap(
    lambda name: st.tuples(st.just(name), st.lists(line_of(name), min_size=1, max_size=3))
)


def write_run(out: Path, experiment: str, lines: list[dict[str, Any]]) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    (out / f"{FILES.get(experiment, experiment)}.jsonl").write_bytes(dumped(*lines))
    (out / "run.json").write_bytes(dumped({"experiment": experiment, "resolved": {}}))


@hostile(1000, content=st.one_of(mutated(dumped(*LINES.values())), st.binary(max_size=60)))
def test_lines_of_any_bytes(folder: Path, content: bytes) -> None:
    (folder / "x.jsonl").write_bytes(content)
    with case(folder):
        assert all(isinstance(row, dict) for row in read_rows(folder / "x.jsonl"))
        merged(folder, "x")


@hostile(800, run=runs)
def test_runs_with_values_of_any_kind_are_scored_or_refused(
    folder: Path, run: tuple[str, list[dict[str, Any]]]
) -> None:
    write_run(folder / "run", *run)
    with case(folder):
        json.dumps(score_folder(folder / "run"))


@hostile(400, run=runs)
def test_runs_with_values_of_any_kind_are_compared_or_refused(
    folder: Path, run: tuple[str, list[dict[str, Any]]]
) -> None:
    write_run(folder / "run", *run)
    write_run(folder / "other", run[0], [LINES[run[0]]])
    with case(folder):
        json.dumps(compare(folder / "other", folder / "run"))


run_json = objects(
    {
        "experiment": st.sampled_from(sorted(LINES)),
        "resolved": st.just({"scale": 8}),
        "started": st.just("now"),
        "ended": st.none(),
    }
)


@hostile(500, content=st.one_of(run_json.map(dumped), mutated(dumped({"experiment": "longbench", "resolved": {}}))))
def test_run_json_of_any_kind_is_resumed_or_refused(folder: Path, content: bytes) -> None:
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_bytes(content)
    with case(folder), RunFolder(folder / "run", MANIFEST) as opened:
        opened.append("trec", {"_id": "1"})
    assert not (folder / "run" / ".lock").exists()


@hostile(
    400,
    lock=st.one_of(values.map(dumped), st.binary(max_size=20), objects({"host": texts, "pid": numbers}).map(dumped)),
)
def test_locks_of_any_kind_are_taken_over_or_named(folder: Path, lock: bytes) -> None:
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / "run").mkdir()
    (folder / "run" / ".lock").write_bytes(lock)
    with case(folder), RunFolder(folder / "run", MANIFEST):
        pass


# ---- reports


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good run of each kind."""
    folder = tmp_path_factory.mktemp("results")
    longbench_run(folder / "a", model="one", tasks=["qasper", "lcc"])
    ppl_run(folder / "b", [(512, 1, 2.9), (1024, 2, 2.7)], scale="auto")
    passkey_run(folder / "c", 512, (512, 1024))
    attention_run(folder / "d")
    short_run(folder / "e")
    return folder


@hostile(400, which=st.sampled_from("abcde"), name=st.sampled_from(["run.json", "scores.json"]), drawn=st.data())
def test_results_with_damaged_files_are_found_or_skipped(
    results: Path, folder: Path, which: str, name: str, drawn: st.DataObject
) -> None:
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(results / which, copy)
    content = (copy / name).read_bytes() if (copy / name).exists() else b"{}"
    known = {key: st.just(value) for key, value in json.loads(content).items()} or {"x": st.none()}
    damaged = drawn.draw(st.one_of(mutated(content), objects(known).map(dumped)))
    (copy / name).write_bytes(damaged)
    with case(folder):
        scan(copy)


@hostile(12, which=st.sampled_from("abcde"), name=st.sampled_from(["run.json", "scores.json"]), drawn=st.data())
def test_a_report_is_written_whatever_one_run_holds(
    results: Path, tmp_path_factory: pytest.TempPathFactory, which: str, name: str, drawn: st.DataObject
) -> None:
    copy = tmp_path_factory.mktemp("report")
    for one in sorted({"c", which}):
        shutil.copytree(results / one, copy / "results" / one)
    path = copy / "results" / which / name
    stored = read_json(path) if path.exists() else {"x": 1}
    path.write_bytes(dumped(drawn.draw(objects({key: st.just(value) for key, value in stored.items()}))))
    with case(copy):
        written = write_report(copy / "results", copy / "out")
        assert {one.parent for one in written} <= {copy / "out", copy / "out" / "samples"}


def test_an_npz_that_claims_terabytes_or_names_another_folder_is_not_taken(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "d", tmp_path / "results" / "d")
    shutil.copytree(results / "c", tmp_path / "results" / "c")
    stored = next((tmp_path / "results" / "d").glob("*.npz"))
    header = np.lib.format
    with zipfile.ZipFile(stored, "w") as archive, archive.open("rows.npy", "w") as member:
        header.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 4)})
        member.write(b"\0" * 100)
    with bounded_memory(400 << 20), case(tmp_path):
        write_report(tmp_path / "results", tmp_path / "out")
    assert (tmp_path / "out" / "index.html").exists()


def test_a_marker_that_names_files_elsewhere_removes_nothing(results: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    out = tmp_path / "out"
    write_report(results / "c", out)
    marker = json.loads((out / "report.json").read_text())
    marker["files"] += ["../victim.txt", str(victim), "..", "/"]
    (out / "report.json").write_text(json.dumps(marker))
    with case(out):
        write_report(results / "c", out)
    assert victim.read_text() == "mine"


def test_damage_is_named_with_its_folder(folder: Path) -> None:
    write_run(folder / "run", "ppl", [{"document": "d", "window": "x" * 9000}])
    with pytest.raises(DataError, match="has no field 'scale'"):
        score_folder(folder / "run")
