"""Run an experiment over a model into a folder: what the command line, Python, suites and examples all call."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2bench.environment import check_launcher
from e2bench.errors import E2BenchError
from e2bench.experiments.base import Experiment, Plan
from e2bench.experiments.loading import check_model, factors_of, load_model, tell, with_preset
from e2bench.experiments.options import LOCAL, Common
from e2bench.experiments.tracking import check_tracker, log_run
from e2bench.experiments.training import familiar, trained_on
from e2bench.files import check_writable
from e2bench.models.identity import tokenizer_hash
from e2bench.models.loading import device_name
from e2bench.rope.factors import Factors
from e2bench.rope.windows import ScaleRule
from e2bench.runs.folder import RunFolder, another_run, words
from e2bench.runs.lines import RUN, read_run
from e2bench.runs.manifest import manifest, shareable
from e2bench.runs.processes import Processes
from e2bench.settings import flag
from e2bench.terminal import say

RESULTS = Path("results")  # where runs without --out go

# Settings that runs of before 2026-11-27 did not record: a folder that lacks them goes on, and this is said.
LATER = frozenset({"weights", "eos", "tokenizer", "device"})
ADVICE = {
    "weights": "the weights are not those that the run was begun with",
    "tokenizer": "the tokenizer or its chat template is not the one that the run was begun with",
    "batch_invariant": "go on with --batch-invariant, or without it, as before",
    "threads": "with --batch-invariant the number of threads decides the last bits: give OMP_NUM_THREADS as before",
    "device": "a CPU and a GPU give other last digits: go on with --device as before",
}


def run_experiment(experiment: Experiment, common: Common, model: Any = None) -> Path | None:
    """Measure, score, and return the run's folder; None on other ranks than 0, and where nothing was to be measured.

    model: a loaded one, a served one or what answers like one; None: the one that `common` names.
    Raises E2BenchError for what is refused: without the model where that can be seen without it.
    """
    check_launcher()
    if model is not None:
        common = as_loaded(common, model)
    experiment.check(common)
    check_tracker(common.log)
    if experiment.without_model(common):
        return None
    if common.out is not None and not common.fresh:
        experiment = as_begun(experiment, common.out)
        check_folder_early(experiment, common.out, common.engine if model is None else None)
    if common.dry_run:
        dry_run(experiment, common, model)
        return None
    check_writable(common.out or RESULTS)
    if model is None:
        check_model(common)
    inputs = experiment.inputs(common)
    if model is not None:
        return run_model(experiment, common, model, inputs)
    model = load_model(common, needs=experiment.needed())
    try:
        tell(model)
        return run_model(experiment, common, model, inputs)
    finally:
        model.close()


def as_loaded(common: Common, model: Any) -> Common:
    """`common` with `batch_invariant` as a model at hand has it. Raises E2BenchError where that lacks it."""
    loaded = getattr(model, "batch_invariant", False)
    if common.batch_invariant and not loaded:
        raise E2BenchError(
            f"--batch-invariant is for models that are loaded with it, which {model.name} is not; give it to "
            "e2bench.load, or leave it out"
        )
    return common if loaded == common.batch_invariant else common.replaced(batch_invariant=loaded)


def run_model(experiment: Experiment, common: Common, model: Any, inputs: Any) -> Path | None:
    """The same with a model at hand, and the inputs that `experiment` made. The model is left as it is."""
    check_needs(experiment, model)
    rule = experiment.rule(model, with_preset(common)).searched(factors_of(common))
    plan = experiment.plan(model, rule, common, inputs)
    try:
        return run_plan(experiment, common, model, rule, plan)
    finally:
        plan.close()


def dry_run(experiment: Experiment, common: Common, model: Any = None) -> None:
    """Print what the run would cost; a model that is not loaded yet stays so."""
    from e2bench.experiments.forecast import forecast, outline_of
    from e2bench.experiments.forecast_table import show

    show(experiment.name, forecast(experiment, common, outline_of(common, experiment) if model is None else model))


def run_plan(experiment: Experiment, common: Common, model: Any, rule: ScaleRule, plan: Plan) -> Path | None:
    """Open the folder, measure what it lacks, score it."""
    processes = Processes.from_environment()
    single = [] if plan.scaling is None or plan.length is None else [(plan.length, plan.scaling)]
    model.expect(plan.scalings or single)
    if plan.scaling is not None:
        model.check_scaling(plan.scaling)
    out = common.out or RESULTS / experiment.folder_name(model.name, rule, plan)
    with model.rope.using(plan.scaling, plan.length):  # what run.json shows as in force
        folder = open_run(experiment, common, model, rule, plan, processes, out)
    check_alike(folder.manifest["resolved"], processes)
    is_taken = common.out is None and not common.fresh and folder.is_another()
    if is_taken:  # by a run of the same name, with other settings than the name says
        folder.path = out = Path(f"{out}-{digest(folder.manifest['resolved'], experiment.chooses())}")
        say(f"the default folder holds another run: this one is in {out}")
    with folder, model.rope.using(None):
        model.home = out
        measure(plan, folder, processes, title=experiment.name)
        done = finish_run(out, processes)
    if done and common.log is not None:
        log_run(out, common.log)
    return out if done else None


def check_alike(resolved: dict[str, Any], processes: Processes) -> None:
    """Raise E2BenchError in a process whose settings are not those of process 0: its lines would be another run's."""
    first = json.loads(processes.share("resolved", lambda: json.dumps(resolved)))
    ours = json.loads(json.dumps(resolved))
    if differing := [name for name in {**first, **ours} if first.get(name) != ours.get(name)]:
        name = differing[0]
        raise E2BenchError(
            f"process {processes.rank} of {processes.world} has {name} = {words(ours.get(name))}, process 0 "
            f"{words(first.get(name))}; start all of them alike"
        )


