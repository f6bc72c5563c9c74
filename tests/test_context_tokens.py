"""Context tokens: chosen by the definition, from the losses of the same pass; sums that agree with plain perplexity."""

from __future__ import annotations

import csv
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import e2bench
from e2bench.errors import DataError, E2BenchError
from e2bench.experiments.base import experiment
from e2bench.experiments.context_tokens import context_scores, gained, losses_name
from e2bench.files import read_rows
from e2bench.models.local import Model
from e2bench.reporting import write_report

SHORT = [5.0, 5.0, 3.0, 1.0, 9.0]
MIDDLE = [5.0, 3.5, 3.0, 1.0, 9.0]
LONG = [1.0, 3.0, 0.5, 0.1, 1.9]  # gained: 0 (5 to 1), 2 (3 to 0.5), 4 (9 to 1.9); 1 stays above 2, 3 falls by 0.9


def stored(folder: Path, **losses: list[float]) -> list[dict[str, Any]]:
    """Lines of one document, a window each, and their files."""
    lines = []
    for window, values in zip((512, 1024, 2048), losses.values(), strict=False):
        name = losses_name("0" * 16, window, 1)
        np.savez_compressed(folder / name, nll=np.array(values, dtype=np.float32))
        lines.append({"document": "0" * 16, "window": window, "scale": 1, "losses": name, "scored_tokens": len(values)})
    return lines


def test_tokens_are_chosen_and_scored_as_the_definition_says(tmp_path: Path) -> None:
    assert gained(np.array(SHORT, np.float32), np.array(LONG, np.float32)).tolist() == [True, False, True, False, True]
    scores = context_scores(tmp_path, stored(tmp_path, short=SHORT, middle=MIDDLE, long=LONG))
    at = {cell[0]: fields for cell, fields in scores.items()}
    assert at[512]["context_perplexity"] == pytest.approx(math.exp((5 + 3 + 9) / 3))
    assert at[1024]["context_perplexity"] == pytest.approx(math.exp((5 + 3 + 9) / 3))
    assert at[2048]["context_perplexity"] == pytest.approx(math.exp((1 + 0.5 + 1.9) / 3))
    assert [at[window]["context_tokens"] for window in at] == [3, 3, 3]
    assert [at[window]["context_share"] for window in at] == [0.0, 0.0, 0.6]
    assert at[2048]["context_interval"] is None  # one document


def test_without_losses_without_gain_and_with_one_length_there_is_no_number(tmp_path: Path) -> None:
    lines = stored(tmp_path, short=SHORT, middle=SHORT)
    assert context_scores(tmp_path, lines)[1024, 1]["context_perplexity"] is None
    assert context_scores(tmp_path, lines[:1]) == {}
    assert context_scores(tmp_path, [{**line, "losses": None} for line in lines]) == {}


def test_files_that_are_not_the_lines_are_refused(tmp_path: Path) -> None:
    lines = stored(tmp_path, short=SHORT, middle=MIDDLE)
    with pytest.raises(DataError, match="does not hold the 4 losses"):
        context_scores(tmp_path, [{**line, "scored_tokens": 4} for line in lines])
    (tmp_path / lines[0]["losses"]).write_bytes(b"no zip")
    with pytest.raises(DataError, match="cannot be read"):
        context_scores(tmp_path, lines)


def damaged(name: str, path: Path) -> None:
    """Put something else where a line's losses were."""
    good = path.read_bytes()
    if name == "flipped":
        path.write_bytes(good[:45] + bytes(255 - byte for byte in good[45:60]) + good[60:])
    elif name == "no losses":
        np.savez_compressed(path, nll=np.full(len(MIDDLE), np.nan, np.float32))
    elif name == "terabytes":
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (400000000000,)}".ljust(117) + b"\n"
        with zipfile.ZipFile(path, "w") as made:
            made.writestr("nll.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    elif name == "an array":
        with path.open("wb") as file:
            np.save(file, np.zeros(len(MIDDLE), np.float32))
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("name", ["flipped", "no losses", "terabytes", "empty", "an array"])
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str) -> None:
    lines = stored(tmp_path, short=SHORT, middle=MIDDLE, long=LONG)
    damaged(name, tmp_path / lines[1]["losses"])
    with pytest.raises(DataError, match=re.escape(lines[1]["losses"])):
        context_scores(tmp_path, lines)


def test_lengths_with_other_tokens_are_refused_and_large_losses_are_no_overflow(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="other tokens scored"):
        context_scores(tmp_path, stored(tmp_path, short=SHORT, middle=MIDDLE[:4], long=LONG))
    lines = stored(tmp_path, short=[1e4] * 5, long=LONG)
    assert context_scores(tmp_path, lines)[512, 1]["context_perplexity"] == math.exp(700)


def test_a_run_stores_what_its_sums_add_up_to(tiny_model: Model, tmp_path: Path) -> None:
    text = "The committee met on Monday, the bridge was closed, and 4711 people walked. " * 60
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    native = tiny_model.native_window
    settings: dict[str, Any] = {
        "lengths": f"{native},{4 * native}",
        "data": tmp_path / "text.txt",
        "stride": native // 2,
    }
    run = e2bench.run("ppl", tiny_model, out=tmp_path / "run", token_losses=True, **settings)
    plain = e2bench.run("ppl", tiny_model, out=tmp_path / "plain", **settings)
    shared = [cell["perplexity"] for cell in plain.scores["cells"]]
    assert [cell["perplexity"] for cell in run.scores["cells"]] == shared
    for line in read_rows(tmp_path / "run" / "ppl.jsonl"):
        with np.load(tmp_path / "run" / line["losses"]) as arrays:
            assert arrays["nll"].shape == (line["scored_tokens"],)
            assert float(arrays["nll"].sum(dtype=np.float64)) == pytest.approx(line["nll_sum"], rel=1e-6)
    assert set(run.scores["cells"][0]) - set(plain.scores["cells"][0]) == {
        "context_perplexity", "context_interval", "context_tokens", "context_share",
    }  # fmt: skip
    [said] = experiment("ppl").closing(run.scores)
    assert "not LongPPL" in said and experiment("ppl").closing(plain.scores) == []
    with pytest.raises(E2BenchError, match="token"):
        e2bench.run("ppl", tiny_model, out=tmp_path / "plain", token_losses=True, **settings)
    write_report(tmp_path / "run", tmp_path / "report")
    with (tmp_path / "report" / "perplexity.csv").open(encoding="utf-8") as file:
        assert next(csv.DictReader(file))["context_share"] == "0"  # of the shortest length
    again = e2bench.run("ppl", tiny_model, out=tmp_path / "run", fresh=True, **settings)
    assert not list((tmp_path / "run").glob("*.npz")) and "context_share" not in again.scores["cells"][0]


def test_other_protocols_are_refused(tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(E2BenchError, match="--token-losses compares the same tokens"):
        e2bench.run("ppl", tiny_model, out=tmp_path / "run", token_losses=True, protocol="truncate")
