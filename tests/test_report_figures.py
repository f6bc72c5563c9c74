"""Figures and ablations of the report: which runs they draw, and the numbers beside each picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from report_folders import attention_run, e2_config, longbench_run, passkey_run, ppl_run, profile

from e2bench.reporting import ablations, curves, heads, maps, ruler
from e2bench.reporting.figures import Series, _dark, canvas, draw_lines, mark_native, plain, to_png
from e2bench.reporting.runs import Run, scan
from e2bench.reporting.selection import primary


def tuned(**changes: Any) -> dict[str, Any]:
    return {"model_part": {"e2": e2_config(**changes)}}


def series(rows: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        found.setdefault(row["series"], []).append((row["window"], row["perplexity"]))
    return found


def test_figure_7_has_a_line_per_method_with_g_in_its_name(tmp_path: Path) -> None:
    ppl_run(tmp_path / "base", [(512, 1, 2.9), (1024, 1, 9.0)], method="none", model="m")
    ppl_run(tmp_path / "yarn", [(512, 1, 2.9), (1024, 2, 3.3)], method="yarn", scale="auto", model="m")
    ppl_run(tmp_path / "e2", [(1024, 2, 2.7), (512, 1, 2.8)], scale="auto", model="m", **tuned())
    [figure] = curves.figure_7(scan(tmp_path))
    assert series(figure.data.rows) == {
        "m, not extended": [(512, 2.9), (1024, 9.0)],
        "m, E²-LLM, g = L'/L": [(512, 2.8), (1024, 2.7)],
        "m, YaRN, g = L'/L": [(512, 2.9), (1024, 3.3)],
    }
    assert figure.data.rows[0]["low"] == pytest.approx(2.9 * 0.94)


def test_a_model_that_fails_beyond_its_window_leaves_the_others_apart() -> None:
    """Two lines stay within 4 times the lowest value: the axis ends with them, and the third is written above it."""
    low = [Series(name, [512, 1024], [3.0, 3.0 + at], [2.5, 2.5], [3.5, 5.5]) for at, name in enumerate("ab")]
    wild = Series("wild", [512, 1024], [3.0, 1660.2])
    axes = canvas(4, 3).subplots()
    assert curves._perplexity_axis(axes, [*low, wild], ["red", "green", "blue"]) == 1
    assert [text.get_text() for text in axes.texts] == ["▲ 1,660"]
    bottom, top = axes.get_ylim()
    assert (bottom < 2.5 < 5.5 < top < 6) and axes.get_yscale() == "linear"
    assert curves._axis_end([low[0], wild]) is None  # one line that stays has none to be told from
    axes = canvas(4, 3).subplots()
    assert curves._perplexity_axis(axes, [low[0], wild], ["red", "blue"]) == 0
    assert axes.get_yscale() == "log" and not axes.texts


def test_a_bar_goes_through_its_point_and_no_two_stand_on_one_place() -> None:
    axes = canvas(4, 3).subplots()
    draw_lines(axes, [Series(str(at), [512], [3.0], [2.0], [4.0]) for at in range(12)])
    points = [line.get_xdata()[0] for line in axes.lines]
    bars = [bar.get_segments()[0][0][0] for bar in axes.collections]
    assert points == pytest.approx(bars) and len(set(points)) == 12
    assert max(points) / min(points) < 1.26


def test_dark_colours_get_lighter_on_a_dark_ground() -> None:
    assert _dark("#E69F00") == "#E69F00"
    assert _dark("#0072B2") == pytest.approx((0.3, 0.447 + 0.3 * 0.553, 0.698 + 0.3 * 0.302, 1), abs=0.001)


def test_numbers_on_a_map_and_words_on_a_box_are_read_on_a_dark_ground(tmp_path: Path) -> None:
    scores = {"lengths": [{"length": 1024, "score": 20.0}], "details": {"vt": {"by_length": {"1024": {"score": 20.0}}}}}
    figure = canvas(4, 3)
    left, right = figure.subplots(1, 2)
    ruler._map(left, Run(tmp_path, "run", "ruler", {}, scores), "run")
    mark_native(right, [512])
    to_png(figure)
    [number], [words] = left.texts, right.texts
    assert (number.get_text(), number.get_color()) == ("20", "white")  # on cividis' dark end, whatever the paper
    assert sum(to_rgba(words.get_color())[:3]) > 1.5 > sum(words.get_bbox_patch().get_facecolor()[:3])


def test_captions_say_how_it_was_measured(tmp_path: Path) -> None:
    ppl_run(tmp_path / "auto", [(512, 1, 2.9), (1024, 2, 3.3)], scale="auto", **tuned())
    ppl_run(tmp_path / "fixed", [(512, 20, 2.9), (512, 40, 3.1)], scale=[20, 40], **tuned(steps=7))
    ppl_run(tmp_path / "plain", [(512, 1, 2.9)], extrapolate=True)
    passkey_run(tmp_path / "passkey", 512, (512, 1024), resolved={"template": "landmark"})
    profile(tmp_path)
    found = scan(tmp_path)
    for draw in (curves.figure_7, curves.extrapolation):
        [figure] = draw(found)
        assert "Measured with protocol press, stride 256, 3 documents" in figure.caption
    [figure] = maps.passkey(found)
    assert "(3 trials a cell)" in figure.caption and "percent" in figure.caption
    [figure] = curves.figure_1(found)
    assert f"Measured on {found.profiles[0][1][0]['device']}" in figure.caption


def test_figure_5_marks_the_scales_that_training_never_saw(tmp_path: Path) -> None:
    ppl_run(tmp_path / "e2", [(512, 20, 2.9), (512, 40, 3.1)], scale=[20, 40], **tuned(g_max=20))
    [figure] = curves.figure_5(scan(tmp_path))
    assert list(series(figure.data.rows)) == ["tiny, E²-LLM, g = 20", "tiny, E²-LLM, g = 40 (unseen)"]


def test_figure_1_draws_pi_against_e2(tmp_path: Path) -> None:
    profile(tmp_path)
    found = scan(tmp_path)
    [figure] = curves.figure_1(found)
    assert len(figure.data.rows) == 6
    [pi, e2] = curves._profile_series([{"run": "", **row} for row in found.profiles[0][1]], "seconds_per_step", 1.0)
    assert (pi.label, pi.x) == ("PI (rows of L')", [16384, 32768, 65536])
    assert (e2.label, e2.x, e2.y) == ("E²-LLM (rows of 8k)", pi.x, [1.2, 1.2, 1.2])


def test_figures_2_and_3_come_from_the_training_code(tmp_path: Path) -> None:
    """By hand, g = 5, L = R = 512: t_max = 5 · 512 - 512 = 2048, so the last row spans 2052 .. 2559."""
    ppl_run(tmp_path / "e2", [(512, 1, 2.9)], **tuned())
    second, third = maps.figures_2_and_3(scan(tmp_path))
    assert [(row["scale"], row["first"], row["last"]) for row in second.data.rows] == [
        (g, pytest.approx(4, abs=1e-3), pytest.approx(511, abs=1e-3)) for g in (2, 5, 10)
    ]
    last = third.data.rows[-1]
    assert (last["offset"], last["window"]) == (2048, 2560)
    assert (last["first"], last["last"]) == (pytest.approx(2052, abs=1e-3), pytest.approx(2559, abs=1e-3))


def test_trained_positions_need_an_e2_training(tmp_path: Path) -> None:
    ppl_run(tmp_path / "pi", [(512, 1, 2.9)], **tuned(method="pi", scale=4))
    assert maps.figures_2_and_3(scan(tmp_path)) == []


def test_passkey_counts_every_cell(tmp_path: Path) -> None:
    passkey_run(tmp_path / "run", 512, (512, 1024), resolved={"template": "landmark"})
    [figure] = maps.passkey(scan(tmp_path))
    assert {row["template"] for row in figure.data.rows} == {"landmark"} and "Template landmark" in figure.caption
    totals = [row for row in figure.data.rows if row["depth"] == "all"]
    cells = [row for row in figure.data.rows if row["depth"] != "all"]
    assert len(cells) == 2 * 11
    assert all(row["trials"] == 3 for row in cells)
    for total in totals:
        assert total["successes"] == sum(row["successes"] for row in cells if row["length"] == total["length"])
        assert total["low"] <= total["accuracy"] <= total["high"]


def test_pooling_keeps_the_largest_value_of_every_bin() -> None:
    rows = np.zeros((2, 1000), dtype=np.float32)
    rows[1, 777] = 0.5
    pooled = maps.pooled(rows, bins=10)
    assert pooled.shape == (2, 10)
    assert np.argwhere(pooled).tolist() == [[1, 7]]
    assert maps.pooled(rows[:, :4], bins=10).shape == (2, 4)  # fewer inputs than bins


def test_figure_6_has_the_gold_share_of_every_generated_token(tmp_path: Path) -> None:
    attention_run(tmp_path / "run", (1024, 2048), generated=5)
    [figure] = maps.figure_6(scan(tmp_path))
    assert len(figure.data.rows) == 2 * 5
    with np.load(tmp_path / "run" / "attention-1024.npz") as stored:
        row = figure.data.rows[0]
        expected = stored["rows"][0, row["gold_first"] : row["gold_last"] + 1].sum()
    assert row["gold_share"] == pytest.approx(expected, rel=1e-6)


def test_a_second_attention_run_gets_its_own_picture(tmp_path: Path) -> None:
    attention_run(tmp_path / "a", (1024,), generated=3)
    attention_run(tmp_path / "b", (1024,), generated=3)
    assert [figure.name for figure in maps.figure_6(scan(tmp_path))] == ["figure6", "figure6-2"]


def trials(folder: Path, *changes: dict[str, Any]) -> None:
    """Each line of an attention run once for every trial, with its changes."""
    lines = [json.loads(line) for line in (folder / "attention.jsonl").read_text().splitlines()]
    made = [line | {"trial": trial} | change for line in lines for trial, change in enumerate(changes)]
    (folder / "attention.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))


def test_a_trial_that_is_answered_is_shown_and_its_heads_are_ranked(tmp_path: Path) -> None:
    attention_run(tmp_path / "run", (1024, 2048), generated=3)
    trials(tmp_path / "run", {"success": False}, {"success": True, "top_heads": [[3, 2, 0.5], [0, 1, 0.25]]})
    [figure] = heads.figure_heads(scan(tmp_path))
    rows = [(r["length"], r["trial"], r["answered"], r["rank"], r["layer"], r["head"]) for r in figure.data.rows]
    assert rows[:2] == [(1024, 1, "yes", 1, 3, 2), (1024, 1, "yes", 2, 0, 1)] and len(rows) == 4
    assert [row["gold_share"] for row in figure.data.rows[:2]] == [0.5, 0.25]
    shown = maps.one_a_length([{"length": n, "trial": t, "success": n == t} for n in (1, 0, 4) for t in (0, 1)])
    assert [(line["length"], line["trial"]) for line in shown] == [(0, 0), (1, 1), (4, 0)]


def test_heads_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    attention_run(tmp_path / "run", (1024,), generated=3)
    trials(tmp_path / "run", {"top_heads": [["a", 1]]})
    found = scan(tmp_path)
    assert heads.figure_heads(found) == [] and "run: its heads cannot be drawn" in found.warnings[0]


def test_attention_rows_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    attention_run(tmp_path / "run", (1024,), generated=3)
    (tmp_path / "run" / "attention-1024.npz").write_bytes(b"PK\x03\x04 torn")
    found = scan(tmp_path)
    assert maps.figure_6(found) == []
    assert "run: its attention rows cannot be drawn" in found.warnings[0]


def test_names_are_drawn_in_letters_the_font_has() -> None:
    assert plain("E²-LLM 中文\n$x$") == "E²-LLM ?? $x$"
    assert len(plain("a" * 500)) == 60


# ----------------------------------------------------------------------------------------------------------- ablations


def ablation(results: Path, name: str, accuracy_reach: float, **changes: Any) -> None:
    config = tuned(**changes)
    fixed = changes.get("scale")
    windows = (1024, 4096)
    cells = [(window, fixed or window / 512, 2.5 + 0.1 * len(name)) for window in windows]
    ppl_run(results / name / "ppl", cells, model=name, scale=fixed or "auto", **config)
    passkey_run(results / name / "passkey", accuracy_reach, windows, model=name, **config)


def test_table_4_has_mean_and_spread_over_seeds_at_8_l(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        ablation(tmp_path, f"full{'x' * seed}", 4096, seed=seed)
        ablation(tmp_path, f"not{seed}", 100, seed=seed, offset=False)
        ablation(tmp_path, f"nog{seed}", 100, seed=seed, scale=2, train_window=1024)
    ablation(tmp_path, "gmax5", 100, g_max=5)
    [table] = ablations.table_4(scan(tmp_path))
    rows = [row for row in table.rows if row["source"] == "measured"]
    assert [(row["method"], row["window"], row["g"], row["seeds"]) for row in rows] == [
        ("E²-LLM", "4k", "8", "3"),
        ("E²-LLM (w/o aug on t)", "4k", "8", "3"),
        ("E²-LLM (w/o aug on g)", "1k", "2", "3"),
        ("E²-LLM (w/o aug on g)", "4k", "2 / 8", "3"),
    ]
    assert rows[0]["perplexity"] == pytest.approx(3.0)  # 2.9, 3.0, 3.1
    assert rows[0]["errors"]["perplexity"] == pytest.approx(0.1)
    assert any("no room for an offset" in note for note in table.notes)


def test_table_5_has_a_row_per_g_max_and_says_the_paper_gives_none(tmp_path: Path) -> None:
    for g_max in (5, 10, 20, 30):
        ablation(tmp_path, f"g{g_max}", 4096, g_max=g_max)
    [table] = ablations.table_5(scan(tmp_path))
    assert [row["g_max"] for row in table.rows] == ["5", "10", "20", "30"]
    assert "holds no numbers" in table.notes[0]


def test_figure_4_follows_the_checkpoints_of_one_training(tmp_path: Path) -> None:
    for step in (250, 500, 1000):
        ablation(tmp_path, f"step{step}", 4096, step=step)
        longbench_run(tmp_path / f"long{step}", seed=step, **tuned(step=step))
    [figure] = curves.figure_4(scan(tmp_path))
    by_measure = {name: [r for r in figure.data.rows if r["measure"] == name] for name in ("All", "perplexity")}
    assert [row["step"] for row in by_measure["All"]] == [250, 500, 1000]
    assert len(by_measure["perplexity"]) == 6
    assert curves.figure_4(scan(tmp_path / "step250")) == []


def test_comparisons_show_the_best_trained_of_each_recipe(tmp_path: Path) -> None:
    cells = [(512, 1.0, 3.0)]
    ppl_run(tmp_path / "base", cells)
    ppl_run(tmp_path / "long", cells, **tuned(steps=9000, step=9000))
    ppl_run(tmp_path / "short", cells, **tuned())
    ppl_run(tmp_path / "without", cells, **tuned(offset=False))
    ppl_run(tmp_path / "pi4", cells, **tuned(method="pi", scale=4))
    ppl_run(tmp_path / "pi8", cells, **tuned(method="pi", scale=8))
    assert [run.name for run in primary(scan(tmp_path).runs)] == ["base", "long", "pi4", "pi8"]
