"""From the shared settings to a model: presets by name, then a checkpoint or a served model."""

from __future__ import annotations

import logging
import os
import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2bench.errors import E2BenchError
from e2bench.experiments.base import answerable
from e2bench.experiments.options import IN_FLIGHT, OF_AN_ENGINE, Common
from e2bench.extras import require
from e2bench.models.findings import NOTE
from e2bench.models.loading import ModelSpec, check_source
from e2bench.rope.factors import Factors, read_factors
from e2bench.rope.windows import Scale, short_length
from e2bench.runs.processes import launched
from e2bench.settings import flag
from e2bench.terminal import say

if TYPE_CHECKING:
    from e2bench.models.texts import Texts

# Of a model in this process's memory, or of a server that is there already.
LOADED_HERE = (
    "attn", "device", "device_map", "compile", "batch_invariant", "served_model_name", "served_api", "insecure",
)  # fmt: skip


def load_model(common: Common, *, needs: str = "Scorer") -> Any:
    """The model that the settings name, in the device memory. Says so aloud when it is the embedded one.

    needs: the protocol of `models.protocols` that it must have; a served model is a `Generator`.
    """
    common = with_preset(common, aloud=True)
    if common.has_engine:
        return _engine_model(common, needs)
    if common.is_served:
        return _served_model(common, needs)
    quiet_libraries()
    from e2bench.models.invariant import InvariantModel
    from e2bench.models.local import Model

    model = (InvariantModel if common.batch_invariant else Model).load(spec_of(common))
    if common.model is None:
        say(f"no --model given: using the embedded tiny model (window {short_length(model.native_window)})")
    return model


def tell(model: Any) -> None:
    """Say what was found that one should know, once, where a model is loaded (`e2bench doctor` has the whole list)."""
    for found in model.findings:
        if found.level == NOTE:
            say(found.line)


def load_tokenizer_alone(common: Common) -> Texts:
    """The tokenizer of --tokenizer, or else of --model, as what turns texts into ids; no weights are read."""
    quiet_bars()
    common = with_preset(common)
    if common.tokenizer is None and common.is_served:
        raise E2BenchError("a served model has no tokenizer here; give it with --tokenizer")
    quiet_libraries()
    from e2bench.models.loading import embedded_model, load_tokenizer
    from e2bench.models.texts import Texts

    found = Texts()
    source = common.tokenizer or common.model or str(embedded_model())
    found.tokenizer, _ = load_tokenizer(source, common.trust_remote_code)
    return found


def check_model(common: Common) -> None:
    """Refuse, before torch is imported, a model that is not there or cannot be used as the settings say."""
    quiet_bars()
    common = with_preset(common)
    if common.has_engine:
        _check_engine(common)
    elif unused := [name for name in OF_AN_ENGINE if name != "engine" and name in common.given]:
        raise E2BenchError(f"{flag(unused[0])} is for --engine vllm or sglang; give that too, or leave it out")
    if not common.is_served:
        check_source(spec_of(common))
    elif common.batch_invariant:
        raise E2BenchError(f"--batch-invariant is not for {common.model}, which batches as it likes; leave it out")


def _check_engine(common: Common) -> None:
    """Refuse what no server can be started with, as far as it can be seen without the model."""
    require("httpx", "served", f"--engine {common.engine}")
    from e2bench.models.server import find_program
    from e2bench.models.serving import BY_NAME, check_servable

    check_servable(common.model or "")
    if unused := [name for name in LOADED_HERE if name in common.given]:
        raise E2BenchError(f"{flag(unused[0])} is not for --engine {common.engine}; leave it out")
    if launched()[1] > 1:
        raise E2BenchError(
            f"--engine {common.engine} starts its own processes; run one, with --tensor-parallel or --engine-servers "
            "for the GPUs"
        )
    if not common.dry_run:  # which may be looked at on another machine
        find_program(BY_NAME[common.engine], common.engine_command)


