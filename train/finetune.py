"""E² fine-tuning on transformers' Trainer: a recipe in; checkpoints, `train.jsonl` and a final model out.

Every row carries its number, and its (g, t) follows from (seed, step, sample) alone, so micro-batches, processes and
restarts see the same positions without talking to each other.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments, default_data_collator
from transformers.trainer_pt_utils import safe_globals

from e2bench.compat import enable_activation_checkpointing
from e2bench.environment import check_launcher, number
from e2bench.errors import DataError, E2BenchError, RunFailed, RunFolderError, one_line
from e2bench.experiments.training import every_wording, trained_on
from e2bench.extras import require
from e2bench.files import disk_errors, make_folder, read_json, write_json
from e2bench.models.identity import tokenizer_hash, weights_hash
from e2bench.rope.config import native_window, text_config
from e2bench.runs.lock import LOCK, FolderLock
from e2bench.train.callbacks import (
    CONFIG_NAME,
    FILES,
    CheckpointConfig,
    KeptFrequencies,
    StopOnSignal,
    TrainLog,
    checkpoint_hashes,
    complete_checkpoints,
    numbered_checkpoints,
    step_of,
)
from e2bench.train.data import data_hashes
from e2bench.train.e2 import Draw, E2Settings, draw
from e2bench.train.loading import add_lora, config_and_scaling, load_config, load_model, load_tokenizer
from e2bench.train.recipe import RECIPES, Recipe
from e2bench.train.rotary import E2Positions, as_tensor
from e2bench.train.rows import PackedRows
from e2bench.train.step import check_liger, compile_step, compiling, frozen_matrices, loss_alone, without_mask
from e2bench.train.weights import store_as


class E2Trainer(Trainer):
    """A Trainer whose rows are rotated at E² positions. rows_per_step: rows an optimizer step, over all processes."""

    def __init__(self, *, settings: E2Settings, rows_per_step: int, **kwargs: Any) -> None:
        super().__init__(data_collator=self._batch, **kwargs)
        self.remove_callback(PrinterCallback)  # TrainLog prints
        self.settings, self.rows_per_step = settings, rows_per_step
        assert self.model is not None  # only Trainer's type says that it may be
        self.positions = E2Positions(self.model)
        self.add_callback(KeptFrequencies(self.positions))
        self.last_draws = as_tensor([Draw(1, 0, settings.sinks)])

    def _batch(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Rows as one batch, with the draws (B, 3) that their numbers decide: made on the CPU, moved with the rest."""
        batch = default_data_collator(rows)
        numbers = batch.pop("row").tolist()
        batch["draws"] = as_tensor([draw(self.settings, *divmod(row, self.rows_per_step)) for row in numbers])
        return batch

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's batches of a step; reading them leaves the random state alone.

        A data loader draws a number when it begins: a resumed run begins more often, and its dropout would differ.
        """
        with torch.random.fork_rng(devices=[]):
            return super().get_batch_samples(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The model's own loss, at the positions that `draws` (B, 3) in `inputs` say; without reading them here."""
        draws = inputs.pop("draws")
        self.last_draws = draws if self.settings.per_sample else draws[:1]  # else those of a step are equal
        self.positions.put(self.last_draws)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with compiling():
            return super().training_step(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with saving(Path(str(self.args.output_dir))):
            super()._save_checkpoint(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log with the g and t of this process's newest row."""
        if "loss" in logs:
            scale, offset, _ = map(int, self.last_draws[-1].tolist())
            logs = {**logs, "g": scale, "t": offset}
        super().log(logs, start_time)


def check_sharding(recipe: Recipe) -> None:
    """Raise E2BenchError where nothing would be sharded: FSDP on a CPU, either kind in one process."""
    if recipe.sharding == "zero2":
        require("deepspeed", "deepspeed", "sharding: zero2")
    if recipe.sharding == "fsdp" and not torch.cuda.is_available():
        raise E2BenchError(
            "sharding: fsdp is not done without a GPU (accelerate would copy everything); give sharding=none"
        )
    if recipe.sharding != "none" and processes_started() == 1:
        raise E2BenchError(
            f"sharding: {recipe.sharding} has nothing to share in one process; start several with torchrun, or give "
            "sharding=none"
        )


def training_arguments(recipe: Recipe, out: Path) -> TrainingArguments:
    """The recipe in Trainer's words."""
    if recipe.compile and recipe.sharding != "none":
        raise E2BenchError(f"compile: true goes with sharding: none, and this recipe has {recipe.sharding}; drop one")
    check_sharding(recipe)
    if recipe.liger:
        check_liger(load_config(recipe).model_type)
    cosine = recipe.schedule == "cosine"
    optional: dict[str, Any] = {}
    if recipe.sharding == "zero2":
        optional["deepspeed"] = str(RECIPES / "zero2.json")
    elif recipe.sharding == "fsdp":
        optional |= {"fsdp": True, "fsdp_config": str(RECIPES / "fsdp.json")}
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.micro_batch,
        gradient_accumulation_steps=_accumulation(recipe),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine_with_min_lr" if cosine else "constant_with_warmup",
        lr_scheduler_kwargs={"min_lr_rate": recipe.final_rate} if cosine else None,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.beta1,
        adam_beta2=recipe.beta2,
        max_grad_norm=recipe.clip_norm,
        use_cpu=not torch.cuda.is_available(),
        bf16=recipe.precision == "bfloat16",
        use_liger_kernel=recipe.liger,
        seed=recipe.seed,
        save_steps=recipe.save_every,
        logging_steps=recipe.log_every,
        logging_nan_inf_filter=False,  # a loss that is not a number must be seen
        report_to=[name for name in ("tensorboard", "wandb") if find_spec(name)] or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"dispatch_batches": False},  # every process reads the rows and keeps its own
        ignore_data_skip=True,  # PackedRows starts at the right row itself
        **optional,
    )
    if arguments.n_gpu > 1:  # Trainer would put rows of its own on each, beside the recipe's batch
        raise E2BenchError(
            f"one process sees {arguments.n_gpu} GPUs; start with torchrun --nproc-per-node {arguments.n_gpu} "
            "-m e2bench train …, or set CUDA_VISIBLE_DEVICES to one of them"
        )
    return arguments


