"""A new Llama that can copy from its first step: an induction circuit planted into its random weights.

Small models find such a circuit late (Olsson et al., arXiv 2209.11895), after more tokens than two cores read in an
hour, and without it nothing about keys in long texts can be measured. So two heads are written down, and training takes
it from there; nothing is frozen. Mimetic initialization (Trockman & Kolter, arXiv 2305.09828) is the same idea.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

CONSTANT = 8.0  # residual dimension 0 after normalization, where the other entries are about 1
SHARPNESS = 8.0  # nats by which the token before wins over its neighbours
COPY = 0.5  # weight of what is copied, in the residual stream
FAST = 0.15  # rad a token: frequencies that tell neighbours apart; slower ones only add what varies with a token's norm


def plant_induction(model: LlamaForCausalLM, seed: int) -> None:
    """Layer 0, head 0 looks one token back and notes that token; layer 1, head 0 finds the current token in the notes.

    Where it finds it, the token that came next is copied to the output. Residual dimension 0 is a constant, so that a
    head can look at distance alone; the last `head_dim / 2` dimensions hold the notes.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    hidden, std = config.hidden_size, config.initializer_range
    head = int(config.head_dim or hidden // config.num_attention_heads)
    notes = head // 2
    words, noted = slice(1, hidden - notes), slice(hidden - notes, hidden)
    count = hidden - notes - 1
    read = torch.randn(notes, count, generator=generator) / count**0.5
    value = torch.randn(head, count, generator=generator) / count**0.5
    layers: Any = model.model.layers
    with torch.no_grad():
        for layer in layers:  # what the random parts write must not drown the embeddings
            layer.self_attn.o_proj.weight *= std
            layer.mlp.down_proj.weight *= std
        embedding = model.model.embed_tokens.weight
        embedding[:, 0] = CONSTANT * std
        embedding[:, noted] = 0
        first, second = layers[0].self_attn, layers[1].self_attn
        for attention in (first, second):
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                projection.weight[:head] = 0
            attention.o_proj.weight[:, :head] = 0
        _look_back(first.q_proj.weight[:head], first.k_proj.weight[:head], model.model.rotary_emb.inv_freq)
        first.v_proj.weight[:notes, words] = read
        first.o_proj.weight[noted, :notes] = 2 * std * torch.eye(notes)
        _match(second.q_proj.weight[:head, words], second.k_proj.weight[:head, noted], read)
        second.v_proj.weight[:head, words] = value
        second.o_proj.weight[words, :head] = COPY * value.T


def _look_back(query: Tensor, key: Tensor, inv_freq: Tensor) -> None:
    """Constant query and key whose angles agree at distance 1: score Σ_j A² cos((m - n - 1) θ_j) / sqrt(head_dim).

    query, key: (head_dim, hidden) rows of the head, written in place.    inv_freq: (head_dim / 2,).
    """
    fast = (inv_freq > FAST).float()
    gap = (fast * (1 - torch.cos(inv_freq))).sum()
    amplitude = fast * (SHARPNESS * len(query) ** 0.5 / gap) ** 0.5 / CONSTANT
    half = len(query) // 2
    query[:half, 0] = amplitude
    key[:half, 0] = amplitude * torch.cos(inv_freq)
    key[half:, 0] = amplitude * torch.sin(inv_freq)


def _match(query: Tensor, key: Tensor, read: Tensor) -> None:
    """Compare in the slower half of the rotary frequencies, which distance inside the window hardly turns.

    query: (head_dim, words).    key: (head_dim, notes).    read: (notes, words), how notes were taken.
    """
    head, notes = len(query), len(read)
    slow = torch.cat([torch.arange(head // 4, head // 2), torch.arange(3 * head // 4, head)])
    strength = (1.5 * SHARPNESS * head**0.5 / notes) ** 0.5
    query[slow] = strength * read
    key[slow] = strength * torch.eye(notes)
