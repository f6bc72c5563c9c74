"""What a recipe starts from: the model, its tokenizer, its adapters."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from e2bench.compat import unpacked_gguf
from e2bench.environment import number
from e2bench.errors import E2BenchError, ModelError, one_line
from e2bench.models.claims import check_folder_claims
from e2bench.models.gguf_file import GgufFile
from e2bench.models.loading import check_hub_id
from e2bench.models.scaled_config import own_as_native
from e2bench.prompts.chat import VICUNA_TEMPLATE
from e2bench.train.miniature.initial import plant_induction
from e2bench.train.recipe import Recipe


def check_sources(recipe: Recipe, *, weights: bool = True, data: bool = True) -> None:
    """Refuse a recipe whose base, tokenizer or data is not there, before anything is loaded; says what makes them.

    weights: whether the base itself is needed, or only its config.    data: whether the data is needed.
    """
    base = recipe.base if weights or not recipe.base_config else ""
    try:
        for name in filter(None, (base, recipe.tokenizer)):
            _located(name)
        for source in recipe.data if data else []:
            source.paths()
    except E2BenchError as error:
        raise type(error)(f"{error}. To get it: {recipe.prepare}" if recipe.prepare else str(error)) from None


def load_config(recipe: Recipe) -> PretrainedConfig:
    """The config of the model to train."""
    return config_and_scaling(recipe)[0]


def config_and_scaling(recipe: Recipe, *, written: bool = False) -> tuple[PretrainedConfig, str]:
    """The config of the model to train: where g or t is used, with a base's own scaling as its native rotation.

    With it that scaling's `rope_type`, whose angles are divided by g; "" where the base has none, or is kept whole.
    written: take `base_config` for a base that is not a folder here (plans): it may leave out what a model needs.
    """
    config = _base_config(recipe, written)
    return config, "" if recipe.method == "none" else own_as_native(config, recipe.native_window)


def _base_config(recipe: Recipe, written: bool) -> PretrainedConfig:
    if recipe.model:
        return AutoConfig.for_model(**recipe.model)
    if written and recipe.base_config and not Path(recipe.base).expanduser().exists():
        return AutoConfig.for_model(**recipe.base_config)
    name, gguf = _located(recipe.base)
    try:
        if gguf:
            changed = Path(recipe.base).expanduser().stat().st_mtime_ns
            return deepcopy(_gguf_config(name, gguf["gguf_file"], changed))
        return cast(PretrainedConfig, AutoConfig.from_pretrained(name))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _cannot_load(recipe.base, error) from error


@cache
def _gguf_config(folder: str, file: str, changed: int) -> PretrainedConfig:
    """Read once, unless the file has `changed`: it takes seconds, and a plan asks for it often."""
    rope = GgufFile(Path(folder) / file).rope()
    if rope.parameters or rope.factors:
        raise ModelError(
            f"{file} has a RoPE scaling of its own, which a training reads from a config only; give `base` the "
            "safetensors checkpoint"
        )
    return cast(PretrainedConfig, AutoConfig.from_pretrained(folder, gguf_file=file))


def load_model(recipe: Recipe) -> PreTrainedModel:
    """The model to train, float32: the recipe's base, or a new one drawn from its config and seed.

    With FSDP the first process alone reads the base (all of them where adapters are trained): the others hold memory
    that is never touched, until accelerate shards the model and sends each its part.
    Only safetensors and GGUF weights are read, never pickled ones.
    """
    if recipe.model:
        torch.manual_seed(recipe.seed)
        model = AutoModelForCausalLM.from_config(load_config(recipe), attn_implementation=recipe.attention)
        if recipe.plant_induction:
            plant_induction(model, recipe.seed)
        return cast(PreTrainedModel, model)
    if recipe.sharding == "fsdp" and recipe.lora is None and number("RANK") > 0:
        return _unread(recipe)
    name, gguf = _located(recipe.base)
    config = load_config(recipe)
    kind: dict[str, Any] = unpacked_gguf() if gguf else {"use_safetensors": True, "config": config}
    try:
        return AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, attn_implementation=recipe.attention, **kind, **gguf
        )
    except (OSError, ValueError) as error:
        raise _cannot_load(recipe.base, error) from error


def _unread(recipe: Recipe) -> PreTrainedModel:
    """The base's model with memory where its weights belong, not filled and so not taken; its buffers are right."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            load_config(recipe), dtype=torch.float32, attn_implementation=recipe.attention
        )
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # Not left on the meta device: accelerate tells parameters by their address when it gives AdamW new ones.
            setattr(module, name, torch.nn.Parameter(torch.empty_like(parameter, device="cpu")))
    model.tie_weights()
    return cast(PreTrainedModel, model)


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The recipe's tokenizer, else the base's, with the chat template of the recipe's conversations."""
    name, gguf = _located(recipe.tokenizer or recipe.base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **gguf)
    except (OSError, ValueError) as error:
        raise _cannot_load(f"the tokenizer {recipe.tokenizer or recipe.base}", error) from error
    if {source.template for source in recipe.data if source.layout == "sharegpt"} == {"vicuna"}:
        tokenizer.chat_template = VICUNA_TEMPLATE
    return cast(PreTrainedTokenizerBase, tokenizer)


def add_lora(model: PreTrainedModel, recipe: Recipe) -> Any:
    """The model with fresh adapters, if the recipe asks for them."""
    if recipe.lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(recipe.seed)
    config = LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=recipe.lora.targets,
        modules_to_save=recipe.lora.trained or None,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = recipe.base  # peft would name a GGUF file's folder
    return adapted


def _located(name: str) -> tuple[str, dict[str, str]]:
    """Arguments of `from_pretrained` for a folder, hub id or .gguf file."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{name} does not exist; give the path of a GGUF file")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        check_folder_claims(path)
        return str(path), {}
    check_hub_id(name)
    return name, {}


def _cannot_load(name: str, error: Exception) -> ModelError:
    return ModelError(f"cannot load {name}; check `base` in the recipe ({one_line(error)})")
