"""Attention rows: equal to full eager attention, spans and lengths exact, heads that retrieve found."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from e2bench.cli import app
from e2bench.data.corpus import Document
from e2bench.errors import DataError, E2BenchError, RunFolderError
from e2bench.experiments.attention import (
    Attention,
    check_indices,
    items_of,
    npz_name,
    parse_depths,
    parse_indices,
    recording_of,
)
from e2bench.experiments.pairs import Cell, closed, long_texts, make_cell
from e2bench.experiments.stored import score_folder
from e2bench.files import read_rows
from e2bench.models.local import Model
from e2bench.models.protocols import Prompt
from e2bench.models.recording import Recorder, View, last_row, recording
from e2bench.reporting import write_report
from e2bench.rope.methods import RopeScaling
from e2bench.runs.folder import RunFolder
from e2bench.runs.manifest import manifest
from e2bench.runs.processes import Processes
from e2bench.runs.runner import run as run_items

TEXT = "The grass is green.\nThe sky is blue.\nHere we go.\n" * 200
SCALING = RopeScaling("linear", 4)


def cell_of(model: Model, length: int = 480, depth: float = 0.5, **more) -> Cell:
    given = {"trial": 0, "scaling": SCALING, "style": "short", **more}
    return make_cell(model, "doc", model.encode(TEXT), length=length, depth=depth, **given)


@given(length=st.integers(330, 900), depth=st.floats(0, 1), scattered=st.booleans())
@settings(max_examples=40)
def test_input_and_answer_have_exactly_the_length_and_the_gold_span_is_the_value(
    tiny_model: Model, length: int, depth: float, scattered: bool
) -> None:
    cell = cell_of(tiny_model, length, depth, scattered=scattered)
    first, last = cell.gold
    assert len(cell.ids) + cell.budget == length
    assert tiny_model.decode(cell.ids[first : last + 1]) == cell.answer
    assert tiny_model.decode(cell.ids[-cell.question_tokens :]).startswith("\n\nQuestion: What is the value of key")
    assert cell.ids[0] == tiny_model.tokenizer.bos_token_id


def test_the_pairs_stand_where_the_depth_says_in_growing_order(tiny_model: Model) -> None:
    starts = [cell_of(tiny_model, 900, depth).gold[0] for depth in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert all(before < after for before, after in pairwise(starts))
    text = tiny_model.decode(cell_of(tiny_model, 900, 0.5).ids)
    before, after = text.split("\n\nKey-value pairs")
    assert before.endswith(".\n")  # between two lines
    assert after.count('": "') == 3


def test_the_same_cell_is_drawn_whatever_else_is_measured(tiny_model: Model) -> None:
    assert cell_of(tiny_model).ids == cell_of(tiny_model).ids
    assert cell_of(tiny_model).answer != cell_of(tiny_model, trial=1).answer
    uuid = cell_of(tiny_model, 900, style="uuid").answer
    assert len(uuid) == 36
    assert uuid[14] == "4"


def test_a_length_or_text_that_is_too_short_is_refused(tiny_model: Model) -> None:
    with pytest.raises(E2BenchError, match="leaves 0 of 100"):
        cell_of(tiny_model, 100)
    with pytest.raises(DataError, match="the text has 3 tokens"):
        make_cell(tiny_model, "doc", [0, 1, 2], length=600, depth=0.5, trial=0, scaling=SCALING, style="short")
    with pytest.raises(DataError, match=r"longest of 1 texts has .* 64k are needed"):
        long_texts(iter([Document("short", "here")]), tiny_model, 65536, 1)


def test_rows_equal_full_eager_attention_of_the_whole_sequence(tiny_folder: Path, tiny_model: Model) -> None:
    from transformers import AutoModelForCausalLM

    cell = cell_of(tiny_model, 360)
    recorder = Recorder(View(keep_heads=True), layers=2, heads=4, inputs=len(cell.ids), gold=cell.gold)
    with recording(tiny_model, recorder):
        ((_, generation),) = tiny_model.generate([Prompt(cell.ids, 6)], SCALING)
    arrays = recorder.arrays()

    eager = AutoModelForCausalLM.from_pretrained(tiny_folder, attn_implementation="eager").eval()
    eager.model.rotary_emb.inv_freq /= SCALING.factor
    with torch.inference_mode():
        weights = eager(torch.tensor([[*cell.ids, *generation.ids]]), output_attentions=True).attentions
    new = len(generation.ids)
    chose = slice(len(cell.ids) - 1, len(cell.ids) - 1 + new)  # the query before each generated token
    want = torch.stack([layer[0, :, chose, : len(cell.ids)] for layer in weights]).numpy()
    assert arrays["rows"].shape == (new, len(cell.ids))
    np.testing.assert_allclose(arrays["heads"], want, atol=1e-5)
    np.testing.assert_allclose(arrays["rows"], want.mean((0, 1)), atol=1e-5)
    gold = want[..., cell.gold[0] : cell.gold[1] + 1].sum(-1).mean(-1)
    np.testing.assert_allclose(arrays["per_head"], gold, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_chosen_layers_and_heads_are_reduced_as_said(tiny_model: Model, reduction: str) -> None:
    cell = cell_of(tiny_model, 360)
    rows = {}
    for name, view in {
        "some": View((1,), (0, 3), reduction),
        "each": View((1,), (0, 3), reduction, keep_heads=True),
    }.items():
        recorder = Recorder(view, layers=2, heads=4, inputs=len(cell.ids), gold=cell.gold)
        with recording(tiny_model, recorder):
            list(tiny_model.generate([Prompt(cell.ids, 3)], SCALING))
        rows[name] = recorder.arrays()
    kept = rows["each"]["heads"]
    assert kept.shape[:2] == (1, 2)
    np.testing.assert_allclose(rows["some"]["rows"], getattr(kept, reduction)((0, 1)), rtol=1e-6)
    assert rows["some"]["per_head"].shape == (2, 4)  # of all heads, whatever the map shows


def test_recording_does_not_change_the_answer_and_leaves_nothing_behind(tiny_model: Model) -> None:
    cell = cell_of(tiny_model)
    prompt = Prompt(cell.ids, 8)
    ((_, plain),) = tiny_model.generate([prompt], SCALING)
    recorder = Recorder(View(), layers=2, heads=4, inputs=len(cell.ids), gold=cell.gold)
    with recording(tiny_model, recorder):
        ((_, recorded),) = tiny_model.generate([prompt], SCALING)
    rows = len(recorder.rows)
    ((_, after),) = tiny_model.generate([prompt], SCALING)
    assert plain.ids == recorded.ids == after.ids
    assert rows == len(recorder.rows) == len(recorded.ids)


def test_eager_attention_gives_the_same_rows(tiny_folder: Path, tiny_model: Model) -> None:
    from e2bench.models.loading import ModelSpec

    eager = Model.load(ModelSpec(model=str(tiny_folder), attention="eager"))
    cell = cell_of(tiny_model, 360)
    rows = []
    for model in (tiny_model, eager):
        recorder = Recorder(View(), layers=2, heads=4, inputs=len(cell.ids), gold=cell.gold)
        with recording(model, recorder):
            list(model.generate([Prompt(cell.ids, 4)], SCALING))
        rows.append(recorder.arrays()["rows"])
    np.testing.assert_allclose(*rows, atol=1e-5)


def test_a_sliding_window_hides_the_older_keys() -> None:
    query, key = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 10, 8)
    weights = last_row(query, key, scaling=None, sliding_window=3)
    full = last_row(query, key, scaling=None)
    assert torch.equal(weights[:, :7], torch.zeros(4, 7))
    torch.testing.assert_close(weights[:, 7:], full[:, 7:] / full[:, 7:].sum(-1, keepdim=True))


def test_a_run_writes_lines_maps_and_a_summary_that_the_report_draws(tiny_model: Model, tmp_path: Path) -> None:
    cells = [cell_of(tiny_model, length, trial=trial) for length in (360, 420) for trial in (0, 1)]
    folder = tmp_path / "results" / "att"
    described = manifest("attention", settings={}, resolved={"method": "linear"}, model=tiny_model.describe(), rope={})
    with RunFolder(folder, described) as run:
        measure = recording_of(tiny_model, cells, View())
        work = {"batch_size": lambda item: 1, "processes": Processes(), "title": "attention"}
        run_items(items_of(cells), measure, run, **work)
    lines = read_rows(folder / "attention.jsonl")
    assert [line["npz"] for line in lines] == [npz_name(cell, cells) for cell in cells]
    assert lines[0]["npz"] == "attention-360.npz"
    for line in lines:
        stored = np.load(folder / line["npz"])
        assert stored["rows"].shape == (len(line["generated"]), line["tokens"])
        gold = stored["rows"][:, line["gold"][0] : line["gold"][1] + 1].sum(1)
        assert 0 < line["gold_share"] < 1
        assert abs(gold.mean() - line["gold_share"]) < 1e-5  # the mean over heads sums to one
        layer, head, share = line["top_heads"][0]
        assert share == pytest.approx(stored["per_head"].max())
        assert stored["per_head"][layer, head] == pytest.approx(share)
    cell = score_folder(folder)["lengths"][0]
    assert (cell["length"], cell["trials"]) == (360, 2)
    written = {path.name for path in write_report(tmp_path / "results", tmp_path / "report")}
    assert {"figure6.png", "figure6.csv", "index.html"} <= written
    assert json.dumps(lines[0])


def test_depths_layers_and_heads_are_read_or_refused_in_one_line() -> None:
    assert parse_depths("0,0.5,1") == (0, 0.5, 1)
    assert parse_indices("all") is None
    assert parse_indices("0,4..6") == (0, 4, 5, 6)
    for bad in ("1.5", "deep", "0.5,0.5", ""):
        with pytest.raises(E2BenchError, match="depth"):
            parse_depths(bad)
    with pytest.raises(E2BenchError, match="unknown layer '2'; the model has layers 0 … 1"):
        check_indices(parse_indices("2"), "layer", 2)
    for bad in ("-1", "x", "5..3", ""):
        with pytest.raises(E2BenchError, match="--heads"):
            Attention.read({"heads": bad})


def test_the_value_ends_at_its_quote_or_line() -> None:
    assert closed('a3f0"')
    assert closed("a3f0\n")
    assert not closed("\na3f0")


def invoke(*arguments: object) -> str:
    """All that the command printed."""
    result = CliRunner().invoke(app, ["attention", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_the_command_measures_resumes_and_refuses_other_settings(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    out = tmp_path / "run"
    own = ("--lengths", "360,420", "--keys", "short", "--data", tmp_path / "text.txt")
    common = ("--model", tiny_folder, *own, "--out", out)
    invoke(*common)
    lines = (out / "attention.jsonl").read_bytes()
    assert [row["scale"] for row in read_rows(out / "attention.jsonl")] == [3, 4]  # auto: the smallest g that covers
    assert json.loads((out / "scores.json").read_text())["lengths"][1]["length"] == 420
    assert "--window 1k has no effect on attention" in invoke(*common, "--resume", "--window", "1k")
    assert (out / "attention.jsonl").read_bytes() == lines
    with pytest.raises(RunFolderError, match="reduction = mean, not max"):
        invoke(*common, "--reduction", "max")
    for options, message in (
        (("--layers", "2"), "unknown layer '2'; the model has layers 0 … 1"),
        (("--heads", "0..4"), "unknown head '4'"),
        (("--lengths", "32k"), "32k are needed"),
        (("--lengths", "64"), "give longer --lengths"),
        (("--keys", "long"), "unknown keys"),
        (("--depth", "2"), "depth '2' is not possible"),
    ):
        with pytest.raises(E2BenchError, match=message):
            invoke(*common, "--out", tmp_path / "other", *options)


PEAK = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
sys.path.insert(0, {tests!r})
from conftest import VOCAB, byte_tokenizer
from e2bench.models.recording import Recorder, View, recording
from e2bench.models.local import Model
from e2bench.models.protocols import Prompt
tokens, mode = 32768, sys.argv[1]
config = LlamaConfig(vocab_size=VOCAB, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                     num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=tokens)
model = Model(LlamaForCausalLM(config), byte_tokenizer(), name="tiny")
prompt = Prompt(torch.randint(2, VOCAB, (tokens,)).tolist(), 24, min_new_tokens=24)
def peak():  # kilobytes; ru_maxrss would start at what the parent held
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
if mode == "plain":
    list(model.generate([prompt]))
else:
    with recording(model, Recorder(View(), layers=2, heads=2, inputs=tokens, gold=(9, 12))):
        list(model.generate([prompt]))
print(peak() - before)
"""


@pytest.mark.slow
def test_peak_memory_at_32k_stays_within_a_fifth_of_plain_generation() -> None:
    script = PEAK.format(tests=str(Path(__file__).parent))
    kilobytes = {
        mode: int(subprocess.run([sys.executable, "-c", script, mode], capture_output=True, check=True).stdout)
        for mode in ("plain", "rows")
    }
    assert kilobytes["rows"] < 1.2 * kilobytes["plain"], kilobytes
    assert kilobytes["rows"] < 32768 * 32768 // 1024, kilobytes  # one byte a pair would be N × N
