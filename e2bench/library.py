"""The library: what `import e2bench` hands out. Each call is the one that the command line makes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from e2bench.errors import E2BenchError, UnknownName
from e2bench.options import Common
from e2bench.records import RUN, SCORES, names_of, read_json, stored_rows
from e2bench.scales import parse_length

if TYPE_CHECKING:
    import pandas as pd

    from e2bench.model import Model

EXPERIMENTS = ("longbench", "ppl", "passkey", "attention", "short")
ANSWERING = ("longbench", "passkey")  # what a served model or a function of one's own can do
OF_A_MODEL = {"dtype", "device", "device_map", "attn", "revision", "tokenizer", "native_window", "served_model_name"}
OF_A_MODEL |= {"served_api", "concurrency", "trust_remote_code", "allow_pickle"}


@dataclass(frozen=True)
class Run:
    """A finished run on disk (docs/files.md)."""

    folder: Path

    @property
    def scores(self) -> dict[str, Any]:
        """scores.json: what the lines that were asked for last add up to."""
        return read_json(self.folder / SCORES)

    @property
    def settings(self) -> dict[str, Any]:
        """run.json: settings as given and as resolved, model, data, versions, times."""
        return read_json(self.folder / RUN)

    def rows(self) -> pd.DataFrame:
        """The lines that were asked for last, one row a line; of runs with several files with a column `file`."""
        import pandas as pd

        names = names_of(self.folder)
        found = [
            {**({"file": name} if len(names) > 1 else {}), **r}
            for name in names
            for r in stored_rows(self.folder, name)
        ]
        return pd.DataFrame(found)


def load(model: str | Path | None = None, **options: Any) -> Model:
    """A model in memory: hub id, folder, .gguf file, adapter, preset or http(s)://HOST/v1; None: the embedded one.

    options: as on the command line: dtype, device, device_map, attn, revision, tokenizer, native_window,
        served_model_name, served_api, concurrency, trust_remote_code, allow_pickle.
    Raises UnknownName for another option, E2BenchError, one line, for what cannot be loaded.
    """
    from e2bench.session import check_model, load_model

    for name in options:
        if name not in OF_A_MODEL:
            raise UnknownName("option", name, sorted(OF_A_MODEL))
    common = Common(model=None if model is None else str(model), **_typed(options, get_type_hints(Common)))
    check_model(common)
    return load_model(common, served=True)


def run(
    experiment: str, model: Any = None, *, out: str | Path | None = None, tokenizer: Any = None, **settings: Any
) -> Run:
    """Run an experiment, or go on with the one in `out`; the settings are the command's options.

    experiment: longbench, ppl, passkey, attention or short.
    model: what `load` gives, or what it takes; for longbench and passkey also a function from a list of prompts to a
        list of answers, or an object with `generate` of that kind, which need `tokenizer` and `window` (in tokens).
    settings: by the options' names with underscores. Lengths and windows may be numbers (4096), texts ("4k..64k") or
        lists; tasks a text or a list.
    Raises UnknownName for an unknown experiment or setting; E2BenchError for what the command refuses.
    """
    import importlib

    from e2bench import cli

    if experiment not in EXPERIMENTS:
        raise UnknownName("experiment", experiment, list(EXPERIMENTS))
    parameters = inspect.signature(getattr(cli, experiment)).parameters
    for name in settings:
        if name not in parameters:
            raise UnknownName(f"setting of {experiment}", name, list(parameters))
    hints = {name: get_args(p.annotation)[0] for name, p in parameters.items()}
    values = {name: p.default for name, p in parameters.items()} | _typed(settings, hints)
    values["out"] = None if out is None else Path(out)
    if model is None or isinstance(model, str | Path):
        values["model"], loaded = None if model is None else str(model), None
        values["tokenizer"] = tokenizer or values["tokenizer"]
    else:
        loaded = _as_model(model, tokenizer, values["window"])
        if experiment != "longbench" and loaded is not model:  # the function's window, not a setting of these runs
            values["window"] = None
        if experiment not in ANSWERING and not hasattr(loaded, "token_nll"):
            raise E2BenchError(f"{experiment} needs losses and attentions, which {loaded.name} does not give")
    common = Common(**{f.name: values.pop(f.name) for f in fields(Common)})
    command = importlib.import_module(f"e2bench.commands.{experiment}")
    folder = command.run(common, **values, model=loaded)
    if folder is None:
        raise E2BenchError("the run has no result here: a dry run, or another process holds it")
    return Run(Path(folder))


def _as_model(model: Any, tokenizer: Any, window: str | None) -> Any:
    """A loaded or served model as it is; a function, or an object with `generate` over texts, as one."""
    if hasattr(model, "describe"):
        return model
    answer = getattr(model, "generate", None) or model
    if not callable(answer):
        raise E2BenchError(f"{type(model).__name__} is no model: give one from e2bench.load, or a function of prompts")
    if tokenizer is None or window is None:
        raise E2BenchError(
            "a function needs tokenizer= (one of transformers) and window= (tokens of prompt and answer)"
        )
    from e2bench.callables import CallableModel

    name = "" if answer is model else type(model).__name__
    return CallableModel(answer, tokenizer, window=parse_length(window), name=name)


def _typed(settings: dict[str, Any], hints: dict[str, Any]) -> dict[str, Any]:
    """Values as the command line's parser gives them: text for what has text there, paths for paths."""
    return {name: _as(hints[name], name, value) for name, value in settings.items()}


def _as(hint: Any, name: str, value: Any) -> Any:
    kinds = get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return None
    if Path in kinds and isinstance(value, str | Path):
        return Path(value)
    if str in kinds and not isinstance(value, bool) and value is not None:
        return ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
    if type(value) in kinds:
        return value
    wanted = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in kinds)
    raise E2BenchError(f"{name} is {value!r}; it must be {wanted}")


def score(folder: str | Path) -> dict[str, Any]:
    """Score stored predictions, ours or in LongBench's own layout, into scores.json; no model is loaded."""
    from e2bench.scoring import score_folder, write_scores

    scores = score_folder(Path(folder))
    write_scores(Path(folder), scores)
    return scores


def compare(first: str | Path, second: str | Path, *, tasks: Sequence[str] | None = None) -> dict[str, Any]:
    """Paired differences of two runs, second less first, with bootstrap 95 % intervals over samples."""
    from e2bench.comparison import compare as compared

    return compared(Path(first), Path(second), tasks=tasks)


def report(results: str | Path | Sequence[str | Path], out: str | Path = "report") -> list[Path]:
    """Every table and figure for which there are runs at or below `results`, and index.html; the files written."""
    from e2bench.reporting import write_report

    several = [results] if isinstance(results, str | Path) else list(results)
    return write_report([Path(one) for one in several], Path(out))
