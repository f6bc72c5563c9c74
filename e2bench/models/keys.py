"""Tensors of a checkpoint against those of the model: nothing is dropped, nothing is left random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from e2bench.errors import ModelError
from e2bench.models.findings import NOTE, OK, find

CHECK = "weights"
# Parts of a checkpoint that read no text, and what is computed, not learned.
OTHER_SENSES = ("vision", "visual", "image", "audio", "speech", "multi_modal_projector", "multimodal", "mm_projector")
COMPUTED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")


def check_keys(path: str, info: Mapping[str, Any]) -> None:
    """Raise ModelError naming tensors that the model lacks or does not take.

    info: `from_pretrained(…, output_loading_info=True)`.
    """
    if missing := sorted(info["missing_keys"]):  # transformers fills them with random numbers and goes on
        raise ModelError(f"{path} lacks {len(missing)} of the model's tensors, {missing[0]} among them")
    unused = sorted(info["unexpected_keys"])
    senses = [key for key in unused if any(word in key.lower() for word in OTHER_SENSES)]
    dropped = [key for key in unused if key not in senses and not key.endswith(COMPUTED)]
    if dropped:
        raise ModelError(
            f"{path} holds {len(dropped)} tensors that the model does not take, {dropped[0]} among them: the config is "
            "not the weights' own (layers, biases, quantisation scales?), or transformers lacks a part of the model"
        )
    if senses:
        find(CHECK, NOTE, f"{len(senses)} tensors of other senses ({senses[0]} …) are left out", "", "texts only")
    else:
        find(CHECK, OK, "every tensor of the file is in the model, and none is missing")
