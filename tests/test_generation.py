"""Greedy generation: a batch of mixed lengths gives the tokens of single prompts, and those of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_onepass import ids_of, model_of
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconConfig,
    Gemma2Config,
    GraniteConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
)

from e2bench.errors import ModelError
from e2bench.models import body
from e2bench.models.decoding import Decoder, common_prefix
from e2bench.models.loading import ModelSpec
from e2bench.models.local import Model
from e2bench.models.protocols import Generation, Prompt
from e2bench.rope.methods import RopeScaling

SENTENCE = "The grass is green. The sky is blue. 小明把地图放在图书馆里。 Anna keeps 12 violins. "
BUDGET = 12
PI4 = RopeScaling("linear", 4)


def prompts_of(model: Model, sizes: Sequence[int], budget: int = BUDGET) -> list[Prompt]:
    """Prompts of so many tokens, each from another place of the text."""
    ids = model.encode(SENTENCE * 20)
    return [Prompt([ids[0], *ids[3 * n + 1 : 3 * n + size]], budget) for n, size in enumerate(sizes)]


def collect(generated: Any) -> list[Generation]:
    """Results in the order of their prompts."""
    found = dict(generated)
    return [found[index] for index in range(len(found))]


def transformers_greedy(hf: Any, prompt: Prompt, **more: Any) -> list[int]:
    """New ids of transformers' own `generate`."""
    ids = torch.tensor([list(prompt.ids)])
    mask = torch.ones_like(ids)
    more = {"max_new_tokens": prompt.max_new_tokens, "pad_token_id": 0, "do_sample": False, **more}
    return hf.generate(ids, attention_mask=mask, **more)[0, ids.shape[1] :].tolist()


