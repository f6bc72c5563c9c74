"""Every causal language model of transformers with small random weights: measured right, or refused in one line?

    python benchmarks/architectures.py [--only llama,qwen3] [--out docs/reference/architectures.md]

For each class: losses of 200 tokens in chunks of 64 against transformers' own forward pass; four greedy tokens after
prompts of two lengths against transformers' `generate`; the same losses at g = 4 against a model that transformers
builds from the exported checkpoint. Float32, one CPU.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from e2bench.errors import E2BenchError
from e2bench.models import configured, local
from e2bench.models.export import export
from e2bench.models.loading import ModelSpec, embedded_model
from e2bench.models.protocols import Prompt
from e2bench.rope.methods import RopeScaling

SECONDS, TOKENS, MOST_PARAMETERS = 180, 200, 40_000_000
SMALL = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "d_model": 64,
    "n_embd": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "num_layers": 4,
    "n_layers": 4,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Verdict:
    """kind: right, slower, refused or not built."""

    kind: str
    said: str


def small_config(kind: str) -> Any:
    """The class's default config with the sizes of SMALL where it has such a field."""
    config = AutoConfig.for_model(kind)
    fields = config.to_dict()
    for part in (fields, *(value for name, value in fields.items() if "text" in name and isinstance(value, dict))):
        part.update({name: value for name, value in SMALL.items() if name in part})
        if part.get("kv_lora_rank"):  # multi-head latent attention: a key head each
            part["num_key_value_heads"] = SMALL["num_attention_heads"]
            part.pop("head_dim", None)
        if layers := part.get("layer_types"):
            part["layer_types"] = [*dict.fromkeys(layers), *layers][: SMALL["num_hidden_layers"]]
    return type(config).from_dict(fields)


def build(kind: str, folder: Path) -> None:
    """A checkpoint of random weights in which attention matters."""
    config = small_config(kind)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size:,} parameters even so")
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.dim() >= 2 and "embed" not in name and "lm_head" not in name:
                parameter.mul_(2.0)
    hf.eval()(torch.arange(3, 90)[None], use_cache=False)  # sizes that do not belong together fail here
    hf.save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded_model()).save_pretrained(folder)


def losses(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Of transformers' own forward pass."""
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = hf(ids, use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")


def judge(folder: Path) -> Verdict:
    """What e2bench makes of a checkpoint."""
    ids = torch.arange(3, TOKENS + 3)[None] * 7 % 2000
    try:
        model = local.Model.load(ModelSpec(model=str(folder)))
        want = losses(folder, ids)
        ways_to_score = (model.token_nll(ids)[0], model.token_nll(ids, cached=True)[0])
        worst = max(float((ours - want).abs().max()) for ours in ways_to_score)
        hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for end in (TOKENS // 2, TOKENS):
            ((_, ours),) = model.generate([Prompt(ids[0, :end].tolist(), 4)])
            part = ids[:, :end]
            how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
            theirs = hf.generate(part, attention_mask=torch.ones_like(part), **how)[0, end:].tolist()
            if ours.ids != theirs:
                return Verdict("WRONG", f"greedy tokens {ours.ids}, transformers {theirs}")
        scaled = at_four(model, folder, ids)
    except E2BenchError as error:
        return Verdict("refused", str(error).replace(str(folder), "the checkpoint")[:160])
    if worst > 1e-3:
        return Verdict("WRONG", f"losses differ by {worst:.2g} nats")
    ways = [
        *([] if model.grouped else ["prompts alone"]),
        *([] if model.chunked else ["long inputs in one pass"]),
        *([] if model.one_pass or not model.grouped else ["windows in chunks over a cache"]),
        *([] if model.croppable else ["no shared beginnings"]),
    ]
    if scaled.kind == "WRONG":
        return scaled
    said = "; ".join(filter(None, [", ".join(ways), scaled.said]))
    return Verdict("slower" if ways else "right", said)


def at_four(model: local.Model, folder: Path, ids: torch.Tensor) -> Verdict:
    """g = 4 in place against transformers on the exported checkpoint."""
    try:
        with model.scaled("linear", 4):
            ours = model.token_nll(ids)[0]
        out = export(model, RopeScaling("linear", 4), folder.with_name("exported"))
    except E2BenchError as error:
        return Verdict("refused", f"at g = 4 refused: {str(error)[:110]}")
    worst = float((ours - losses(out, ids)).abs().max())
    return Verdict("WRONG", f"at g = 4 losses differ by {worst:.2g} nats") if worst > 1e-3 else Verdict("right", "")


def tried(kind: str) -> Verdict:
    """The verdict on one class, in at most SECONDS."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    work = Path(tempfile.mkdtemp(prefix="e2bench-architectures-"))
    try:
        signal.alarm(SECONDS)
        try:
            build(kind, work / "made")
        except Exception as error:  # a default config may ask for what is not there
            return Verdict("not built", " ".join(str(error).split())[:100] or type(error).__name__)
        return judge(work / "made")
    except Exception as error:  # what should have been one line
        return Verdict("BROKEN", f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")
    finally:
        signal.alarm(0)
        shutil.rmtree(work, ignore_errors=True)


def main() -> None:
    """Try every class and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    local.CHUNK_TOKENS = configured.CHUNK_TOKENS = configured.PIECE_TOKENS["cpu"] = 64
    kinds = given.only.split(",") if given.only else sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    rows = []
    for kind in kinds:
        verdict = tried(kind)
        rows.append((kind, verdict))
        print(f"{kind:28} {verdict.kind:10} {verdict.said}", flush=True)
    counts = Counter(verdict.kind for _, verdict in rows)
    summary = ", ".join(f"{n} {kind}" for kind, n in counts.most_common())
    print(summary)
    if given.out:
        given.out.write_text(page(rows, summary), encoding="utf-8")
    sys.exit(bool(counts["WRONG"] or counts["BROKEN"]))


def page(rows: list[tuple[str, Verdict]], summary: str) -> str:
    """The table as Markdown."""
    about = " ".join((__doc__ or "").split("\n\n")[-1].split())
    head = [
        "# Architectures",
        "",
        f"Made by `python benchmarks/architectures.py` with transformers {transformers.__version__}, torch "
        f"{torch.__version__.split('+')[0]}; do not edit. {about}",
        "",
        f"{summary}. *slower*: right, but run another way than in batches over our cache. *refused*: in one line, "
        "before a number is made. *not built*: the class's default config with small sizes gives no model here, which "
        "says nothing of real checkpoints.",
        "",
        "| model type | verdict | |",
        "| --- | --- | --- |",
    ]
    return "\n".join([*head, *(f"| `{k}` | {v.kind} | {v.said.replace('|', '&#124;')} |" for k, v in rows), ""])


if __name__ == "__main__":
    main()