def stored_run(experiment: Experiment, out: Path) -> dict[str, Any] | None:
    """The run.json of a run of this experiment in `out`; None where there is none."""
    stored = read_run(out) if (out / RUN).exists() else {}
    ours = stored.get("experiment") == experiment.name and isinstance(stored.get("resolved"), dict)
    return stored if ours else None


def as_begun(experiment: Experiment, out: Path) -> Experiment:
    """The experiment with what a folder's run is too old to name: it goes on as it began, unless a value is given."""
    stored = stored_run(experiment, out)
    if stored is None:
        return experiment
    kept = {n: v for n, v in experiment.implied.items() if n not in stored["resolved"] and n not in experiment.given}
    for name, value in kept.items():
        if getattr(experiment, name) != value:
            say(f"{out} holds a run from before {flag(name)}: it goes on with {flag(name)} {value}")
    return experiment.replaced(**kept)


def check_folder_early(experiment: Experiment, out: Path, engine: str | None) -> None:
    """Refuse, before a model is loaded, a folder whose run has another value of a setting that stays as it is given.

    engine: None: of a model at hand.
    """
    stored = stored_run(experiment, out)
    if stored is None:
        return
    begun = stored["resolved"].get("engine", LOCAL)
    if engine is not None and begun != engine:
        raise another_run(out, {"engine": (begun, engine)})
    resolved, differing = experiment.resolved_of(stored), {}
    for name, (field, about, _) in experiment.named().items():
        value = getattr(experiment, field.name)
        stays = isinstance(value, bool) or bool(about.choices) or (isinstance(value, int) and about.parse is None)
        if about.lines is None and stays and name in resolved and resolved[name] != value:
            differing[name] = (resolved[name], value)
    if differing:
        raise another_run(out, differing, experiment.advice)


def digest(resolved: dict[str, Any], chooses: Mapping[str, bool]) -> str:
    """Six hex digits of the settings that decide lines: tells default folders of one name apart."""
    deciding = {name: value for name, value in resolved.items() if name not in chooses and name not in LATER}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True, default=str).encode()).hexdigest()[:6]


