"""Rotation inside the rotary module: the same loss on every path, the same angles as at evaluation."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TrainingArguments

from e2bench.compat import enable_activation_checkpointing
from e2bench.errors import ModelError
from e2bench.rope.config import SCALED_LAYERS
from e2bench.rope.methods import RopeScaling
from e2bench.rope.switch import RopeSwitch, rotary_modules
from e2bench.train.e2 import Draw, E2Settings, draw, positions
from e2bench.train.finetune import E2Trainer
from e2bench.train.rotary import E2Positions, as_tensor

R, VOCAB = 48, 97
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
DRAWS = [Draw(3, 40, 4), Draw(7, 100, 4)]


def llama(attention="eager"):
    torch.manual_seed(0)
    return LlamaForCausalLM._from_config(LlamaConfig(**SHAPE), attn_implementation=attention)


@pytest.fixture
def input_ids():
    return torch.randint(VOCAB, (2, R), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def expected(input_ids):
    """Loss with an explicit 4-D causal mask and float position_ids: with a mask there is no guessing at borders."""
    causal = torch.full((R, R), torch.finfo(torch.float32).min).triu(1).expand(2, 1, R, R)
    rotated = torch.stack([torch.from_numpy(positions(R, d.scale, d.offset)) for d in DRAWS])
    model = llama("eager")
    return model(input_ids=input_ids, labels=input_ids, attention_mask=causal, position_ids=rotated).loss.item()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("path", ["default", "without cache", "checkpointed", "evaluation"])
def test_every_path_gives_the_loss_of_an_explicit_mask(path, attention, input_ids, expected):
    model = llama(attention).train(path != "evaluation")
    if path == "checkpointed":
        enable_activation_checkpointing(model)
    E2Positions(model).set(DRAWS)
    use_cache = {"use_cache": False} if path == "without cache" else {}
    loss = model(input_ids=input_ids, labels=input_ids, **use_cache).loss
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    if path == "checkpointed":
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_gives_the_loss_of_an_explicit_mask(checkpointing, input_ids, tmp_path):
    settings = E2Settings(native_window=32, train_window=R, per_sample=True, g_max=9, seed=5)
    draws = [draw(settings, 3, sample) for sample in (0, 1)]
    causal = torch.full((R, R), torch.finfo(torch.float32).min).triu(1).expand(2, 1, R, R)
    rotated = torch.stack([torch.from_numpy(positions(R, d.scale, d.offset)) for d in draws])
    reference = llama("eager")
    reference(input_ids=input_ids, labels=input_ids, attention_mask=causal, position_ids=rotated).loss.backward()

    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", dataloader_pin_memory=False)
    trainer = E2Trainer(model=llama("sdpa"), args=arguments, settings=settings, rows_per_step=2)
    if checkpointing:
        enable_activation_checkpointing(trainer.model)
    trainer.optimizer = trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    rows = [{"row": 6 + i, "input_ids": ids, "labels": ids} for i, ids in enumerate(input_ids)]  # step 3 of 2 rows
    batch = trainer.data_collator(rows)
    trainer.training_step(trainer.model, batch)
    assert len(set(draws)) == 2 and draws[0].offset > 0
    for got, wanted in zip(trainer.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-4, atol=1e-7)


def test_naive_position_ids_lose_the_attention_sinks(input_ids, expected):
    """What this module avoids: transformers takes the jump after the sinks for the border of a packed sequence."""
    jumping = torch.stack([torch.from_numpy(positions(R, 1, d.offset)) for d in DRAWS]).long()
    scaled = torch.stack([torch.from_numpy(positions(R, d.scale, d.offset)) for d in DRAWS])
    model = llama("sdpa").train()
    for naive in (jumping, scaled):
        cut = model(input_ids=input_ids, labels=input_ids, position_ids=naive, use_cache=False).loss.item()
        assert abs(cut - expected) > 1e-5 * expected
    hidden = model.model(input_ids=input_ids, position_ids=scaled, use_cache=False).last_hidden_state
    changed = input_ids.clone()
    changed[:, 0] = (changed[:, 0] + 1) % VOCAB
    other = model.model(input_ids=changed, position_ids=scaled, use_cache=False).last_hidden_state
    assert torch.equal(hidden[:, 4:], other[:, 4:])  # nothing after the jump sees the first token


def test_no_offset_and_scale_one_leave_the_logits_unchanged(input_ids):
    model = llama("sdpa")
    plain = model(input_ids=input_ids).logits
    e2 = E2Positions(model)
    assert torch.equal(model(input_ids=input_ids).logits, plain)
    e2.set([Draw(1, 0, 4)] * 2)
    torch.testing.assert_close(model(input_ids=input_ids).logits, plain, rtol=0, atol=0)
    e2.set(DRAWS)
    assert not torch.allclose(model(input_ids=input_ids).logits, plain)
    e2.clear()
    assert torch.equal(model(input_ids=input_ids).logits, plain)
    e2.set(DRAWS)
    e2.remove()
    assert torch.equal(model(input_ids=input_ids).logits, plain)


def test_rows_of_a_batch_are_rotated_each_at_its_own_draw(input_ids):
    model = llama("sdpa")
    e2 = E2Positions(model)
    e2.set(DRAWS)
    together = model(input_ids=input_ids).logits
    for row, drawn in enumerate(DRAWS):
        e2.set([drawn])
        torch.testing.assert_close(model(input_ids=input_ids[row : row + 1]).logits[0], together[row])


FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen3": {"head_dim": 8},
    "phi3": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "gemma3_text": {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neox": {"rotary_pct": 0.5},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [2, 7, 16])
def test_training_without_offset_rotates_at_the_angles_of_evaluation(family, scale):
    config = AutoConfig.for_model(family, **SHAPE, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config)
    (rotary,) = rotary_modules(model)
    kind = {"layer_type": SCALED_LAYERS} if isinstance(rotary.rope_type, dict) else {}
    length = 4096
    x, position_ids = torch.zeros(1, length, 8), torch.arange(length)[None]
    e2 = E2Positions(model)
    e2.set([Draw(scale, 0, 4)])
    trained = torch.stack(rotary(x, position_ids, **kind))
    e2.clear()
    with RopeSwitch(model, 32).using(RopeScaling("linear", scale)):
        evaluated = torch.stack(rotary(x, position_ids, **kind))
    # m / g and inv_freq / g each round once: two units in the last place of the largest angle, length / g radians
    torch.testing.assert_close(trained, evaluated, rtol=0, atol=2 * length / scale * 2**-23)
    assert not torch.allclose(trained, torch.stack(rotary(x, position_ids, **kind)), atol=0.1)


def test_sliding_layers_keep_their_own_positions():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3_text", **SHAPE, **FAMILIES["gemma3_text"]))
    (rotary,) = rotary_modules(model)
    x, position_ids = torch.zeros(1, R, 8), torch.arange(R)[None]
    before = rotary(x, position_ids, layer_type="sliding_attention")[0]
    E2Positions(model).set([Draw(5, 99, 4)])
    assert torch.equal(rotary(x, position_ids, layer_type="sliding_attention")[0], before)


def test_a_model_without_rotary_positions_is_refused():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_embd=16, n_layer=1, n_head=2, vocab_size=9))
    with pytest.raises(ModelError, match="has no rotary positions"):
        E2Positions(model)


def test_frequencies_that_a_launcher_rounded_are_put_back_before_the_first_step(input_ids, tmp_path):
    """DeepSpeed casts a whole model, its buffers too; accelerate is made to do the same here."""
    settings = E2Settings(native_window=32, train_window=R, g_max=9)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", max_steps=1, save_strategy="no")
    arguments.remove_unused_columns = False
    rows = [{"row": row, "input_ids": ids, "labels": ids} for row, ids in enumerate(input_ids)]
    trainer = E2Trainer(model=llama("sdpa"), args=arguments, settings=settings, rows_per_step=2, train_dataset=rows)
    (rotary,) = rotary_modules(trainer.model)
    kept, prepare = rotary.inv_freq.clone(), trainer.accelerator.prepare_model
    seen = []

    def cast(model, **kwargs):
        seen.append(prepare(model.bfloat16(), **kwargs))
        assert rotary.inv_freq.dtype == torch.bfloat16
        return seen[-1]

    trainer.accelerator.prepare_model = cast
    trainer.train()
    assert len(seen) == 1
    assert rotary.inv_freq.dtype == torch.float32 and torch.equal(rotary.inv_freq, kept)


def test_draws_are_integers_which_no_launcher_casts():
    draws = as_tensor([Draw(20, 77_824, 4)])
    assert draws.dtype == torch.int64 and draws.tolist() == [[20, 77_824, 4]]
    with pytest.raises(ModelError, match="bfloat16: load the model in float32"):
        E2Positions(llama().bfloat16())
