"""The words of the report: how a run, a method, a scale and a length are called in every table, legend and page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from e2bench.experiments.provenance import data_label, shortfall
from e2bench.reporting.runs import Run, number
from e2bench.rope.methods import ROWS

_METHODS = {row.name: row.label for row in ROWS}
_TUNINGS = {"none": "plain training", "pi": "PI (tuned)", "pose": "PoSE"}
# Settings that say where a run lies or how fast it went, not what it measured.
_NOT_A_DIFFERENCE = {"out", "resume", "fresh", "model", "device", "device_map", "concurrency", "dry_run"}
_NOT_A_DIFFERENCE |= {"suite", "versions"}  # Table 7 has a column for the suite


def tokens(value: float) -> str:
    """A length in tokens as people say it: 4096 is 4k, 204800 is 200k, 512 is 512."""
    value = int(value)
    if value >= 1024 and value % 512 == 0:
        return f"{value / 1024:g}k"
    return str(value)


def parameters(count: object) -> str:
    """A number of parameters as models are called by it: 134515008 is 135M."""
    if not number(count):
        return ""
    assert isinstance(count, (int, float))
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{letter}"
    return f"{count:g}"


def scale(value: object) -> str:
    """g as people write it: 8, 2.5, auto; empty where there is none."""
    if isinstance(value, str):
        return value
    return f"{value:g}" if number(value) else ""


def tuning(e2: dict[str, Any]) -> str:
    """What `e2bench train` did, named as the paper's Table 4 names it; from e2_config.json."""
    method = str(e2.get("method"))
    if method != "e2":
        return _TUNINGS.get(method, method)
    without = [
        name for name, is_off in (("t", e2.get("offset") is False), ("g", e2.get("scale") is not None)) if is_off
    ]
    return f"E²-LLM (w/o aug on {' and '.join(without)})" if without else "E²-LLM"


def method(run: Run, cell_method: str | None = None) -> str:
    """How the window was extended: the tuning, the scaling, or both where they are not the usual pair."""
    name = str(cell_method or run.part("rope").get("method") or "")
    scaling = _METHODS.get(name, name)
    if run.e2 is None:
        return "None" if name == "linear" and set(_scales(run)) == {1} else scaling
    is_untuned_pi = name == "linear" and run.e2.get("method") == "none" and set(_scales(run)) != {1}
    is_usual = name in ("linear", "none", "") and not is_untuned_pi
    return tuning(run.e2) if is_usual else f"{tuning(run.e2)}, {scaling}"


def _scales(run: Run) -> list[Any]:
    if run.about.cells:
        return [cell.get("scale", 1) for cell in run.cells]
    return [run.part("rope").get("factor", 1)]


def run_scale(run: Run) -> object:
    """The scale of a run that has one: what was asked for, else what is recorded as in force."""
    given = run.part("resolved").get("scale")
    factor = run.part("rope").get("factor")
    return factor if number(factor) or factor == "per-input" or given in (None, "auto") else given


def row(run: Run) -> str:
    """One cell that names a run in Tables 1, 2 and 7: model, method, g, window."""
    if not run.manifest:
        return run.model
    window = run.part("resolved").get("window")
    parts = [
        method(run) if method(run) not in ("None", "PI") or run_scale(run) != 1 else "",
        f"g = {scale(run_scale(run))}" if run_scale(run) not in (None, 1) else "",
        tokens(window) if number(window) else "",
        "without context" if without_context(run) else "",
    ]
    inner = ", ".join(part for part in parts if part and part != "None")
    return f"{run.model} ({inner})" if inner else run.model


def legend(run: Run) -> str:
    """Model, method and g of a run with cells, as the paper's legends have them."""
    scales, how = sorted(set(_scales(run))), method(run)
    if how == "None":
        return f"{run.model}, not extended"
    g = "" if run.manifest.get("extrapolate") else "g = L'/L" if len(scales) > 1 else f"g = {scales[0]:g}"
    return ", ".join(filter(None, [run.model, how, g]))


def data(run: Run) -> str:
    """What the run was measured on."""
    return data_label(run.manifest, run.scores, run.about)


def data_of(runs: Iterable[Run]) -> str:
    """What several runs were measured on, each data once."""
    return "; ".join(dict.fromkeys(map(data, runs)))


def averages_over(run: Run, averages: Iterable[object]) -> str:
    """What stands in front of averages that must not be read beside published ones; else, or without one, empty."""
    return shortfall(run.manifest, run.scores) if any(map(number, averages)) else ""


def without_context(run: Run) -> bool:
    """`--no-context`: the model answered without having seen the document."""
    return run.part("resolved").get("context") is False


def told_apart(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Row labels made unique: runs with one label get the settings that differ, or else their folder, added."""
    counts = Counter(names)
    labels = []
    for run, name in zip(runs, names, strict=True):
        rivals = [other for other, other_name in zip(runs, names, strict=True) if other_name == name]
        labels.append(name if counts[name] == 1 else f"{name} [{_difference(run, rivals)}]")
    return [
        f"{name} [{_folder(run, runs)}]" if labels.count(label) > 1 else label
        for run, name, label in zip(runs, names, labels, strict=True)
    ]


def _folder(run: Run, runs: Sequence[Run]) -> str:
    """The folder's own name, which is the one people gave, where no other run has it; else its path."""
    name = run.name.rpartition("/")[2]
    return name if [other.name.rpartition("/")[2] for other in runs].count(name) == 1 else run.name


_MOST_NAMED = 2  # settings in a label; runs that differ in more are called by their folders


def _difference(run: Run, rivals: Sequence[Run]) -> str:
    """`truncation ids, dtype float32`: the settings in which these runs clash, as this run has them.

    Their folders where settings are not what people would say: lists, hashes, or more than two of them.
    """
    settings = [_result_settings(rival) for rival in rivals]
    keys = sorted({key for each in settings for key in each} - _NOT_A_DIFFERENCE)
    clashing = [key for key in keys if len({repr(each.get(key)) for each in settings}) > 1]
    plain = [key for key in clashing if key != "fingerprint" and all(_is_plain(each.get(key)) for each in settings)]
    if not plain or len(plain) > _MOST_NAMED:
        return _folder(run, rivals)
    own = _result_settings(run)
    return ", ".join(f"{key.replace('_', ' ')} {setting_text(own.get(key))}" for key in plain)


def _is_plain(value: object) -> bool:
    return value is None or (isinstance(value, str | int | float) and len(str(value)) <= 24)


def setting_text(value: object, *, inner: bool = False) -> str:
    """A setting as people write it: yes and no, none, lists by commas, a list inside a list by spaces."""
    if value is None or isinstance(value, bool):
        return "none" if value is None else "yes" if value else "no"
    if isinstance(value, list | tuple):
        return (" " if inner else ", ").join(setting_text(one, inner=True) for one in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _result_settings(run: Run) -> dict[str, Any]:
    recorded = {key: run.manifest.get(key) for key in ("dtype", "attention", "batch_size")}
    tuned = {key: (run.e2 or {}).get(key) for key in ("steps", "step", "g_max", "seed")}
    return {
        **tuned,
        **run.resolved,
        **recorded,
        "fingerprint": str(run.part("model").get("fingerprint", ""))[:8],
    }
