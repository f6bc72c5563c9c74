"""Every check on what `--model` names, and what each found; most of them run at the start of every run as well."""

from __future__ import annotations

from typing import Any

from e2bench.errors import E2BenchError
from e2bench.experiments.loading import check_model, factors_of, load_model, with_preset
from e2bench.experiments.options import Common
from e2bench.models.findings import OK, WRONG, Finding, collected, find
from e2bench.rope.windows import short_length

Findings = list[Finding]


def examine(common: Common, *, data: str | None = None) -> Findings:
    """Findings on a model, its tokenizer and adapter or its server, the asked scaling, its template; and on `data`.

    What a run would refuse is a finding of level `wrong`, and ends the examination of the model.
    """
    with collected() as findings:
        try:
            check_model(common)
            model = load_model(common, needs="Generator")
            try:
                scaling = _scaling(model, common)
            finally:
                findings += model.findings
            findings.append(scaling)
            _true_lengths(model)
            _template(model)
            if common.has_engine:
                _engine(model, common)
        except E2BenchError as error:
            find("model", WRONG, str(error), "no run would start", "see there")
        if data is not None:
            _data(data)
    return findings


def _scaling(model: Any, common: Common) -> Finding:
    """Check the asked scale and method against what transformers builds; what they come to."""
    rule = model.rule(with_preset(common).scale, common.method).searched(factors_of(common))
    window = rule.window(common.window)
    scaling = rule.scaling(window)
    model.check_scaling(scaling)
    method = scaling.row.label if scaling.row.own else scaling.method
    covered = f"g = {scaling.factor:g} ({method}) for {short_length(window)} tokens"
    return Finding("asked scale", OK, f"{covered}; L = {short_length(model.native_window)}")


def _true_lengths(model: Any) -> None:
    """One input longer than the sliding window and than one chunk, in chunks against one pass."""
    if not hasattr(model, "hf"):
        return
    from e2bench.models.probe import check_true_lengths

    check_true_lengths(model)


def _engine(model: Any, common: Common) -> None:
    """Start the engine with the asked scaling, as a run would, and ask it for a token."""
    from e2bench.models.protocols import Prompt

    rule = model.rule(with_preset(common).scale, common.method)
    scaling = rule.scaling(rule.window(common.window))
    try:
        list(model.generate([Prompt(model.encode("The quick brown fox"), 1)], scaling))
    finally:
        model.close()
    find("engine", OK, f"{common.engine} {model.version} starts with g = {scaling.factor:g} and answers")


def _template(model: Any) -> None:
    """The chat template, wrapped around a prompt."""
    from e2bench.models.findings import NOTE
    from e2bench.prompts.chat import chat_wrapper

    wrapper = chat_wrapper("auto", model.tokenizer)
    if wrapper is None:
        find("chat template", OK, "none: prompts are given as they are")
    elif wrapper.opens_thinking:
        find(
            "chat template",
            NOTE,
            "it opens a thinking block",
            "answers would be thoughts, cut off at each task's budget",
            "--no-thinking closes it where the template can",
        )
    else:
        find("chat template", OK, f"wraps the same prompt alike on any day (sha256 {wrapper.sha256})")


def _data(data: str) -> None:
    """Documents or a LongBench folder: read whole."""
    from pathlib import Path

    from e2bench.experiments.documents import open_corpus
    from e2bench.experiments.longbench import LongBench

    path = Path(data)
    try:
        if path.is_dir() and any(path.glob("*.jsonl")):
            tasks = ",".join(sorted(file.stem for file in path.glob("*.jsonl")))
            inputs = LongBench.read({"data": path, "tasks": tasks}).inputs(Common())
            find("data", OK, f"{len(inputs.questions):,} samples of {len(inputs.tasks)} tasks")
        else:
            texts = [document.id for document in open_corpus(data)]
            find("data", OK, f"{len(texts):,} documents, {len(texts) - len(set(texts))} of them twice")
    except E2BenchError as error:
        find("data", WRONG, str(error), "no run would start", "see there")
