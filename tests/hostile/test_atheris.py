"""Coverage-guided fuzzing (fuzz.py): so many inputs a parser in `make test-all`, where atheris is installed."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris has wheels for Linux alone")
INPUTS = 5_000
ARCHIVE = io.BytesIO()
with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED) as file:
    file.writestr("data/a.jsonl", "{}\n" * 20)
CELL = b'{"document": "d", "window": 512, "scale": 1, "protocol": "press", "nll_sum": 3.5, "scored_tokens": 9}\n'
EXAMPLE = b'{"input": "", "context": "c", "answers": ["a"], "length": 1, "all_classes": ["a"], "_id": "1"}'
GOOD = {  # where the fuzzer begins
    "documents": b'\0{"text": "a text", "meta": {}}\n',
    "rows": CELL,
    "examples": EXAMPLE,
    "archive": ARCHIVE.getvalue(),
    "recipe": b"data: [{files: [a]}]\nsteps: 3\ntrain_window: 32\nbase: b\nlora: {rank: 4}\nlearning_rate: 1e-5\n",
    "scores": b"\1" + CELL,
    "answer": b'{"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}',
}


@pytest.mark.slow
@pytest.mark.parametrize("target", GOOD)
def test_no_input_gets_past_a_parsers_own_errors(target: str, tmp_path: Path) -> None:
    fuzz = Path(__file__).parent / "fuzz.py"
    options = [f"-runs={INPUTS}", "-seed=1", "-max_len=400", "-rss_limit_mb=4096", "-print_final_stats=1"]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "good").write_bytes(GOOD[target])
    done = subprocess.run(
        [sys.executable, fuzz, target, "corpus", *options], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ran = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert ran and int(ran[1]) >= INPUTS