def processes_started() -> int:
    """How many processes torchrun or accelerate started; asking accelerate would settle its device too early."""
    return number("WORLD_SIZE", 1)


def _accumulation(recipe: Recipe) -> int:
    processes = processes_started()
    accumulation, rest = divmod(recipe.batch_size, recipe.micro_batch * processes)
    if rest:
        raise E2BenchError(
            f"batch_size {recipe.batch_size} is not a multiple of micro_batch {recipe.micro_batch} times {processes} "
            "processes; change one of them"
        )
    return accumulation


def e2_config(recipe: Recipe) -> dict[str, Any]:
    """What `e2_config.json` holds, but for `step` and `tokens` (docs/files.md)."""
    config, base_scaling = config_and_scaling(recipe)
    settings = dataclasses.asdict(recipe)
    del settings["prepare"]  # advice, not a setting
    return {
        "base": Path(recipe.base).name if recipe.base else recipe.model["model_type"],
        **dataclasses.asdict(recipe.e2_settings(recipe.native_window or native_window(config))),
        "base_scaling": base_scaling,
        "steps": recipe.steps,
        "settings": settings,
        "data": data_hashes(recipe.data),
    }


MARKER = ".e2bench-train.json"  # in a folder that `e2bench train` made: nothing else is ever deleted or overwritten


def prepare_folder(out: Path, config: dict[str, Any], fresh: bool) -> None:
    """Remove torn checkpoints, or with `fresh` all; refuse a folder that no training of ours made.

    Only `checkpoint-STEP` is ever removed; a copy under another name is the user's. Raises RunFolderError for a newest
    checkpoint, or a final model, that is damaged or has other settings.
    """
    check_ours(out)
    with disk_errors(out):
        if fresh or not (out / MARKER).exists():
            write_json(out / MARKER, {"made_by": "e2bench train"})
        kept = [] if fresh else complete_checkpoints(out)
        for path in set(numbered_checkpoints(out)) - set(kept):
            _remove(path)
    if fresh or not (kept or (out / CONFIG_NAME).exists()):
        return
    stored = checked_checkpoint(kept[-1]) if kept else read_json(out / CONFIG_NAME)
    for setting, before, now in _differences(stored, json.loads(json.dumps(config))):
        raise RunFolderError(
            f"{out} holds a run with {setting} = {before!r}, now it is {now!r}; "
            "use --fresh to start over or another --out"
        )


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except RecursionError:  # it goes down a thousand folders
        raise RunFolderError(f"{folder} is nested too deep to be removed; remove it yourself (rm -r)") from None


def check_start(out: Path, model: Any, tokenizer: Any) -> None:
    """Record what the training starts from; RunFolderError where a continued one began from something else.

    model: before its first step: the base, with fresh adapters if there are any; None where it is drawn from the seed.
    """
    now = {"start": weights_hash(model) if model is not None else "", "tokenizer": tokenizer_hash(tokenizer)}
    marker = read_json(out / MARKER)
    for name, what in (("start", "another base model"), ("tokenizer", "another tokenizer or chat template")):
        if marker.get(name, now[name]) != now[name]:
            raise RunFolderError(f"{out} was begun from {what}; use --fresh to start over or another --out")
    write_json(out / MARKER, {**marker, **now})


