"""Run folders for the report's tests, as docs/files.md describes them, with numbers that look like real ones."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

TASKS = [
    "narrativeqa",
    "qasper",
    "multifieldqa_en",
    "multifieldqa_zh",
    "hotpotqa",
    "2wikimqa",
    "musique",
    "dureader",
    "gov_report",
    "qmsum",
    "multi_news",
    "vcsum",
    "trec",
    "triviaqa",
    "samsum",
    "lsht",
    "passage_count",
    "passage_retrieval_en",
    "passage_retrieval_zh",
    "lcc",
    "repobench-p",
]
ZH = {"multifieldqa_zh", "dureader", "vcsum", "lsht"}
SYNTHETIC = {"passage_count", "passage_retrieval_en", "passage_retrieval_zh"}
Json = dict[str, Any]


def manifest(experiment: str, model: str = "tiny", *, scale: object = 1, method: str = "linear", **more: Any) -> Json:
    """run.json of a finished run."""
    base = {
        "format": 1,
        "experiment": experiment,
        "settings": {"scale": scale},
        "resolved": {"scale": scale, "method": method, "dtype": "float32", **more.pop("resolved", {})},
        "model": {"name": model, "native_window": 512, "parameters": 3_400_000, **more.pop("model_part", {})},
        "rope": {"method": method, "factor": scale, "theta": 10000.0},
        "data": {"proof_pile.jsonl": "0" * 64},
        "device": "cpu",
        "dtype": "float32",
        "attention": "sdpa",
        "versions": {"python": "3.11", "torch": "2.13.0", "e2bench": "0.1.0"},
        "commit": "0123456",
        "dirty": False,
        "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:10:00+00:00",
    }
    return base | more


def e2_config(**changes: Any) -> Json:
    base = {"base": "tiny-base", "method": "e2", "offset": True, "scale": None, "g_max": 20, "native_window": 512}
    base |= {"train_window": 512, "sinks": 4, "per_sample": False, "step": 1000, "steps": 1000, "tokens": 3_000_000}
    return base | {"seed": 0, "settings": {}, "data": {"text.jsonl": "0" * 64}} | changes


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def write_lines(path: Path, lines: list[Json]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def prediction(task: str, at: int, pred: str, **changes: Any) -> Json:
    line: Json = {"pred": pred, "answers": ["a red barn", "the barn"], "all_classes": None, "length": 4000 + at}
    line |= {
        "_id": hashlib.sha256(f"{task}{at}".encode()).hexdigest()[:24],
        "dataset": task,
        "prompt_tokens": 9000 + at,
    }
    line |= {"kept_tokens": 3500, "new_tokens": 12, "finish": "eos", "scale": 2, "seconds": 0.5}
    if task in ("trec", "lsht"):
        line |= {"answers": ["barn"], "all_classes": ["barn", "house", "the barn 1"]}
    if task.startswith("passage"):
        line["answers"] = ["段落3" if task.endswith("zh") else "3" if task.endswith("count") else "Paragraph 3"]
    return line | {"head": f"Read the text {at}. ", "tail": " Question: where is it? Answer:"} | changes


def longbench_run(
    folder: Path,
    model: str = "SmolLM2-135M",
    *,
    tasks: list[str] | None = None,
    lines: int = 3,
    seed: int = 0,
    predictions: dict[str, list[Json]] | None = None,
    **more: Any,
) -> Path:
    """A LongBench run with scores; averages over an incomplete set are null, as `e2bench score` stores them."""
    draw = random.Random(seed)
    scores = {task: draw.uniform(5, 60) for task in (tasks or TASKS)}
    more.setdefault("resolved", {"window": 4096, "truncation": "official"})
    write_json(folder / "run.json", manifest("longbench", model, **more))
    for task in scores:
        given = (predictions or {}).get(task) or [prediction(task, at, f"the barn {at}") for at in range(lines)]
        write_lines(folder / f"{task}.jsonl", given)
    details = {
        task: {"scored": lines, "expected": lines, "truncated": 2, "failed": 0, "left_out": 0, "metric": "qa_f1"}
        | {"interval": [score - 4, score + 5], "version": "1"}
        for task, score in scores.items()
    }
    averages = {"e2": e2_averages(scores), "longbench": dict.fromkeys(("EN", "ZH", "All"))}
    write_json(folder / "scores.json", {"tasks": scores, "averages": averages, "details": details})
    return folder


def e2_averages(scores: dict[str, float]) -> dict[str, float | None]:
    used = [task for task in TASKS if task not in SYNTHETIC]
    sets = {"EN": [t for t in used if t not in ZH], "ZH": [t for t in used if t in ZH], "All": used}
    return {
        name: sum(scores[t] for t in group) / len(group) if all(t in scores for t in group) else None
        for name, group in sets.items()
    }


def ppl_run(folder: Path, cells: list[tuple[int, float, float]], **more: Any) -> Path:
    """Cells are (window, scale, perplexity)."""
    resolved = {"protocol": "press", "stride": 256, **more.pop("resolved", {})}
    method = more.get("method", "linear")
    write_json(folder / "run.json", manifest("ppl", resolved=resolved, **more))
    stored = [
        {"window": window, "scale": scale, "method": method, "perplexity": value, "documents": 3}
        | {"interval": [value * 0.94, value * 1.07], "scored_tokens": 3 * window}
        for window, scale, value in cells
    ]
    write_json(folder / "scores.json", {"cells": stored})
    return folder


def passkey_run(folder: Path, reach: float, lengths: tuple[int, ...] = (512, 1024, 2048, 4096), **more: Any) -> Path:
    """A grid of 11 depths and 3 trials; beyond `reach` tokens only the last depths succeed."""
    draw = random.Random(f"{reach}")
    lines = []
    for length in lengths:
        for depth in range(11):
            for trial in range(3):
                hit = draw.random() < (0.97 if length <= reach else 0.5 if depth > 8 else 0.04)
                line = {"length": length, "tokens": length, "depth": depth / 10, "trial": trial, "scale": length / 512}
                lines.append(line | {"key": "48213", "pred": "48213" if hit else "x", "success": hit, "new_tokens": 6})
    cells = []
    for length in lengths:
        hits = [line["success"] for line in lines if line["length"] == length]
        share = sum(hits) / len(hits)
        interval = [max(0.0, share - 0.12), min(1.0, share + 0.12)]
        cells.append({"length": length, "scale": length / 512, "accuracy": share, "trials": len(hits)})
        cells[-1]["interval"] = interval
    write_json(folder / "run.json", manifest("passkey", **{"scale": "auto"} | more))
    write_lines(folder / "passkey.jsonl", lines)
    write_json(folder / "scores.json", {"lengths": cells})
    return folder


def attention_run(
    folder: Path, lengths: tuple[int, ...] = (1024, 2048, 4096), generated: int = 20, **more: Any
) -> Path:
    """Attention rows with sinks at the start and, at each length, a gold span that is read token by token."""
    draw = np.random.default_rng(0)
    lines, cells = [], []
    folder.mkdir(parents=True, exist_ok=True)
    for length in lengths:
        first = int(length * draw.uniform(0.25, 0.8))
        gold = [first, first + 33]
        rows = draw.gamma(0.2, 1.0, (generated, length)).astype(np.float32) * 4e-3
        rows[:, :4] += 0.1
        for at in range(generated):
            rows[at, first + int(at * 33 / generated)] += 0.3
        rows /= rows.sum(axis=1, keepdims=True)
        np.savez(folder / f"attention-{length}.npz", rows=rows, per_head=np.zeros((2, 2), np.float32))
        share = float(rows[:, gold[0] : gold[1] + 1].sum(axis=1).mean())
        line: Json = {
            "length": length,
            "tokens": length,
            "scale": length // 512,
            "depth": 0.5,
            "trial": 0,
            "gold": gold,
        }
        line |= {"answer": "703a7ce5", "pred": "703a7ce5", "success": True, "layers": "all", "heads": "all"}
        line |= {"reduction": "mean", "gold_share": share, "input_share": 34 / length, "question_tokens": 30}
        line |= {"top_heads": [[1, 0, 0.81], [0, 1, 0.4]], "npz": f"attention-{length}.npz"}
        lines.append(line | {"generated": [f"t{at}" for at in range(generated)]})
        cells.append({key: line[key] for key in ("length", "scale", "gold_share", "input_share", "top_heads")})
        cells[-1]["success"] = 1.0
    write_json(folder / "run.json", manifest("attention", **{"scale": "auto"} | more))
    write_lines(folder / "attention.jsonl", lines)
    write_json(folder / "scores.json", {"lengths": cells})
    return folder


def profile(folder: Path) -> Path:
    gib = 2**30
    rows = [
        {"method": "pi", "length": 8192 * k, "window": 8192 * k, "seconds_per_step": 1.1 * k * (1 + 0.1 * k)}
        | {"peak_bytes": int((20 + 7 * k) * gib), "device": "cuda"}
        for k in (2, 4, 8)
    ]
    rows += [
        {"method": "e2", "length": 8192, "window": 8192 * k, "seconds_per_step": 1.2, "peak_bytes": 28 * gib}
        | {"device": "cuda"}
        for k in (2, 4, 8)
    ]
    return write_json(folder / "profile.json", rows)


def short_run(folder: Path, suite: str = "paper", **more: Any) -> Path:
    names = ["piqa", "wsc", "hellaswag", "siqa", "winogrande", "race_high", "race_middle", "naturalquestions"]
    tasks = {name: 50.0 + at for at, name in enumerate(names)}
    details = {name: {"stderr": 2.5, "scored": 100, "scoring": "mean token log-likelihood"} for name in names}
    write_json(folder / "run.json", manifest("short", resolved={"suite": suite}, **more))
    averages = {"Avg.": sum(tasks.values()) / 8}
    write_json(folder / "scores.json", {"suite": suite, "tasks": tasks, "details": details, "averages": averages})
    return folder
