"""Training recipes: a YAML file read into one dataclass; a key that does not exist is refused by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import yaml

from e2bench.errors import DataError, E2BenchError, UnknownName, one_line
from e2bench.files import read_whole
from e2bench.train.data import Source
from e2bench.train.e2 import E2Settings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

RECIPES = Path(__file__).parent / "recipes"
MOST_BYTES = 1 << 20  # of a recipe
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # PyYAML lets impossible dates and deep nesting through
CHOICES = {
    "schedule": ["cosine", "constant"],
    "precision": ["float32", "bfloat16"],
    "sharding": ["none", "fsdp", "zero2"],
}


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (peft) in place of full fine-tuning. targets: module names, or `all-linear`."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"
    trained: list[str] = field(default_factory=list)  # modules trained whole beside the adapters, as LongLoRA's norms


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run; `e2_config.json` in each checkpoint repeats it.

    base: hub id, folder or .gguf file to start from; empty with `model`.    model: config of a new model
    (`model_type`, …).
    plant_induction: start a new model with heads that copy (initial.py).
    base_config: the base's config, for a dry run on a machine that does not have the base.
    tokenizer: folder or hub id if not the base's.    native_window: L; from the base's config if not given.
    prepare: the command or page that gives base and data; named where one of them is missing.
    method … sinks: see `E2Settings`.    train_window: R.
    batch_size: rows an optimizer step, over all processes.    micro_batch: rows a forward pass and process.
    learning_rate … clip_norm: AdamW with warm-up; cosine falls to `final_rate` of the peak.
    precision: of the forward and backward pass (what is trained and its optimizer state stay float32).
    save_every, log_every: steps.    keep: checkpoints that stay, the newest; null keeps all.
    attention: transformers' `attn_implementation`.    compile: pass and loss by `torch.compile`, on a CPU with a C++
    compiler.    liger: Trainer's `use_liger_kernel` (fused loss, norms and MLP on a GPU), with that package.
    sharding: `fsdp`, `zero2` (DeepSpeed) or `none` (data parallel).
    """

    name: str
    data: list[Source]
    steps: int
    train_window: int
    base: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    plant_induction: bool = False
    base_config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = ""
    native_window: int | None = None
    prepare: str = ""
    method: str = "e2"
    offset: bool = True
    scale: int | None = None
    g_max: int = 20
    per_sample: bool = False
    sinks: int = 4
    batch_size: int = 16
    micro_batch: int = 1
    learning_rate: float = 1e-5
    schedule: str = "cosine"
    final_rate: float = 0.0
    warmup_steps: int = 0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0
    precision: str = "bfloat16"
    gradient_checkpointing: bool = False
    attention: str = "sdpa"
    compile: bool = False
    liger: bool = False
    sharding: str = "none"
    lora: Lora | None = None
    whole_documents: bool = False
    cross_documents: bool = True
    seed: int = 0
    save_every: int = 500
    keep: int | None = 2
    log_every: int = 10

    def __post_init__(self) -> None:
        for key, known in CHOICES.items():
            if getattr(self, key) not in known:
                raise UnknownName(key, str(getattr(self, key)), known)
        for key in ("steps", "train_window", "batch_size", "micro_batch", "save_every", "log_every"):
            if getattr(self, key) < 1:
                raise E2BenchError(f"{key} is {getattr(self, key)} in the recipe: it must be at least 1")
        if self.keep is not None and self.keep < 1:
            raise E2BenchError(f"keep is {self.keep} in the recipe: it must be at least 1, or null to keep all")
        for key in ("seed", "warmup_steps", "learning_rate", "weight_decay", "clip_norm"):
            if getattr(self, key) < 0:
                raise E2BenchError(f"{key} is {getattr(self, key)} in the recipe: it must be at least 0")
        if self.batch_size % self.micro_batch:
            raise E2BenchError(f"batch_size {self.batch_size} is not a multiple of micro_batch {self.micro_batch}")
        if bool(self.base) == bool(self.model):
            raise E2BenchError(
                "a recipe starts from `base` (a checkpoint) or from `model` (a new config): give one of them"
            )
        if self.model and not self.tokenizer:
            raise E2BenchError("a new model needs `tokenizer` in the recipe: a folder or hub id")
        if self.train_window < self.sinks + 1:
            raise E2BenchError(f"train_window is {self.train_window}: it must exceed the {self.sinks} sinks")
        self.e2_settings(1 if self.native_window is None else self.native_window)  # refuses what cannot be

    def e2_settings(self, native_window: int) -> E2Settings:
        """The part that decides positions, for a model of this native window."""
        shared = {f.name for f in dataclasses.fields(E2Settings)} - {"native_window"}
        return E2Settings(native_window=native_window, **{name: getattr(self, name) for name in shared})


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe: the path of a YAML file or the name of a packaged one; `overrides` are `key=value` in YAML syntax.

    `a.b=value` reaches into a nested key, a number into a list: `data.0.weight=2`.
    """
    path = _find(name)
    try:
        values = yaml.safe_load(read_whole(path, MOST_BYTES).decode("utf-8"))
    except NOT_YAML as error:
        raise E2BenchError(f"{path.name} is not valid YAML: {one_line(error)}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise E2BenchError(f"{path.name} must hold `key: value` lines; docs/reference/recipes.md lists the keys")
    for override in overrides or []:
        _override(values, override)
    return build_recipe({"name": path.stem, **values})


def build_recipe(values: dict[str, Any]) -> Recipe:
    """A recipe from plain values, every key and type checked."""
    values = dict(values)
    data = values.get("data", [])
    if not isinstance(data, list):
        raise E2BenchError("`data` in a recipe is a list of sources, each with `files`")
    values["data"] = [_checked(Source, item, "data source") for item in data]
    if values.get("lora") is not None:
        values["lora"] = _checked(Lora, values["lora"], "LoRA setting")
    return _checked(Recipe, values, "recipe key")


def _find(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    packaged = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    if name.removesuffix(".yaml") in packaged:
        return packaged[name.removesuffix(".yaml")]
    if "/" in name or name.endswith((".yaml", ".yml")):
        raise DataError(f"recipe {name} does not exist; give the path of a YAML file or one of: {', '.join(packaged)}")
    raise UnknownName("recipe", name, list(packaged))


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise E2BenchError(f"{override!r} is not an override; write key=value, as in steps=100")
    *parents, last = key.split(".")
    place: Any = values
    try:
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = _override_value(text, override)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise E2BenchError(f"override {override!r} does not fit the recipe: {one_line(error)}") from error


def _override_value(text: str, override: str) -> Any:
    try:
        return yaml.safe_load(text)
    except NOT_YAML:
        raise E2BenchError(f"override {override!r} has a value that is not valid YAML") from None


def _checked(kind: type[T], values: Any, what: str) -> T:
    """`kind(**values)` after checking names and plain types; YAML reads 1e-5 as text, so numbers are converted."""
    if not isinstance(values, dict):
        raise E2BenchError(f"a {what} must hold `key: value` pairs; got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise UnknownName(what, str(name), list(fields))
    missing = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and name not in values
    ]
    if missing:
        raise E2BenchError(f"the recipe lacks {missing[0]!r} ({what}); add it")
    hints = get_type_hints(kind)
    return kind(**{name: _typed(name, value, hints[name]) for name, value in values.items()})


def _typed(name: str, value: Any, hint: Any) -> Any:
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    optional = str(hint).endswith("| None")
    if value is None and optional:
        return None
    kind = next((k for k in wanted if hint in (k, k | None)), None)
    if kind is None or (type(value) is kind):
        return value
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise E2BenchError(f"{name} is {value!r} in the recipe: it must be {wanted[kind]}")
