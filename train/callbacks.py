"""What happens beside the training step: the log, `e2_config.json` in each checkpoint, and stopping on a signal."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from e2bench.errors import DataError, RunFolderError
from e2bench.files import disk_errors, read_rows, sha256_of, write_atomic, write_json
from e2bench.train.rotary import E2Positions

CONFIG_NAME = "e2_config.json"
LOG_NAME = "train.jsonl"
FILES = "files"  # in a checkpoint's e2_config.json: file: SHA-256
HASHED_TOGETHER = 4


class TrainLog(TrainerCallback):
    """Appends `step, loss, g, t, lr, tokens, seconds` lines to `train.jsonl`; lines of steps done again are dropped."""

    def __init__(self, folder: Path, tokens_per_step: int, first_step: int) -> None:
        self.path, self.tokens_per_step = folder / LOG_NAME, tokens_per_step
        rows = [row for row in _logged(self.path) if row["step"] <= first_step]
        write_atomic(self.path, "".join(f"{json.dumps(row)}\n" for row in rows))
        self._before = rows[-1]["seconds"] if rows else 0.0
        self._started = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        line = {
            "step": state.global_step,
            "loss": logs["loss"],
            "g": logs["g"],
            "t": logs["t"],
            "lr": logs["learning_rate"],
            "tokens": state.global_step * self.tokens_per_step,
            "seconds": round(self._before + time.perf_counter() - self._started, 3),
        }
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"step {line['step']}/{state.max_steps}  loss {line['loss']:.4f}  g {line['g']}  t {line['t']:,}  "
            f"lr {line['lr']:.2e}  {line['seconds']:,.0f} s",
            flush=True,
        )


def _logged(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a training's log. Raises RunFolderError for a damaged one, which would be written anew."""
    try:
        rows = read_rows(path) if path.exists() else []
        if not all(isinstance(row.get(key), int | float) for row in rows for key in ("step", "seconds")):
            raise DataError(f"{path}: a line has no step or seconds")
    except DataError as error:
        raise RunFolderError(f"{error}; mend the line, move the file away, or use --fresh to start over") from None
    return rows


def numbered_checkpoints(out: Path) -> list[Path]:
    """Folders `checkpoint-STEP` of a training folder, oldest first; a copy under a name of one's own is none."""
    found = [path for path in out.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit() and path.is_dir()]
    return sorted((path for path in found if path.name == f"checkpoint-{step_of(path)}"), key=step_of)


def complete_checkpoints(out: Path) -> list[Path]:
    """Checkpoints of a training folder that were written to the end, oldest first."""
    return [path for path in numbered_checkpoints(out) if (path / CONFIG_NAME).exists()]


def step_of(checkpoint: Path) -> int:
    """The optimizer step in a checkpoint's name."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoint_hashes(folder: Path) -> dict[str, str]:
    """File, relative to a checkpoint: SHA-256. Files are read side by side; `e2_config.json` holds the result."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CONFIG_NAME)
    with ThreadPoolExecutor(HASHED_TOGETHER) as pool:
        digests = list(pool.map(sha256_of, paths))
    return {path.relative_to(folder).as_posix(): digest for path, digest in zip(paths, digests, strict=True)}


class CheckpointConfig(TrainerCallback):
    """Writes `e2_config.json` into each checkpoint, last of its files: one without it was torn by a crash.

    keep: how many stay (None: all). Older ones go only now: Trainer would delete them before the new one is complete.
    wordings: gives the rows read so far that hold an evaluation's words, by its name.
    """

    def __init__(
        self,
        config: dict[str, Any],
        tokens_per_step: int,
        keep: int | None,
        wordings: Callable[[], Mapping[str, int | None]],
    ) -> None:
        self.config, self.tokens_per_step, self.keep, self.wordings = config, tokens_per_step, keep, wordings

    def write(self, folder: Path, step: int, *, hashes: bool = False) -> None:
        """Put the config of `step` into `folder`. hashes: with those of the files that lie there."""
        so_far = {"step": step, "tokens": step * self.tokens_per_step, "wordings": dict(self.wordings())}
        config = {**self.config, **so_far}
        if hashes:
            config[FILES] = checkpoint_hashes(folder)
        write_json(folder / CONFIG_NAME, config)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1:  # every process writes files of its own into the checkpoint
            torch.distributed.barrier()
        if not state.is_world_process_zero:
            return
        out = Path(str(args.output_dir))
        self.write(out / f"checkpoint-{state.global_step}", state.global_step, hashes=True)
        for checkpoint in complete_checkpoints(out)[: -self.keep] if self.keep else []:
            (checkpoint / CONFIG_NAME).unlink()  # first, so that a half-deleted one is not taken for a whole one
            shutil.rmtree(checkpoint)


class KeptFrequencies(TrainerCallback):
    """Once the launcher has made the model ready, its rotary frequencies are those that it was loaded with."""

    def __init__(self, positions: E2Positions) -> None:
        self.positions = positions

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.positions.restore_frequencies()


class StopOnSignal(TrainerCallback):
    """After SIGTERM or SIGINT: finish the step, save, end. All processes stop after the same step."""

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        self.received = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._any_received(args):
            control.should_save = control.should_training_stop = True

    def _any_received(self, args: TrainingArguments) -> bool:
        if args.world_size > 1:
            flag = torch.tensor(float(self.received), device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            self.received = bool(flag.item())
        return self.received