def check_ours(out: Path) -> None:
    """Raise RunFolderError for a folder with something in it that no `e2bench train` made."""
    inside = sorted(path.name for path in out.iterdir() if path.name != LOCK)
    ours = (out / MARKER).is_file() or (out / CONFIG_NAME).is_file() or bool(complete_checkpoints(out))
    if inside and not ours and inside != ["train.jsonl"]:
        raise RunFolderError(f"{out} holds {inside[0]}, which no e2bench train made; choose another --out")


NEEDED = ("trainer_state.json", "optimizer.pt", "scheduler.pt")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


def checked_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's `e2_config.json`, after its other files were checked: RunFolderError for a damaged one.

    Checked by the hashes that it carries. One of an older version has none: then that nothing is missing, and that each
    file can be opened.
    """
    path = checkpoint / CONFIG_NAME
    try:
        stored = read_json(path)
        if not all(isinstance(stored.get(group), dict) for group in ("settings", "data")):
            raise DataError("it holds no settings")
        if isinstance(stored.get(FILES), dict):
            _check_hashes(checkpoint, stored[FILES])
            return stored
        if stored["settings"].get("sharding", "none") == "none":
            _check_present(checkpoint)
        for path in checkpoint.glob("*.json"):
            read_json(path)
        for path in checkpoint.glob("*.safetensors"):
            with safe_open(path, "pt"):
                pass
        with safe_globals():
            for path in [*checkpoint.glob("*.pt"), *checkpoint.glob("rng_state*.pth")]:
                torch.load(path, map_location="cpu", weights_only=True, mmap=path.suffix == ".pt")
    except Exception as error:  # torch, pickle, zipfile and safetensors raise their own many kinds
        reason = one_line(error) or type(error).__name__
        if not isinstance(error, E2BenchError):
            reason = f"{path.name}: {reason}"
        raise RunFolderError(
            f"{checkpoint} is damaged ({reason}); delete that folder to go on from the checkpoint before it"
        ) from None
    return stored


def _check_hashes(checkpoint: Path, known: dict[str, str]) -> None:
    """Raise DataError naming a file that is missing or another than was written."""
    found = checkpoint_hashes(checkpoint)
    for name, digest in known.items():
        if name not in found:
            raise DataError(f"{name} is missing")
        if found[name] != digest:
            raise DataError(f"{name} is not what was written (SHA-256 {found[name][:16]}…)")


def _check_present(checkpoint: Path) -> None:
    names = {path.name for path in checkpoint.iterdir()}
    missing = [name for name in NEEDED if name not in names]
    if not names & set(WEIGHTS):
        missing.insert(0, WEIGHTS[0])
    if not any(name.startswith("rng_state") for name in names):
        missing.append("rng_state.pth")
    if missing:
        raise DataError(f"{missing[0]} is missing")


@contextmanager
def saving(out: Path) -> Iterator[None]:
    """A full disk while weights are written, as one line: safetensors and torch raise errors of their own kind."""
    try:
        with disk_errors(out):
            yield
    except (SafetensorError, RuntimeError) as error:
        raise RunFailed(
            f"{out}: a checkpoint could not be written ({one_line(error)}); what was finished is kept: "
            "free some space and give the same command again"
        ) from None


def _differences(stored: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for group in ("settings", "data"):
        for key in sorted(stored[group].keys() | now[group].keys()):
            if stored[group].get(key) != now[group].get(key):
                yield key, stored[group].get(key), now[group].get(key)


def make_trainer(
    recipe: Recipe,
    arguments: TrainingArguments,
    rows: IterableDataset[dict[str, torch.Tensor]],
    *,
    begun: Callable[[Any], None] = lambda model: None,
    **kwargs: Any,
) -> E2Trainer:
    """A trainer for the recipe's model on these rows; `kwargs` go to Trainer. begun: told the model as it was read."""
    model = load_model(recipe)
    settings = recipe.e2_settings(recipe.native_window or native_window(model.config))
    model = add_lora(model, recipe)
    begun(model)
    for parameter in frozen_matrices(model, recipe):
        parameter.data = parameter.data.to(torch.bfloat16)
    whole = getattr(model, "get_base_model", lambda: model)()  # adapters are inside
    without_mask(whole, recipe)
    loss_alone(whole)
    if recipe.gradient_checkpointing:
        enable_activation_checkpointing(whole)
    if recipe.compile:
        compile_step(whole)
    trainer = E2Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        settings=settings,
        rows_per_step=recipe.batch_size,
        **kwargs,
    )
    done = {"none": True, "fsdp": trainer.is_fsdp_enabled, "zero2": trainer.is_deepspeed_enabled}
    if not done[recipe.sharding]:
        raise E2BenchError(f"sharding: {recipe.sharding} was asked for, and accelerate does not do it here")
    return trainer