def _engine_model(common: Common, needs: str) -> Any:
    if needs != "Generator":
        raise E2BenchError(
            f"--engine {common.engine} gives texts, not the losses and attentions needed here; it is for {answerable()}"
        )
    quiet_libraries()
    from e2bench.models.engine import EngineModel, EngineSpec
    from e2bench.models.serving import BY_NAME

    if common.model is None:
        say("no --model given: using the embedded tiny model")
    try:
        options = shlex.split(common.engine_options or "")
    except ValueError as error:
        raise E2BenchError(f"--engine-options {common.engine_options!r} cannot be read ({error})") from None
    engine = EngineSpec(
        BY_NAME[common.engine],
        common.engine_command,
        servers=common.engine_servers,
        tensor=common.tensor_parallel,
        pipeline=common.pipeline_parallel,
        options=tuple(options),
        concurrency=common.concurrency if "concurrency" in common.given else IN_FLIGHT * common.engine_servers,
        wait_s=common.engine_wait,
    )
    return EngineModel(spec_of(common), engine)


def spec_of(common: Common) -> ModelSpec:
    """What `models.loading` needs to know."""
    return ModelSpec(
        model=common.model,
        dtype=common.dtype,
        device=common.device,
        device_map=common.device_map,
        attention=common.attn,
        revision=common.revision,
        tokenizer=common.tokenizer,
        native_window=common.native_window,
        trust_remote_code=common.trust_remote_code,
        allow_pickle=common.allow_pickle,
        compile=common.compile,
        batch_invariant=common.batch_invariant,
    )


def _served_model(common: Common, needs: str) -> Any:
    if needs != "Generator":
        raise E2BenchError(
            f"{common.model} gives texts, not the losses and attentions needed here; "
            f"served models are for {answerable()}"
        )
    require("httpx", "served", "a served model")
    if common.tokenizer is None:
        raise E2BenchError("a served model needs --tokenizer: the hub id or folder that it was served from")
    quiet_libraries()
    from e2bench.models.endpoint import Endpoint
    from e2bench.models.loading import load_tokenizer
    from e2bench.models.served import ServedModel

    endpoint = Endpoint(common.model or "", insecure=common.insecure)
    tokenizer, configured = load_tokenizer(common.tokenizer, common.trust_remote_code)
    return ServedModel(
        endpoint,
        tokenizer,
        served=common.served_model_name,
        native=common.native_window or configured,
        concurrency=common.concurrency,
        api=common.served_api or "completions",
        warn=say,
    )


def with_preset(common: Common, *, aloud: bool = False) -> Common:
    """`common` with what a preset's name stands for (`e2bench models`); settings that were given win.

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
            raise E2BenchError(
                f"no folder, file or preset {common.model}; did you mean the preset {names[0]}? e2bench models lists "
                "them; a model of the hub is owner/name"
            )
        return common
    if preset.repo is None:
        raise E2BenchError(
            f"{preset.name} was never published; train it with e2bench train {preset.recipe} --out FOLDER, "
            f"then give --model FOLDER --scale {preset.scale}"
        )
    if aloud and preset.note:
        say(f"{preset.name}: {preset.note}")
    scale = Scale("fixed", (float(preset.scale),)) if preset.scale > 1 and common.method is None else None
    return common.replaced(
        model=preset.repo,
        scale=common.scale or scale,
        native_window=common.native_window or preset.native_window or (preset.window if preset.endpoint else None),
        served_model_name=common.served_model_name or preset.served_model,
        served_api=common.served_api or preset.served_api,
        tokenizer=common.tokenizer or preset.tokenizer,
    )


def factors_of(common: Common) -> Factors | None:
    """LongRoPE's factors in the file that `--factors` names. Raises E2BenchError."""
    return None if common.factors is None else read_factors(common.factors.expanduser())


def quiet_bars() -> None:
    """Keep loaders' own bars from drowning ours. Before anything imports tqdm, which reads this once."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


def quiet_libraries() -> None:
    """Keep loaders' own bars and advice from drowning ours."""
    quiet_bars()
    warnings.filterwarnings("ignore", module="transformers|huggingface_hub|torch|peft")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
