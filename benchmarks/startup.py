"""Start-up: `e2bench --help`, and one LongBench sample from a cold start against a bare transformers script.

    python benchmarks/startup.py --model SMOLLM2.gguf [--rounds 5] [--data DIR]

The bare script loads the same weights in the same dtype, reads a prompt of the same length, generates one token and
ends; `e2bench longbench` also renders, truncates, records and scores. Rounds alternate. Targets: 0.4 s and 1.5 times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _common import LONGBENCH, alternate, ratio, write

from e2bench.models.loading import embedded_model
from e2bench.tasks.demo import write_longbench

BARE = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
path = Path(sys.argv[1])
if path.suffix == ".gguf":
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    options = {"quantization_config": GgufConfig(dequantize=True)}
else:
    source, options = {"pretrained_model_name_or_path": str(path)}, {}
tokenizer = AutoTokenizer.from_pretrained(**source)
model = AutoModelForCausalLM.from_pretrained(**source, **options, dtype=torch.bfloat16)
ids = tokenizer("word " * 2000, return_tensors="pt").input_ids[:, : int(sys.argv[2])]
model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)
"""


def run(command: list[str]) -> None:
    """A process to its end, in silence; an error is shown."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        sys.exit(result.stderr[-2000:])


def main() -> None:
    """Alternate the commands and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or .gguf; default: the embedded tiny model")
    parser.add_argument("--data", type=Path, default=LONGBENCH)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    model = given.model or str(embedded_model())
    e2bench = [sys.executable, "-m", "e2bench"]
    with tempfile.TemporaryDirectory() as folder:
        data = given.data if given.data.is_dir() else write_longbench(Path(folder) / "data", examples=1)
        longbench = [*e2bench, "longbench", "--model", model, "--data", str(data), "--tasks", "trec"]
        longbench += ["--limit", "1", "--window", str(given.window), "--scale", "1", "--dtype", "bfloat16", "--fresh"]
        calls = {
            "help": lambda: run([*e2bench, "--help"]),
            "longbench": lambda: run([*longbench, "--out", f"{folder}/out"]),
            "bare": lambda: run([sys.executable, "-c", BARE, model, str(given.window - 64)]),
        }
        times = alternate(calls, given.rounds)
    over = ratio(times["longbench"], times["bare"])
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"--help: {medians['help']:.2f} s (best {min(times['help']):.2f})")
    print(f"longbench {medians['longbench']:.1f} s, bare script {medians['bare']:.1f} s: {over['median']:.2f} times")
    write("startup", {"model": Path(model).name, "seconds": times, "longbench / bare": over}, given.out)


if __name__ == "__main__":
    main()
