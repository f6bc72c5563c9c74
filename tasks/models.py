"""Presets: one row for every system in Tables 1, 2, 3 and 7 of the paper, by the name that the tables give it.

A preset is what the system needs to be run as it was published: where its weights are, its native window L and the
linear factor g that it was tuned for, the prompt limit that LongBench's rule gives its window, and its chat format.
Sources: the hub's config.json files; model2path and model2maxlen of THUDM/LongBench at 2e00731.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

RECIPE_7B, RECIPE_13B = "llama2-7b", "llama2-13b"


@dataclass(frozen=True)
class Preset:
    """One published system.

    repo: hub id, or the base URL of an endpoint; None: never published, then `recipe` trains it.
    scale: linear factor g; 1: no scaling.    input_limit: tokens of a LongBench prompt, at the preset's own window.
    chat: a `--chat-template`; of recipes the one that they train with.    served_api: a `--served-api`.    pickled: its weights are published as pickles, which need --allow-pickle.
    """

    name: str
    repo: str | None
    native_window: int | None
    scale: int
    window: int
    input_limit: int | None
    chat: str
    tables: str
    recipe: str | None = None
    pickled: bool = False
    served_model: str | None = None
    served_api: str | None = None
    tokenizer: str | None = None
    note: str = ""

    @property
    def endpoint(self) -> bool:
        """Whether it is served over HTTP."""
        return self.repo is not None and self.repo.startswith("http")


K = 1024
CONDENSED = "older revisions of its config say rope_condense_ratio, which transformers ignores: the preset sets g"
GONE = (
    "the provider has retired this model; its scores cannot be measured any more. Give --served-model for a successor"
)
LONGALPACA = "the paper calls this row LongLora-7B-16k; its 18 cells are LongAlpaca-7B-16k's published predictions"


def _e2(size: str, scale: int, tables: str) -> Preset:
    recipe = RECIPE_7B if size == "7B" else RECIPE_13B
    window = scale * 4 * K
    limit = 1000 * (window // K) - 500
    return Preset(f"E²-LLM-Llama2-{size}-{window // K}k", None, 4 * K, scale, window, limit, "vicuna", tables, recipe)


# fmt: off
PRESETS: tuple[Preset, ...] = (
    Preset("GPT-3.5-Turbo-16k", "https://api.openai.com/v1", None, 1, 16 * K, 15500, "none", "1, 2", served_model="gpt-3.5-turbo-16k", served_api="chat", tokenizer="Xenova/gpt-3.5-turbo-16k", note=GONE),
    Preset("Llama2-7B-chat-4k", "meta-llama/Llama-2-7b-chat-hf", 4 * K, 1, 4 * K, 3500, "llama2", "1, 2"),
    Preset("LongChat-v1.5-7B-32k", "lmsys/longchat-7b-v1.5-32k", 4 * K, 8, 32 * K, 31500, "longchat", "1, 2, 3", pickled=True, note=CONDENSED),
    Preset("Vicuna-v1.5-7B-16k", "lmsys/vicuna-7b-v1.5-16k", 4 * K, 4, 16 * K, 15500, "vicuna", "1, 2, 3", pickled=True),
    Preset("LongLora-7B-16k", "Yukang/LongAlpaca-7B-16k", 4 * K, 4, 16 * K, 15500, "none", "1, 2", pickled=True, note=LONGALPACA),
    _e2("7B", 4, "1, 2, 3"),
    _e2("7B", 8, "1, 2, 3, 7"),
    _e2("7B", 16, "3, 7"),
    Preset("Llama2-13B-chat-4k", "meta-llama/Llama-2-13b-chat-hf", 4 * K, 1, 4 * K, 3500, "llama2", "1, 2"),
    Preset("Vicuna-v1.5-13B-16k", "lmsys/vicuna-13b-v1.5-16k", 4 * K, 4, 16 * K, 15500, "vicuna", "1, 2, 3", pickled=True),
    Preset("PI-Llama2-13B-16k", None, 4 * K, 4, 16 * K, 15500, "vicuna", "1, 2", recipe=f"{RECIPE_13B} method=pi scale=4 train_window=16384"),
    _e2("13B", 4, "1, 2, 3"),
    _e2("13B", 8, "1, 2, 3, 7"),
    _e2("13B", 16, "3, 7"),
    Preset("Llama2-7B-4k", "meta-llama/Llama-2-7b-hf", 4 * K, 1, 4 * K, 3500, "none", "3, 7"),
    Preset("Llama2-13B-4k", "meta-llama/Llama-2-13b-hf", 4 * K, 1, 4 * K, 3500, "none", "3, 7"),
)
# fmt: on


def plain(name: str) -> str:
    """A name as it is compared: lower case, the superscript as a digit."""
    return name.lower().replace("²", "2")


BY_NAME = {plain(preset.name): preset for preset in PRESETS}


def find(name: str | None) -> Preset | None:
    """The preset of that name, in any case, `E2` for `E²`; None for what is no preset's name (a path, a hub id)."""
    return BY_NAME.get(plain(name)) if name else None


def near(name: str) -> list[str]:
    """The preset's name that a misspelt one must have meant; empty where none is close."""
    return [BY_NAME[found].name for found in get_close_matches(plain(name), list(BY_NAME), n=1, cutoff=0.8)]