def digest_of(factors: Factors) -> str:
    """16 hex digits that tell LongRoPE's factors from others."""
    return hashlib.sha256(repr(factors).encode()).hexdigest()[:16]


def measure(plan: Plan, folder: RunFolder, processes: Processes, *, title: str) -> None:
    """Make every line of the plan that the folder does not hold yet."""
    from e2bench.runs.runner import run

    run(
        plan.items,
        plan.measure,
        folder,
        batch_size=plan.batch_size,
        processes=processes,
        title=title,
        note=plan.note,
    )


def check_needs(experiment: Experiment, model: Any) -> None:
    """Raise E2BenchError for a model that lacks what the experiment asks of it."""
    from e2bench.models import protocols

    if not isinstance(model, getattr(protocols, experiment.needed())):
        raise E2BenchError(f"{experiment.name} needs losses and attentions, which {model.name} does not give")


def open_run(
    experiment: Experiment, common: Common, model: Any, rule: ScaleRule, plan: Plan, processes: Processes, out: Path
) -> RunFolder:
    """The run's folder, to be entered. `resolved`, model, data, dtype and attention decide whether it resumes."""
    described = model.describe()
    described["path"] = shareable(described["path"])
    engine = described.pop("engine", None)
    if engine is not None:
        engine["commands"] = [shlex.join(map(shareable, words)) for words in engine["commands"]]
    decides = {
        **plan.resolved,
        "model": described["fingerprint"],
        **{name: described[name] for name in ("weights", "eos") if name in described},  # not seen behind a server
        **{name: described[name] for name in ("batch_invariant", "threads") if name in described},
        "tokenizer": tokenizer_hash(model.tokenizer),
        "native_window": model.native_window,
        **({"factors": digest_of(factors)} if (factors := rule.factors) else {}),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.attention,
        "device": "none" if model.device is None else model.device.type,
        **({} if engine is None else {"engine": engine["name"]}),
        "data": dict(plan.data),
    }
    contents = manifest(
        experiment.name,
        settings=given(common, experiment),
        resolved=decides,
        model=described,
        **({} if engine is None else {"engine": engine}),
        rope={**plan.rope, "inv_freq": model.rope.in_force()},
        data=dict(plan.data),
        data_source=plan.source.as_json(),
        device=device_name(model.device),
        dtype=decides["dtype"],
        attention=model.attention,
        batch_size="auto" if common.batch_size is None else str(common.batch_size),
        processes=processes.world,
        **trained_words(experiment, decides, described),
        checks=[found.as_json() for found in model.findings],
        **plan.facts,
    )
    return RunFolder(
        out,
        contents,
        chooses=experiment.chooses(),
        advice={**experiment.advice, **ADVICE},
        unrecorded=LATER,
        implied=experiment.implied,
        fresh=common.fresh,
        must_resume=common.resume,
        rank=processes.rank,
        world=processes.world,
        files={item.file for item in plan.items},
    )


def trained_words(experiment: Experiment, resolved: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """run.json's `familiar`: which of the run's words the model was trained on; {} where no training is known."""
    if not (experiment.wordings and isinstance(model.get("e2"), dict)):
        return {}
    return {"familiar": familiar(type(experiment), resolved, trained_on(model["e2"]))}


def given(common: Common, experiment: Experiment) -> dict[str, Any]:
    """Shared settings that differ from their defaults and the experiment's own ones, as plain values for run.json."""
    chosen = {**common.as_given(defaults=False), **experiment.as_given(defaults=True)}
    return {name: shareable(value) if isinstance(value, Path | str) else value for name, value in chosen.items()}


def finish_run(folder: Path, processes: Processes) -> bool:
    """Score a complete run and write scores.json; rank 0 only. Returns whether this process did so."""
    if processes.rank == 0:
        from e2bench.experiments.stored import score_folder, write_scores

        write_scores(folder, score_folder(folder))
    processes.leave()
    return processes.rank == 0
