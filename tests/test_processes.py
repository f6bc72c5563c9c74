"""Two processes under torchrun leave the files of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from e2bench.files import read_json, read_rows
from e2bench.runs.lines import RUN
from e2bench.runs.processes import Processes
from e2bench.tasks.demo import write_longbench

TASKS = ("trec", "samsum", "lcc", "multifieldqa_zh")


def command(launcher: list[str], model: Path, data: Path, out: Path) -> list[str]:
    """A run of twelve prompts."""
    shared = ["--model", str(model), "--data", str(data), "--tasks", ",".join(TASKS), "--out", str(out)]
    own = ["--window", "320", "--scale", "4", "--batch-size", "2"]
    return [sys.executable, *launcher, "-m", "e2bench", "longbench", *shared, *own]


def lines_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every file's lines, without the time they took."""
    return {
        path.name: [{k: v for k, v in line.items() if k != "seconds"} for line in read_rows(path)]
        for path in sorted(folder.glob("*.jsonl"))
    }


def test_two_processes_leave_the_files_of_one(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_longbench(tmp_path / "data", examples=3)
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for launcher, out in (([], "one"), (torchrun, "two")):
        done = subprocess.run(
            command(launcher, tiny_folder, data, tmp_path / out),
            capture_output=True,
            text=True,
            timeout=300,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
    assert set(lines_of(tmp_path / "two")) == {f"{name}.jsonl" for name in TASKS}  # no file of a rank is left
    assert lines_of(tmp_path / "two") == lines_of(tmp_path / "one")
    assert read_json(tmp_path / "two" / "scores.json") == read_json(tmp_path / "one" / "scores.json")
    run = read_json(tmp_path / "two" / RUN)
    assert run["processes"] == 2 and run["ended"] is not None
    assert run["resolved"] == read_json(tmp_path / "one" / RUN)["resolved"]


def test_one_process_needs_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    alone = Processes.from_environment()
    alone.barrier("here")
    alone.leave()
    assert (alone.rank, alone.world, alone.store) == (0, 1, None)


def test_a_single_task_of_slurm_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert Processes.from_environment().world == 1
