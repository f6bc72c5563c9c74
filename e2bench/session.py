"""From the shared options to what a run needs: a model, a scale rule, processes, a folder, a manifest."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from e2bench.errors import E2BenchError, UnknownName, printable
from e2bench.extras import require
from e2bench.options import Common
from e2bench.processes import Processes
from e2bench.provenance import DataSource, as_json
from e2bench.records import RunFolder, manifest
from e2bench.scales import ScaleRule, parse_length, scale_rule, short_length, short_number

if TYPE_CHECKING:
    from e2bench.loading import ModelSpec
    from e2bench.model import Model


def quiet_bars() -> None:
    """Loaders' own bars would drown ours. Before anything imports tqdm, which reads this once."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


def quiet_libraries() -> None:
    """Loaders' own bars and advice would drown ours."""
    quiet_bars()
    warnings.filterwarnings("ignore", module="transformers|huggingface_hub|torch|peft")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def load_model(common: Common, *, served: bool = False) -> Model:
    """The model that the options name, in the device memory. Says so aloud when it is the embedded one.

    served: whether a model behind an http(s) endpoint will do, because all that is asked of it is text.
    """
    common = with_preset(common, aloud=True)
    if _is_served(common):
        return _served_model(common, served)
    quiet_libraries()
    from e2bench.model import Model

    model = Model.load(_model_spec(common))
    if common.model is None:
        say(f"no --model given: using the embedded tiny model (window {short_length(model.native_window)})")
    return model


def check_model(common: Common) -> None:
    """Refuse, before torch is imported, a model that is not there or cannot be used as the options say."""
    quiet_bars()
    common = with_preset(common)
    if not _is_served(common):
        from e2bench.loading import check_source

        check_source(_model_spec(common))


def _is_served(common: Common) -> bool:
    return (common.model or "").startswith(("http://", "https://"))


def _model_spec(common: Common) -> ModelSpec:
    from e2bench.loading import ModelSpec

    return ModelSpec(
        model=common.model,
        dtype=common.dtype,
        device=common.device,
        device_map=common.device_map,
        attention=common.attn,
        revision=common.revision,
        tokenizer=common.tokenizer,
        native_window=parse_length(common.native_window) if common.native_window else None,
        trust_remote_code=common.trust_remote_code,
        allow_pickle=common.allow_pickle,
    )


def _served_model(common: Common, accepted: bool) -> Model:
    if not accepted:
        raise E2BenchError(
            f"{common.model} gives texts, not the losses and attentions needed here; "
            "served models are for longbench and passkey"
        )
    require("httpx", "served", "a served model")
    quiet_libraries()
    from e2bench.server import load_served

    native = parse_length(common.native_window) if common.native_window else None
    return cast("Model", load_served(common, native, say))  # it has all that longbench and passkey use


def with_preset(common: Common, *, aloud: bool = False) -> Common:
    """`common` with what a preset's name stands for (`e2bench models`); options that were given win.

    Raises E2BenchError for a system that was never published, naming the recipe that trains it.
    """
    from e2bench.tasks.models import find, near

    preset = find(common.model)
    if preset is None:
        if (
            common.model
            and "/" not in common.model
            and not Path(common.model).exists()
            and (names := near(common.model))
        ):
            raise UnknownName("preset", common.model, names)
        return common
    if preset.repo is None:
        raise E2BenchError(
            f"{preset.name} was never published; train it with e2bench train {preset.recipe} --out FOLDER, "
            f"then give --model FOLDER --scale {preset.scale}"
        )
    if aloud and preset.note:
        say(f"{preset.name}: {preset.note}")
    scale = str(preset.scale) if preset.scale > 1 and common.method is None else None
    native = str(preset.native_window or (preset.window if preset.endpoint else "")) or None
    return replace(
        common,
        model=preset.repo,
        scale=common.scale or scale,
        native_window=common.native_window or native,
        served_model_name=common.served_model_name or preset.served_model,
        served_api=common.served_api or preset.served_api,
        tokenizer=common.tokenizer or preset.tokenizer,
    )


def say(message: str) -> None:
    """A line on stderr, from rank 0 alone."""
    from rich.console import Console

    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0:
        Console(stderr=True).print(printable(message), highlight=False, markup=False)


def rule_for(common: Common, model: Model) -> ScaleRule:
    """How this run chooses g."""
    own_rule = getattr(model, "rule", None)  # a served model's scale is its server's
    if own_rule is not None:
        return cast(ScaleRule, own_rule(common.scale, common.method))
    common = with_preset(common)
    return scale_rule(common.scale, common.method, model.native_window, model.own_scaling)


