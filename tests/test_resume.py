"""A killed passkey run leaves, started again, the files of an undisturbed one. Other runs: tests/faults."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slowed

WORDS = ("the", "old", "house", "keeps", "a", "letter", "near", "quiet", "river", "and", "small", "window", "17", "482")
PASSKEY = ("passkey", "--lengths", "256,512,1k", "--depths", "3", "--trials", "2")


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    texts = (" ".join(random.Random(seed).choices(WORDS, k=900)) for seed in range(5))
    path.write_text("".join(json.dumps({"text": text, "meta": {}}) + "\n" for text in texts))
    return path


def command(model: Path, documents: Path, arguments: tuple[str, ...], out: Path) -> list[str]:
    data = ["--data", str(documents)] if arguments[0] == "ppl" else []
    return [sys.executable, "-m", "e2bench", *arguments, "--model", str(model), *data, "--out", str(out)]


def test_a_killed_run_ends_in_the_files_of_an_undisturbed_one(
    tiny_folder: Path, documents: Path, tmp_path: Path
) -> None:
    arguments, name = PASSKEY, "passkey"
    subprocess.run(command(tiny_folder, documents, arguments, tmp_path / "whole"), check=True, capture_output=True)
    whole = (tmp_path / "whole" / f"{name}.jsonl").read_bytes()

    killed = command(tiny_folder, documents, arguments, tmp_path / "killed")
    stoppable = [sys.executable, slowed.__file__, *killed[3:]]
    lines = tmp_path / "killed" / f"{name}.jsonl"
    process = subprocess.Popen(stoppable, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (lines.exists() and lines.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = lines.read_bytes().count(b"\n")
    with lines.open("ab") as file:
        file.write(b'{"document": "torn')  # what a kill inside a write leaves behind

    again = subprocess.run([*killed, "--resume"], check=True, capture_output=True, text=True)
    total = len(whole.splitlines())
    assert f"{kept} of {total} were done before" in again.stderr.replace("\n", " ")
    assert lines.read_bytes() == whole
    scores = [json.loads((tmp_path / run / "scores.json").read_text()) for run in ("whole", "killed")]
    assert scores[0] == scores[1]


def test_a_finished_run_is_not_done_again_and_other_settings_are_refused(
    tiny_folder: Path, documents: Path, tmp_path: Path
) -> None:
    first = command(
        tiny_folder, documents, ("ppl", "--lengths", "64", "--stride", "16", "--docs", "1"), tmp_path / "run"
    )
    subprocess.run(first, check=True, capture_output=True)
    before = (tmp_path / "run" / "ppl.jsonl").read_bytes()
    subprocess.run(first, check=True, capture_output=True)
    assert (tmp_path / "run" / "ppl.jsonl").read_bytes() == before
    other = subprocess.run([*first, "--scale", "3"], capture_output=True, text=True)
    assert other.returncode == 2
    assert "holds a run with" in other.stderr
    assert "Traceback" not in other.stderr
