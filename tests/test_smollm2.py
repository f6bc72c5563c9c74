"""SmolLM2-135M-Instruct, a real model, from its quantised GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from e2bench.models.loading import ModelSpec
from e2bench.models.local import Model
from e2bench.models.protocols import Prompt
from e2bench.prompts.chat import chat_wrapper
from e2bench.prompts.task import read_examples, render, templates
from e2bench.prompts.truncation import fit
from e2bench.rope.methods import RopeScaling
from e2bench.tasks.demo import write_longbench
from e2bench.tasks.longbench import LONGBENCH

pytestmark = pytest.mark.smollm2
WINDOW, BUDGET = 160, 16


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Model:
    """In float32, the reference mode."""
    return Model.load(ModelSpec(model=str(smollm2), dtype="float32"))


def test_the_gguf_file_is_dequantised_and_keeps_its_theta_and_window(model: Model) -> None:
    assert {p.dtype for p in model.hf.parameters()} == {torch.float32}
    assert model.describe()["parameters"] == 134_515_008  # SmolLM2-135M's model card: 135M; tied embeddings once
    assert model.native_window == 8192 and model.own_scaling is None
    # theta 100,000, head dimension 64
    want = 100_000 ** -(torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    torch.testing.assert_close(torch.tensor(model.rope.in_force(), dtype=torch.float64), want, rtol=1e-6, atol=0)


def test_it_speaks_english(model: Model) -> None:
    prompt = model.encode("The capital of France is")
    (_, generation), *_ = model.generate([Prompt(prompt, 4)])
    assert "Paris" in generation.text


@pytest.mark.slow
def test_a_batch_of_ten_gives_the_tokens_of_single_prompts(model: Model, tmp_path: Path) -> None:
    folder = write_longbench(tmp_path, examples=1)
    wrapper = chat_wrapper("auto", model.tokenizer)
    prompts = []
    for task in LONGBENCH[::2][:10]:
        text = render(templates([task])[task.name], read_examples(folder, task)[0])
        wrap = wrapper if task.chat_template else None
        room = WINDOW - 9 * len(prompts)  # ten different lengths
        prompts.append(Prompt(fit(text, model, limit=room, room=room, mode="ids", wrap=wrap).ids, BUDGET))
    assert len({len(p.ids) for p in prompts}) == 10

    def ids(generated: Any) -> list[list[int]]:
        found = dict(generated)
        return [found[at].ids for at in range(len(found))]

    scaling = RopeScaling("linear", 2)
    assert ids(model.generate(prompts, scaling)) == [ids(model.generate([p], scaling))[0] for p in prompts]
