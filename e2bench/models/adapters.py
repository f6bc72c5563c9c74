"""PEFT adapters, merged into their base with everything that was trained beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2bench.errors import ModelError
from e2bench.files import read_json
from e2bench.models.claims import ADAPTER, check_adapter
from e2bench.models.findings import NOTE, OK, find

CHECK = "adapter"
# Trained weights that other trainers leave beside an adapter (LongLoRA, LLaVA's recipe).
SIDE_FILES = ("trainable_params.bin", "non_lora_trainables.bin", "trainable_params.safetensors")
# What torch.compile and multimodal wrappers put into the names of modules.
WRAPPERS = ("_orig_mod.", "language_model.")


def merge_adapter(hf: Any, adapter: Path, *, allow_pickle: bool) -> Any:
    """The base with the adapter of a folder merged in. Raises ModelError naming what would be dropped."""
    from peft import PeftConfig, PeftModel
    from peft.utils import set_peft_model_state_dict
    from safetensors.torch import load_file

    if not (adapter / ADAPTER).exists():
        raise ModelError(f"{adapter} holds no {ADAPTER} (pickled adapters are not read)")
    state = _without_copies(load_file(adapter / ADAPTER))
    config = adapter / "adapter_config.json"
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    check_adapter(read_json(config), str(config), shapes, [name for name, _ in hf.named_modules()])
    _resize(hf, state)
    _merge_side_file(hf, adapter, allow_pickle=allow_pickle)
    model = PeftModel(hf, PeftConfig.from_pretrained(str(adapter)))
    known = set(_expected(model))
    state = _renamed(state, known, adapter)
    result = set_peft_model_state_dict(model, state)
    if lost := sorted(getattr(result, "unexpected_keys", None) or []):
        raise ModelError(f"{adapter}: {len(lost)} of the adapter's tensors fit nowhere, {lost[0]} among them")
    if missing := sorted(known - set(state)):
        raise ModelError(f"{adapter} lacks {len(missing)} of the adapter's tensors, {missing[0]} among them")
    find(CHECK, OK, f"all {len(state)} tensors of {ADAPTER} are merged")
    return model.merge_and_unload()


def _expected(model: Any) -> Mapping[str, Any]:
    from peft.utils import get_peft_model_state_dict

    found: Mapping[str, Any] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return found


def _renamed(state: dict[str, Any], known: set[str], adapter: Path) -> dict[str, Any]:
    """The state under the model's own names, where taking a wrapper's part out of them is unambiguous."""
    strays = [key for key in state if key not in known]
    if not strays:
        return state
    for wrapper in WRAPPERS:
        plain = {key.replace(wrapper, ""): value for key, value in state.items()}
        if len(plain) == len(state) and known <= set(plain):
            found = f"names of {ADAPTER} without {wrapper!r}, which a wrapper of its training put in"
            find(CHECK, NOTE, found, "under its own names the adapter would be left out", "they are taken so")
            return plain
    return state


def _without_copies(state: dict[str, Any]) -> dict[str, Any]:
    """The state without what PEFT saves twice after a resize: `X.modules_to_save.weight` beside an equal `X.weight`."""
    import torch

    kept = {}
    for key, tensor in state.items():
        plain = key.replace(".modules_to_save.", ".").replace(".original_module.", ".")
        is_copy = plain != key and plain in state
        if not is_copy or (".modules_to_save." in key and not torch.equal(tensor, state[plain])):
            kept[key] = tensor
    return kept


def _resize(hf: Any, state: Mapping[str, Any]) -> None:
    """Give the base as many embedding rows as the adapter trained, where it saved them whole."""
    rows = {
        int(tensor.shape[0])
        for key, tensor in state.items()
        if re.search(r"(embed_tokens|wte|lm_head|embed_out)(\.modules_to_save(\.default)?)?\.weight$", key)
    }
    if len(rows) == 1 and (most := rows.pop()) != hf.get_input_embeddings().weight.shape[0]:
        hf.resize_token_embeddings(most, mean_resizing=False)
        find(CHECK, NOTE, f"it has {most} embedding rows", "", "the base is resized to them")


def _merge_side_file(hf: Any, adapter: Path, *, allow_pickle: bool) -> None:
    """Take over the trained weights of a file beside the adapter, such as LongLoRA's embeddings and norms."""
    found = next((adapter / name for name in SIDE_FILES if (adapter / name).exists()), None)
    if found is None:
        return
    if found.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(found)
    elif allow_pickle:
        import torch

        state = torch.load(found, map_location="cpu", weights_only=True)
    else:
        raise ModelError(
            f"{found} holds weights that were trained beside the adapter, as a pickle; give --allow-pickle to read its "
            "tensors alone: without them the numbers would be another model's"
        )
    own = dict(hf.named_parameters())
    for key, tensor in state.items():
        name = key.removeprefix("base_model.").removeprefix("model.") if key.startswith("base_model.model.") else key
        if name not in own or own[name].shape != tensor.shape:
            raise ModelError(f"{found}: the tensor {key} fits nowhere in the base model")
        own[name].data.copy_(tensor.to(own[name]))
    find(CHECK, NOTE, f"{found.name}: {len(state)} trained tensors beside the adapter", "", "they are merged too")