@pytest.fixture(scope="module")
def reference(tiny_folder: Path) -> Any:
    """The checkpoint as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()


@given(sizes=st.lists(st.integers(1, 90), min_size=1, max_size=5))
@settings(max_examples=15)
def test_a_batch_of_mixed_lengths_gives_the_tokens_of_single_prompts_and_of_transformers(
    tiny_model: Model, reference: Any, sizes: list[int]
) -> None:
    prompts = prompts_of(tiny_model, sizes)
    batch = [g.ids for g in collect(tiny_model.generate(prompts))]
    assert batch == [collect(tiny_model.generate([p]))[0].ids for p in prompts]
    assert batch == [transformers_greedy(reference, p) for p in prompts]


def test_a_scale_changes_the_tokens_as_loading_with_it_does(tiny_model: Model, tiny_folder: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(
        tiny_folder, dtype=torch.float32, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    )
    prompts = prompts_of(tiny_model, [200, 40, 130])
    scaled = [g.ids for g in collect(tiny_model.generate(prompts, PI4))]
    assert scaled == [transformers_greedy(loaded, p) for p in prompts]
    assert scaled != [g.ids for g in collect(tiny_model.generate(prompts))]
    assert tiny_model.rope.scaling is None  # the checkpoint's own again


def test_budgets_of_one_batch_may_differ(tiny_model: Model) -> None:
    prompts = [Prompt(p.ids, budget) for p, budget in zip(prompts_of(tiny_model, [50, 9, 70]), [3, 9, 1], strict=True)]
    found = collect(tiny_model.generate(prompts))
    assert [len(g.ids) for g in found] == [3, 9, 1]
    assert [g.finish for g in found] == ["length"] * 3
    assert [g.ids for g in found] == [collect(tiny_model.generate([p]))[0].ids for p in prompts]


def test_prompts_that_share_their_beginning_give_the_tokens_of_single_ones(tiny_model: Model) -> None:
    ids = tiny_model.encode(SENTENCE * 6)
    tails = [tiny_model.encode(tail, special_tokens=False) for tail in ("Yes.", "No 17", "是", "", "class Point")]
    prompts = [Prompt([*ids[: 60 + 10 * n], *tail], BUDGET) for n, tail in enumerate(tails)]
    prompts += [prompts[2], prompts[0]]  # the same once more, and a shorter one after a longer
    shared = [g.ids for g in collect(tiny_model.generate_sharing(prompts, PI4))]
    assert shared == [collect(tiny_model.generate([p], PI4))[0].ids for p in prompts]


@given(before=st.lists(st.integers(0, 2)), ids=st.lists(st.integers(0, 2), min_size=1))
def test_the_shared_prefix_is_the_longest_that_leaves_a_token_to_feed(before: list[int], ids: list[int]) -> None:
    n = common_prefix(before, ids)
    assert before[:n] == ids[:n] and n < len(ids)
    assert n == len(ids) - 1 or n == len(before) or before[n] != ids[n]


def test_a_prefill_in_chunks_gives_the_tokens_of_one_pass(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(tiny_model, [33, 100, 17])
    whole = [g.ids for g in collect(tiny_model.generate(prompts))]
    for chunk in (1, 16, 33):
        monkeypatch.setattr(body, "CHUNK_TOKENS", chunk)
        assert [g.ids for g in collect(tiny_model.generate(prompts))] == whole


def test_eager_attention_gives_the_same_tokens(tiny_model: Model, tiny_folder: Path) -> None:
    eager = Model.load(ModelSpec(model=str(tiny_folder), attention="eager"))
    prompts = prompts_of(tiny_model, [60, 20, 41])
    assert eager.decode_rows(100) == 1
    want = [g.ids for g in collect(tiny_model.generate(prompts))]
    assert [g.ids for g in collect(eager.generate(prompts))] == want
    assert [g.ids for g in collect(eager.generate_sharing(prompts))] == want


def test_a_sliding_window_model_gives_the_tokens_of_transformers(tiny_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        sliding_window=24,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    hf = MistralForCausalLM(config).eval()
    hf.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    model = Model.load(ModelSpec(model=str(tmp_path)))
    prompts = prompts_of(model, [10, 24, 25, 90])
    assert [g.ids for g in collect(model.generate(prompts))] == [transformers_greedy(hf, p) for p in prompts]


SIZES = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
OWN_CODE: dict[str, tuple[Any, str, bool]] = {
    # family: (config, attention to load with, whether our attention serves it)
    "olmo2": (Olmo2Config(**SIZES), "sdpa", True),
    "granite": (GraniteConfig(**SIZES, logits_scaling=2.0, attention_multiplier=0.2), "sdpa", True),
    "falcon": (FalconConfig(**{**SIZES, "num_key_value_heads": 4}, new_decoder_architecture=True), "sdpa", False),
    "gemma2": (Gemma2Config(**SIZES, head_dim=8, sliding_window=16), "eager", False),
}


@pytest.mark.parametrize("family", OWN_CODE)
def test_models_that_compute_attention_themselves_give_the_tokens_of_transformers(
    tiny_model: Model, family: str
) -> None:
    config, attention, grouped = OWN_CODE[family]
    config.initializer_range = 0.2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).eval()
    prompts = prompts_of(tiny_model, [30, 7, 52])
    want = [transformers_greedy(hf, p, eos_token_id=None) for p in prompts]
    model = Model(hf, tiny_model.tokenizer, name=family, attention=attention)
    assert model.grouped == grouped
    found = [g.ids for g in collect(model.generate(prompts))]
    assert found == [ids[: len(mine)] for ids, mine in zip(want, found, strict=True)]
    assert max(map(len, found)) == BUDGET


def test_a_model_that_cannot_be_run_in_steps_is_refused(tiny_model: Model) -> None:
    config = Llama4TextConfig(**SIZES, head_dim=8, num_local_experts=2, intermediate_size_mlp=32, pad_token_id=0)
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with pytest.raises(ModelError, match="Llama4ForCausalLM gives other logits in steps"):
        Model(hf, tiny_model.tokenizer, name="llama4")


# ---- where a row ends


def test_every_end_of_sequence_id_ends_a_row_and_none_is_in_the_text(tiny_folder: Path, reference: Any) -> None:
    model = Model.load(ModelSpec(model=str(tiny_folder)))
    prompts = prompts_of(model, [50, 31])
    first, second = (g.ids for g in collect(model.generate(prompts)))
    model.hf.generation_config.eos_token_id = [first[4], second[2]]
    assert model.eos_ids == {first[4], second[2], model.tokenizer.eos_token_id}
    for prompt, found in zip(prompts, collect(model.generate(prompts)), strict=True):
        assert found.ids == transformers_greedy(reference, prompt, eos_token_id=[first[4], second[2]])
        assert found.finish == "eos" and len(found.ids) < BUDGET
        assert found.text == model.decode(found.ids[:-1])


def test_at_least_so_many_tokens_come_before_an_end(tiny_folder: Path, reference: Any) -> None:
    model = Model.load(ModelSpec(model=str(tiny_folder)))
    (plain,) = prompts_of(model, [50])
    first = collect(model.generate([plain]))[0].ids[0]
    model.hf.generation_config.eos_token_id = first
    assert collect(model.generate([plain]))[0].ids == [first]
    least = Prompt(plain.ids, BUDGET, min_new_tokens=3)
    found = collect(model.generate([least, plain]))
    want = transformers_greedy(reference, plain, min_new_tokens=3, eos_token_id=[first, model.tokenizer.eos_token_id])
    assert found[0].ids == want and first not in want[:3]
    assert found[1].ids == [first]  # its neighbour's rule is not its own


def test_a_stop_id_ends_a_row_and_stays_in_the_text(tiny_model: Model) -> None:
    (plain,) = prompts_of(tiny_model, [50])
    ids = collect(tiny_model.generate([plain]))[0].ids
    stop = frozenset([ids[3]])
    at = ids.index(ids[3]) + 1
    (found,) = collect(tiny_model.generate([Prompt(plain.ids, BUDGET, stop_ids=stop)]))
    assert (found.ids, found.finish) == (ids[:at], "eos")
    assert found.text == tiny_model.decode(ids[:at])  # LongBench decodes samsum's newline; its first-line rule drops it


def test_a_settled_row_stops_and_its_neighbours_go_on(tiny_model: Model) -> None:
    prompts = prompts_of(tiny_model, [50, 31, 12])
    whole = collect(tiny_model.generate(prompts))
    ready = whole[1].text[:3]
    rules = [None, lambda text: text.startswith(ready), None]
    ruled = [Prompt(p.ids, BUDGET, settled=rule) for p, rule in zip(prompts, rules, strict=True)]
    found = collect(tiny_model.generate(ruled))
    assert [g.finish for g in found] == ["length", "scored", "length"]
    assert len(found[1].ids) < BUDGET and found[1].ids == whole[1].ids[: len(found[1].ids)]
    assert [found[0].ids, found[2].ids] == [whole[0].ids, whole[2].ids]


@pytest.mark.parametrize("scaling", [RopeScaling("dynamic", 4), None], ids=["given", "the checkpoint's own"])
def test_dynamic_ntk_reads_each_prompt_at_its_own_length(tiny_model: Model, scaling: RopeScaling | None) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    model = model_of(LlamaConfig(**SIZES, **({} if scaling else {"rope_parameters": rope})), tiny_model.tokenizer)
    prompts = [Prompt(ids_of(1, tokens)[0].tolist(), BUDGET) for tokens in (400, 150)]
    alone = [collect(model.generate([prompt], scaling))[0].ids for prompt in prompts]
    assert [answer.ids for answer in collect(model.generate(prompts, scaling))] == alone
    assert [answer.ids for answer in collect(model.generate_sharing(prompts, scaling))] == alone
    with model.under(scaling, 400 + BUDGET):
        assert collect(Decoder(model).generate(prompts[1:]))[0].ids != alone[1]  # under the longer one's frequencies


def test_a_generator_left_half_way_puts_the_checkpoints_rope_back(tiny_model: Model) -> None:
    running = tiny_model.generate(prompts_of(tiny_model, [5, 9]), PI4)
    next(running)
    running.close()
    assert tiny_model.rope.scaling is None


# ---- what the model is


def test_token_losses_are_those_of_transformers_whole_or_in_chunks(
    tiny_model: Model, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tiny_model.encode(SENTENCE * 4)
    ids = torch.tensor([text[:70], text[7:77]])
    with torch.inference_mode():
        logits = reference(ids).logits[:, :-1]
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(2, -1)
    for chunk, scored in ((4096, 512), (32, 7)):
        monkeypatch.setattr(body, "CHUNK_TOKENS", chunk)
        monkeypatch.setattr(body, "SCORED_ROWS", scored)
        torch.testing.assert_close(tiny_model.token_nll(ids), want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(tiny_model.token_nll(ids, first=41), want[:, 40:], rtol=1e-4, atol=1e-4)


def test_a_tokenizer_larger_than_the_model_is_refused(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    small = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    small.resize_token_embeddings(300)
    with pytest.raises(ModelError, match="give the right one with --tokenizer"):
        Model(small, tokenizer, name="small")


def test_the_fingerprint_tells_weights_apart_and_ignores_where_they_lie(tiny_folder: Path, tmp_path: Path) -> None:
    one, other = (Model.load(ModelSpec(model=str(tiny_folder))) for _ in range(2))
    one.hf.save_pretrained(tmp_path)
    one.tokenizer.save_pretrained(tmp_path)
    assert Model.load(ModelSpec(model=str(tmp_path))).fingerprint() == one.fingerprint()
    with torch.no_grad():
        other.hf.model.layers[1].mlp.up_proj.weight += 1e-3
    assert other.fingerprint() != one.fingerprint()


def test_logits_that_are_not_finite_stop_the_run(tiny_folder: Path) -> None:
    model = Model.load(ModelSpec(model=str(tiny_folder)))
    with torch.no_grad():
        model.hf.model.norm.weight[3] = torch.nan
    with pytest.raises(ModelError, match="in float32 gives logits that are not finite"):
        collect(model.generate(prompts_of(model, [9, 4])))