class NoRows(IterableDataset[dict[str, torch.Tensor]]):
    """What is left to train on when every step is done."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(())


def packed_rows(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, first_step: int = 0, *, makes: bool = True
) -> PackedRows:
    """The recipe's training rows, from those of step `first_step` on. makes: this process tokenises (`tokenised`)."""
    return PackedRows(
        recipe.data,
        tokenizer,
        train_window=recipe.train_window,
        seed=recipe.seed,
        whole_documents=recipe.whole_documents,
        cross_documents=recipe.cross_documents,
        first_row=first_step * recipe.batch_size,
        vocabulary=text_config(load_config(recipe)).vocab_size,
        wordings=every_wording(),
        makes=makes,
    )


def base_wordings(recipe: Recipe) -> dict[str, int | None]:
    """Rows with an evaluation's words in the training of the base, where `e2bench train` made it too."""
    config = Path(recipe.base).expanduser() / CONFIG_NAME
    return trained_on(read_json(config)) if recipe.base and config.is_file() else {}


def together(rows: Mapping[str, int], before: Mapping[str, int | None]) -> dict[str, int | None]:
    """Rows of both trainings by wording; None where some occur and nobody counted them all."""
    uncounted = {name for name, count in before.items() if count is None}
    return {name: None if name in uncounted else count + (before.get(name) or 0) for name, count in rows.items()}


def train(recipe: Recipe, out: Path, *, fresh: bool = False) -> bool:
    """Run a recipe into `out`, on from its newest checkpoint if it has one. False if a signal ended it early.

    Afterwards `out` holds the final model in the precision of its training, the tokenizer with the chat template of its
    data, `e2_config.json`, `train.jsonl` and the checkpoints, which keep float32 weights.
    Optimizer and random state are read with torch's `weights_only`, so a checkpoint cannot run code.
    """
    check_launcher()
    arguments = training_arguments(recipe, out)
    tokenizer = load_tokenizer(recipe)
    config = e2_config(recipe)
    lock = FolderLock(out)
    with arguments.main_process_first(local=False):
        if arguments.process_index == 0:
            make_folder(out)
            lock.acquire()
            try:
                prepare_folder(out, config, fresh)
            except BaseException:
                lock.release()
                raise
    try:
        return _train(recipe, out, arguments, tokenizer, config)
    finally:
        lock.release()


def _train(recipe: Recipe, out: Path, arguments: Any, tokenizer: Any, config: dict[str, Any]) -> bool:
    """Train in a folder that is ours."""
    checkpoint = next(reversed(complete_checkpoints(out)), None)
    first_step = step_of(checkpoint) if checkpoint else 0
    tokens_per_step = recipe.batch_size * recipe.train_window
    packed = packed_rows(recipe, tokenizer, first_step, makes=arguments.local_process_index == 0)
    arguments.distributed_state.wait_for_everyone()  # what was there has been checked
    rows: IterableDataset[dict[str, torch.Tensor]] = packed
    before = base_wordings(recipe)
    writer = CheckpointConfig(config, tokens_per_step, recipe.keep, lambda: together(packed.rows_with, before))
    with StopOnSignal() as stop:
        log = [TrainLog(out, tokens_per_step, first_step)] if arguments.process_index == 0 else []
        if checkpoint is not None and first_step >= recipe.steps:
            # killed between its last checkpoint and the final model: Trainer would take a step before it counts them
            rows = NoRows()
            writer.wordings = lambda: trained_on(read_json(checkpoint / CONFIG_NAME))
            logging.getLogger("transformers.trainer").setLevel(logging.ERROR)  # it warns that there are none

        def begun(model: Any) -> None:
            if arguments.process_index == 0:
                check_start(out, model if recipe.base else None, tokenizer)

        callbacks = [writer, stop, *log]
        trainer = make_trainer(recipe, arguments, rows, begun=begun, processing_class=tokenizer, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < recipe.steps:
        return False
    with saving(out):
        trainer.save_model(str(out))
    if arguments.process_index == 0:
        with saving(out):
            store_as(out, getattr(torch, recipe.precision))
        writer.write(out, recipe.steps)
    return True
