"""The library: what `import e2bench` hands out. The command line makes the same calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from e2bench.errors import E2BenchError, UnknownName
from e2bench.experiments.base import experiment as experiment_class
from e2bench.experiments.options import OF_A_MODEL, Common
from e2bench.files import read_json
from e2bench.rope.windows import parse_length
from e2bench.runs.lines import SCORES, names_of, read_run, stored_rows

if TYPE_CHECKING:
    import pandas as pd

    from e2bench.models.local import Model


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
        return read_run(self.folder)

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
    """Load a model: hub id, folder, .gguf file, adapter, preset or http(s)://HOST/v1; None: the embedded one.

    options: dtype, device, device_map, attn, revision, tokenizer, native_window, served_model_name, served_api,
        concurrency, trust_remote_code, allow_pickle, engine, …; see docs/reference/commands.md. With an engine,
        `close()` of what is given back stops its servers; they end with this process in any case.
    Raises UnknownName for another option, and E2BenchError with one line for what cannot be loaded.
    """
    from e2bench.experiments.loading import check_model, load_model, tell

    known = [name for name in OF_A_MODEL if name != "model"]
    for name in options:
        if name not in known:
            raise UnknownName("option", name, known)
    common = Common.read({"model": None if model is None else str(model), **options})
    check_model(common)
    loaded: Model = load_model(common, needs="Generator")
    tell(loaded)
    return loaded


@overload
def run(
    experiment: str,
    model: Any = None,
    *,
    out: str | Path | None = None,
    tokenizer: Any = None,
    dry_run: Literal[False] = False,
    **settings: Any,
) -> Run: ...


@overload
def run(
    experiment: str,
    model: Any = None,
    *,
    out: str | Path | None = None,
    tokenizer: Any = None,
    dry_run: Literal[True],
    **settings: Any,
) -> None: ...


def run(
    experiment: str,
    model: Any = None,
    *,
    out: str | Path | None = None,
    tokenizer: Any = None,
    dry_run: bool = False,
    **settings: Any,
) -> Run | None:
    """Run an experiment, or continue the one in `out`. The settings are the command's options.

    experiment: the command's name (`e2bench --help` lists them).
    model: what `load` gives, or what it takes; for experiments that only read answers, such as longbench and passkey,
        also a function from a list of prompts to a list of answers, or an object with such a `generate`; both need
        `tokenizer` and `window` (in tokens).
    dry_run: print what it would take, and give back None.
    settings: by the options' names with underscores. Lengths and windows may be numbers (4096), texts ("4k..64k") or
        lists; tasks a text or a list.
    Raises UnknownName for an unknown experiment or setting; E2BenchError for what the command refuses.
    """
    from e2bench.experiments.run import run_experiment

    of = experiment_class(experiment)
    shared = {name: settings.pop(name) for name in list(settings) if name in Common.named()}
    shared |= {"out": out, "dry_run": dry_run or None}
    if model is None or isinstance(model, str | Path):
        shared["model"], loaded = None if model is None else str(model), None
        if tokenizer is not None:
            shared["tokenizer"] = tokenizer
    else:
        loaded = _as_model(model, tokenizer, shared.get("window"))
        if loaded is not model:  # the function's window, not a setting of the run
            shared["window"] = None
    common = Common.read({name: value for name, value in shared.items() if value is not None})
    folder = run_experiment(of.read(settings), common, loaded)
    if dry_run:
        return None
    if folder is None:
        raise E2BenchError("of several processes the first one alone has the result; read it there, or from its folder")
    return Run(folder)


def _as_model(model: Any, tokenizer: Any, window: Any) -> Any:
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
    from e2bench.models.callables import CallableModel

    name = "" if answer is model else type(model).__name__
    return CallableModel(answer, tokenizer, window=parse_length(str(window)), name=name)


def score(folder: str | Path) -> dict[str, Any]:
    """Score stored predictions, ours or in LongBench's own layout, into scores.json; no model is loaded."""
    from e2bench.experiments.stored import score_folder, write_scores

    scores = score_folder(Path(folder))
    write_scores(Path(folder), scores)
    return scores


def compare(
    first: str | Path, second: str | Path, *, tasks: Sequence[str] | None = None, allow: Sequence[str] = ()
) -> dict[str, Any]:
    """Paired differences of two runs, second less first, with bootstrap 95 % intervals over samples.

    allow: settings that may differ though they say what was asked (`input_limit`, say).
    """
    from e2bench.experiments.compare import compare as compared

    return compared(Path(first), Path(second), tasks=tasks, allow=allow)


def report(results: str | Path | Sequence[str | Path], out: str | Path = "report") -> list[Path]:
    """Write every table and figure for which there are runs at or below `results`, and index.html; the files' paths."""
    from e2bench.reporting import write_report

    several = [results] if isinstance(results, str | Path) else list(results)
    return write_report([Path(one) for one in several], Path(out))
