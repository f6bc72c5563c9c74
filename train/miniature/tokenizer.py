"""The tiny model's tokenizer: byte-level BPE; numbers are cut into pairs of digits, the first with its blank.

So a number of five digits is three tokens of three kinds (" 73", "80", "6"), seldom one of them twice, and which one
follows which shows in the tokens. Digit by digit, seven such numbers in ten repeat a digit, and a small model that
copies what came after the last 1 loses its place; in threes the tokens are too rare to learn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS = "<s>", "</s>"


def train_tokenizer(texts: Iterable[str], vocab_size: int, out: Path) -> PreTrainedTokenizerFast:
    """Train on `texts` and save to the folder `out`; BOS is put before a text, EOS marks its end in training."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\p{N}{1,2}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    fast.save_pretrained(str(out))
    name_plain_class(out / "tokenizer_config.json")
    return fast


def name_plain_class(path: Path) -> None:
    """transformers 5 writes a class name that version 4 and the servers built on it do not know; both know this one."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only", "model_max_length"):  # of the machine, or no limit at all
        config.pop(name, None)
    path.write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=1) + "\n")