def check_scale(common: Common, *, lists: bool = False) -> None:
    """Refuse an impossible `--scale`, `--method`, `--window` or `--batch-size` before anything is loaded.

    lists: whether the experiment takes several scales in one run.
    """
    rule = scale_rule(common.scale, common.method, 1, None)
    if len(rule.values) > 1 and not lists:
        raise E2BenchError(
            f"scale {common.scale!r} is a list, which only ppl takes; give one number, auto or per-input"
        )
    for text in (common.window, common.native_window):
        if text is not None:
            parse_length(text)
    batch_size(common)


def batch_size(common: Common) -> int | None:
    """`--batch-size` as a number, None for auto."""
    if common.batch_size == "auto":
        return None
    if not common.batch_size.isdigit() or int(common.batch_size) < 1:
        raise E2BenchError(f"batch size {common.batch_size!r} is not possible; give auto or a number of at least 1")
    return int(common.batch_size)


def given(common: Common, **own: Any) -> dict[str, Any]:
    """Shared options that differ from their defaults and a command's own ones, as plain values for run.json."""
    shared = {f.name: getattr(common, f.name) for f in fields(Common) if getattr(common, f.name) != f.default}
    chosen = {**shared, **{name: value for name, value in own.items() if value is not None}}
    return {name: shareable(value) if isinstance(value, Path | str) else value for name, value in chosen.items()}


def shareable(value: Path | str) -> str:
    """A path as others may read it: below the current folder relative, the user's home as `~`; other text as it is."""
    path = Path(value)
    for folder, shown in ((Path.cwd(), Path()), (Path.home(), Path("~"))):
        if path.is_absolute() and path != folder and path.is_relative_to(folder) and folder != Path("/"):
            return str(shown / path.relative_to(folder))
    return str(value)


def open_run(
    experiment: str,
    common: Common,
    model: Model,
    processes: Processes,
    *,
    settings: Mapping[str, Any],
    resolved: Mapping[str, Any],
    rope: Mapping[str, Any],
    data: Mapping[str, str],
    source: DataSource,
    out: Path,
    chooses: Mapping[str, bool],
    advice: Mapping[str, str] | None = None,
    **rest: Any,
) -> RunFolder:
    """The run's folder, to be entered. `resolved`, model, data, dtype and attention decide whether it resumes.

    chooses, advice: see `RunFolder`.
    """
    described = model.describe()
    described["path"] = shareable(described["path"])
    decides = {
        **resolved,
        "model": described["fingerprint"],
        "native_window": model.native_window,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.attention,
        "data": dict(data),
    }
    if common.tokenizer:  # else it is the checkpoint's
        decides["tokenizer"] = vocabulary_hash(model.tokenizer)
    contents = manifest(
        experiment,
        settings=settings,
        resolved=decides,
        model=described,
        rope={**rope, "inv_freq": model.rope.in_force()},
        data=dict(data),
        data_source=as_json(source),
        device=device_name(model),
        dtype=decides["dtype"],
        attention=model.attention,
        batch_size=common.batch_size,
        processes=processes.world,
        **rest,
    )
    return RunFolder(
        out,
        contents,
        chooses=chooses,
        advice=advice,
        fresh=common.fresh,
        must_resume=common.resume,
        rank=processes.rank,
        world=processes.world,
    )


def vocabulary_hash(tokenizer: Any) -> str:
    """16 hex digits that tell one tokenizer's vocabulary from another's."""
    pieces = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    return hashlib.sha256(pieces).hexdigest()[:16]


def device_name(model: Model) -> str:
    """`cpu (2 threads)` or the GPU's own name."""
    import torch

    if model.device is None:
        return "server"
    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    return f"{model.device.type} ({torch.get_num_threads()} threads)"


def default_out(experiment: str, model: Model, rule: ScaleRule, window: int | None = None) -> Path:
    """results/EXPERIMENT-MODEL-SCALE: one folder a setting, so that a second run continues the first."""
    name = re.sub(r"[^\w.-]+", "-", model.name)
    scale = "s" + "-".join(str(short_number(v)) for v in rule.values) if rule.kind == "fixed" else rule.kind
    parts = [experiment, name, *([] if rule.method in ("linear", "checkpoint") else [rule.method]), scale]
    if window is not None:
        parts.append(short_length(window))
    return Path("results") / "-".join(parts)


def finish_run(folder: Path, processes: Processes) -> dict[str, Any] | None:
    """Score a complete run and write scores.json; rank 0 alone, None elsewhere."""
    if processes.rank != 0:
        processes.leave()
        return None
    from e2bench.scoring import score_folder, write_scores

    scores = score_folder(folder)
    write_scores(folder, scores)
    processes.leave()
    return scores
