"""What the tiny model is made of: corpus, retrieval tasks, tokenizer, the step from checkpoint to package."""

import json
import random
import re

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from e2bench.data.stdlib import Document, docstrings, is_held_out, stdlib_documents
from e2bench.errors import DataError, UnknownName
from e2bench.train.miniature import reproduce
from e2bench.train.miniature.embed import embed_model
from e2bench.train.miniature.initial import plant_induction
from e2bench.train.miniature.retrieval import (
    key_values,
    passkey,
    passkeys,
    repetition,
    retrieval_sample,
    write_retrieval,
)
from e2bench.train.miniature.tokenizer import train_tokenizer
from e2bench.train.recipe import load_recipe

DIGITS = re.compile(r"\d+")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [retrieval_sample(0, index, 512)[1].text for index in range(100)]
    return train_tokenizer(texts, 600, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def library():
    return list(stdlib_documents())


def test_the_standard_library_is_read_without_its_tests_and_in_order(library):
    sources = [document.source for document in library]
    assert "stdlib/argparse.py" in sources and sources == sorted(set(sources))
    assert not any("/test/" in source or "site-packages" in source for source in sources)


def test_the_same_part_of_the_library_is_held_out_everywhere(library):
    assert is_held_out("stdlib/os.py") and not is_held_out("stdlib/argparse.py")
    held_out = [document for document in library if document.held_out]
    assert {d.source for d in held_out} == {d.source for d in library if is_held_out(d.source)}
    assert 1 / 24 < len(held_out) / len(library) < 1 / 6


def test_a_line_is_in_the_piles_layout():
    document = Document("x/y.md", "PackageDocumentation", "Grüße")
    meta = {"pile_set_name": "PackageDocumentation", "source": "x/y.md"}
    assert json.loads(document.line()) == {"text": "Grüße", "meta": meta}


def test_docstrings_of_a_file_are_found_in_modules_classes_and_functions(tmp_path):
    path = tmp_path / "a.py"
    path.write_text('"""Top."""\nclass A:\n    """Mid."""\n    def f(self):\n        """Deep."""\ndef g(): pass\n')
    assert docstrings(path) == ["Top.", "Mid.", "Deep."]
    path.write_text("not python at all (")
    assert docstrings(path) == []


@given(st.integers(0, 10**6), st.integers(150, 3000))
def test_every_question_of_a_retrieval_sample_can_be_answered_from_its_text(seed, chars):
    rng = random.Random(seed)
    text = passkey(rng, chars).text
    assert len(DIGITS.findall(text)) == 3 and len(set(DIGITS.findall(text))) == 1
    assert text.endswith(f" {DIGITS.findall(text)[0]}.")
    stated = re.findall(r"The [\w ]+ of (\w+) is (\d+)\.", passkeys(rng, chars).text)
    assert len(set(stated)) == len(dict(stated)) >= 2 and len(stated) == 2 * len(dict(stated))  # once told, once asked
    body, *questions = key_values(rng, chars).text.split("\n")
    pairs = json.loads(body[body.index("{") :])
    for question in questions:
        key, value = re.findall(r'"(\w+)"', question)
        assert pairs[key] == value
    head, *lines = repetition(rng, chars).text.split("\n")
    assert head == "Repeat:" and len(lines) >= 2 and len(set(lines)) == 1


def test_keys_of_several_people_are_stated_before_they_are_asked_for():
    prompt, completion = passkeys(random.Random(3), 1500)
    asked = re.findall(r"(The [\w ]+ of \w+ is \d+)", completion)
    assert len(asked) >= 2
    for told in asked:
        assert f"{told}." in prompt


def test_answers_can_be_written_apart_from_their_questions(tokenizer, tmp_path):
    path = tmp_path / "answers.jsonl"
    write_retrieval(path, tokenizer, seed=5, tokens=5_000, max_tokens=256)
    for line in path.read_text().splitlines():
        sample = json.loads(line)
        seed, index = sample["meta"]["source"].split("/")[1:]
        task, (prompt, completion) = retrieval_sample(int(seed), int(index), 256)
        assert (sample["meta"]["pile_set_name"], sample["prompt"], sample["completion"]) == (task, prompt, completion)


def test_samples_depend_on_seed_and_index_alone_and_fit_the_window(tokenizer, tmp_path):
    assert retrieval_sample(1, 7, 512) == retrieval_sample(1, 7, 512)
    assert retrieval_sample(1, 7, 512) != retrieval_sample(2, 7, 512)
    path = tmp_path / "retrieval.jsonl"
    write_retrieval(path, tokenizer, seed=5, tokens=20_000, max_tokens=256)
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    lengths = [len(tokenizer(sample["prompt"] + sample["completion"])["input_ids"]) + 1 for sample in samples]
    assert max(lengths) <= 256 and 20_000 <= sum(lengths) < 20_256


@given(st.text())
def test_the_tokenizer_gives_every_text_back(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text


def test_numbers_are_cut_into_pairs_of_digits(tokenizer):
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(" 48213.")
    assert [piece for piece, _ in pieces] == ["Ġ48", "21", "3", "."]


def test_embedding_rounds_a_finished_checkpoint_to_bfloat16(tokenizer, tmp_path):
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "tiny"
    with pytest.raises(DataError, match="holds no finished training"):
        embed_model(checkpoint, tmp_path / "corpus.json", out)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    (checkpoint / "e2_config.json").write_text('{"step": 3}')
    (tmp_path / "corpus.json").write_text('{"held_out": {"stdlib/os.py": "00"}}')
    embed_model(checkpoint, tmp_path / "corpus.json", out)
    stored = safetensors.torch.load_file(out / "model.safetensors")
    assert all(torch.equal(tensor, model.state_dict()[name].bfloat16()) for name, tensor in stored.items())
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(out)("a")["input_ids"] == tokenizer("a")["input_ids"]
    assert json.loads((out / "held_out.json").read_text()) == {"stdlib/os.py": "00"}


def test_every_step_of_the_miniature_is_named_once_and_its_recipes_exist():
    steps = reproduce.all_steps()
    names = [step.name for step in steps]
    assert len(set(names)) == len(names) and names[0] == "data" and names[-1] == "report"
    for variant in reproduce.VARIANTS:
        recipe = load_recipe("tiny-ablation", list(variant.overrides))
        assert recipe.batch_size * recipe.train_window == 4096, "every variant trains on the same number of tokens"
    with pytest.raises(UnknownName, match="did you mean 'train-base'"):
        reproduce.run_steps(["train-bass"])


def test_a_step_that_does_not_exist_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["train-bass"])
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("reproduce: ")


def test_steps_that_are_done_are_not_run_again(monkeypatch, tmp_path, capsys):
    ran = []
    (tmp_path / "there").touch()
    steps = [
        reproduce.Step("one", lambda: ran.append("one"), tmp_path / "there"),
        reproduce.Step("two", lambda: ran.append("two"), tmp_path / "missing"),
        reproduce.Step("three", lambda: ran.append("three"), tmp_path / "missing"),
    ]
    monkeypatch.setattr(reproduce, "all_steps", lambda: steps)
    reproduce.main(["--list"])
    assert "done  one" in capsys.readouterr().out and not ran
    reproduce.main(["one", "two"])
    assert ran == ["two"]
    reproduce.main([])
    assert ran == ["two", "two", "three"]


def test_a_planted_circuit_looks_back_and_copies_before_any_training():
    shape = {"hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    rope = {"rope_type": "default", "rope_theta": 100_000.0}
    config = LlamaConfig(
        vocab_size=500, tie_word_embeddings=True, initializer_range=0.06, rope_parameters=rope, **shape
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    once = torch.randperm(500, generator=torch.Generator().manual_seed(1))[None, :40]
    twice = torch.cat([once, once], 1)
    before = model(twice).logits[0, 40:-1].argmax(-1)
    plant_induction(model, seed=0)
    output = model(twice, output_attentions=True)
    back = output.attentions[0][0, 0].diagonal(-1)
    assert back.mean() > 0.95
    copied = output.logits[0, 40:-1].argmax(-1)
    expected = twice[0, 41:]
    assert (copied == expected).float().mean() > 0.5 > (before == expected).float().mean()
