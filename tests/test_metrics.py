"""The metrics against the official scorer's stored scores, the packages it uses, and values worked out by hand."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tracemalloc
import warnings
from difflib import SequenceMatcher
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2bench.errors import DataError
from e2bench.scoring import metrics

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT.parent / "shared" / "data" / "predictions" / "minilongbench"
METRIC_OF = {
    **dict.fromkeys(
        ["narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "triviaqa"], metrics.qa_f1
    ),
    "multifieldqa_zh": metrics.qa_f1_zh,
    **dict.fromkeys(["gov_report", "qmsum", "multi_news", "samsum"], metrics.rouge_l),
    **dict.fromkeys(["dureader", "vcsum"], metrics.rouge_l_zh),
    **dict.fromkeys(["trec", "lsht"], metrics.classification),
    "passage_count": metrics.count,
    "passage_retrieval_en": metrics.retrieval,
    "passage_retrieval_zh": metrics.retrieval_zh,
    **dict.fromkeys(["lcc", "repobench-p"], metrics.code_similarity),
}
FIRST_LINE = {"trec", "triviaqa", "samsum", "lsht"}
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="published predictions are not beside the checkout")
generated = settings(max_examples=200)


# ---- the official scorer's own numbers -------------------------------------------------------------------------------


def golden_rows(task: str) -> list[dict]:
    return [json.loads(line) for line in (GOLDEN / f"{task}.jsonl").read_text("utf-8").splitlines() if line]


def score_golden(task: str, row: dict) -> float:
    return metrics.score_row(
        METRIC_OF[task],
        row["pred"],
        row["answers"],
        all_classes=row["all_classes"],
        first_line_only=task in FIRST_LINE,
    )


@needs_golden
@pytest.mark.parametrize("task", METRIC_OF)
def test_every_published_prediction_scores_what_the_official_scorer_gives(task):
    for row in golden_rows(task):  # same formulas in the same order: 1e-9 is room for nothing but libm
        assert score_golden(task, row) == pytest.approx(row["official_score"], abs=1e-9), row["_id"]


@needs_golden
def test_task_scores_are_the_official_ones_to_two_places():
    official = json.loads((GOLDEN / "result.json").read_text("utf-8"))
    rows = {task: golden_rows(task) for task in METRIC_OF}
    ours = {task: round(100 * sum(score_golden(task, row) for row in rows[task]) / len(rows[task]), 2) for task in rows}
    assert ours == official


@needs_golden
@pytest.mark.parametrize("task", ["trec", "triviaqa"])  # samsum and lsht barely move
def test_without_the_first_line_rule_scores_are_not_the_official_ones(task):
    rows = golden_rows(task)
    whole = [metrics.score_row(METRIC_OF[task], r["pred"], r["answers"], all_classes=r["all_classes"]) for r in rows]
    assert whole != pytest.approx([row["official_score"] for row in rows], abs=1e-6)


# ---- the packages behind the official scorer -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official() -> ModuleType:
    """LongBench's metric functions as lm-eval ships them, loaded from the file: importing lm_eval takes seconds.

    They are the official ones but for `code_sim_score`, which skips blank lines.
    """
    for name in ("rouge", "jieba", "fuzzywuzzy"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    package = importlib.util.find_spec("lm_eval")
    if package is None or package.origin is None:
        pytest.skip("lm_eval is not installed")
    path = Path(package.origin).parent / "tasks" / "longbench" / "metrics.py"
    spec = importlib.util.spec_from_file_location("longbench_metrics_of_lm_eval", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fuzzywuzzy recommends python-Levenshtein, jieba's escape sequences
        spec.loader.exec_module(module)
    return module


def package_rouge_l(prediction: str, reference: str) -> float:
    """The `rouge` package called as LB metrics.py calls it."""
    try:
        return pytest.importorskip("rouge").Rouge().get_scores([prediction], [reference], avg=True)["rouge-l"]["f"]
    except Exception:
        return 0.0


@st.composite
def summaries(draw) -> str:
    """Sentences over very few words, so that most pairs have many equally long common subsequences."""
    words = st.sampled_from(draw(st.sampled_from(["ab", "abcd", "abcdefgh", "abcdefghijklmnop"])))
    sentence = st.lists(words, max_size=draw(st.sampled_from([3, 8, 25]))).map(" ".join)
    ends = st.sampled_from([".", ". ", " .", "..", ".\n", "\n"])
    return "".join(draw(st.lists(st.tuples(sentence, ends).map("".join), max_size=5)))


CHINESE = st.lists(
    st.sampled_from(
        [
            *"的一是不了人我在有他。，？《》. \n3x",
            "北京大学",
            "研究生",
            "生命",
            "起源",
            "3.5",
            "GPT-4",
            "gpt",
            "南京市长江大桥",
        ]
    ),
    max_size=15,
).map("".join)
ANY_TEXT = st.one_of(st.text(max_size=60), summaries(), CHINESE)


@generated
@given(summaries(), summaries())
def test_rouge_l_is_the_rouge_packages_whichever_lcs_it_picks(prediction, reference):
    assert metrics.rouge_l(prediction, reference) == package_rouge_l(prediction, reference)


ONE_SENTENCE = st.lists(st.sampled_from("abc"), min_size=1, max_size=9).map(" ".join)


@settings(generated, max_examples=1000)
@given(ONE_SENTENCE, ONE_SENTENCE)
def test_rouge_l_of_one_sentence_shows_which_lcs_was_picked(prediction, reference):
    assert metrics.rouge_l(prediction, reference) == package_rouge_l(prediction, reference)


@generated
@given(ANY_TEXT, ANY_TEXT)
def test_rouge_l_is_the_rouge_packages_on_any_text(prediction, reference):
    assert metrics.rouge_l(prediction, reference) == package_rouge_l(prediction, reference)


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("", "a"), ("a", ""), ("", ""), (".", "a"), ("...", "..."), (" ", "a"), (" ", " "), (". .", "a. "),
        ("a b c", "c b a"), ("a a a", "a"), ("A a", "a A."), ("!?", "!?"), ("a.b.c", "c.b.a"), ("3.5", "3 5"),
        ("one\ttwo\u3000three\xa0four", "one two three four"), ("我 爱 北京", "北京 爱 我"), ("a b.\n\na c.", "a c b."),
    ],
)  # fmt: skip
def test_rouge_l_is_the_rouge_packages_at_the_edges(prediction, reference):
    assert metrics.rouge_l(prediction, reference) == package_rouge_l(prediction, reference)


def test_rouge_l_beyond_the_packages_recursion_limit_is_what_it_gives_with_a_higher_one():
    prediction = " ".join(str(i * i % 61) for i in range(600))
    reference = " ".join(str(i * i * i % 67) for i in range(600))
    assert package_rouge_l(prediction, reference) == 0.0  # RecursionError, taken for 0
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(5000)
    try:
        expected = package_rouge_l(prediction, reference)
    finally:
        sys.setrecursionlimit(limit)
    assert metrics.rouge_l(prediction, reference) == expected > 0.5


@generated
@given(CHINESE, CHINESE)
def test_chinese_scores_are_those_of_the_official_functions(official, prediction, reference):
    assert metrics.qa_f1_zh(prediction, reference) == official.qa_f1_zh_score(prediction, reference)
    assert metrics.rouge_l_zh(prediction, reference) == official.rouge_zh_score(prediction, reference)


ENGLISH = st.lists(
    st.sampled_from(["the", "The", "a", "an", "A,", "cat", "cat's", "dogs", "U.S.", "7", "07", "-", "!"]), max_size=12
).map(" ".join)


@generated
@given(ENGLISH | ANY_TEXT, ENGLISH | ANY_TEXT)
def test_qa_f1_is_that_of_the_official_function(official, prediction, reference):
    assert metrics.qa_f1(prediction, reference) == official.qa_f1_score(prediction, reference)


@generated
@given(st.text("017 ,x٣", max_size=12), st.sampled_from(["0", "1", "7", "17", "07", "٣"]))
def test_counts_and_retrievals_are_those_of_the_official_functions(official, prediction, number):
    assert metrics.count(prediction, number) == official.count_score(prediction, number)
    english, chinese = f"Paragraph {number}", f"段落{number}"
    assert metrics.retrieval(prediction, english) == official.retrieval_score(prediction, english)
    assert metrics.retrieval_zh(prediction, chinese) == official.retrieval_zh_score(prediction, chinese)


@generated
@given(st.text("abc", max_size=6), st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=8), st.data())
def test_classification_is_that_of_the_official_function(official, prediction, all_classes, data):
    reference = data.draw(st.sampled_from(all_classes))
    expected = official.classification_score(prediction, reference, all_classes=all_classes)
    assert metrics.classification(prediction, reference, all_classes) == expected


def fuzz_ratio(prediction: str, reference: str) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends python-Levenshtein
        fuzz = pytest.importorskip("fuzzywuzzy.fuzz")
    if fuzz.SequenceMatcher is not SequenceMatcher:
        pytest.skip("python-Levenshtein is installed, which changes fuzzywuzzy's ratio")
    return fuzz.ratio(prediction, reference) / 100


CODE = st.one_of(
    st.text("ab (=", max_size=12),
    st.lists(st.sampled_from(["    ", "return ", "self.", "x", "(", ")", " = ", "foo_bar", "y" * 90]), max_size=9).map(
        "".join
    ),
    st.text("abc ", min_size=195, max_size=230),  # from 200 characters on, difflib ignores frequent ones
)


@generated
@given(CODE, CODE)
def test_code_similarity_is_fuzzywuzzys_ratio_of_two_lines(prediction, reference):
    assert metrics.code_similarity(prediction, reference) == fuzz_ratio(prediction, reference)


# ---- worked out by hand ----------------------------------------------------------------------------------------------


def test_rouge_l_unites_the_common_words_of_all_sentences():
    # rouge's own example: the reference has w1 w2 in common with one sentence, w1 w3 w5 with the other.
    # U = {1, 2, 3, 5}, m = 5, n = 8: R = 4/5, P = 4/8, F1 = 2 (2/5) / (13/10) = 8/13
    score = metrics.rouge_l("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5.")
    assert score == pytest.approx(8 / 13, abs=1e-8)


def test_rouge_l_takes_the_packages_choice_among_equally_long_subsequences():
    # "a b" and "b a" have a or b in common: the package takes b (it goes left on a tie), which "b" then repeats.
    assert metrics.rouge_l("b a. b", "a b") == pytest.approx(1 / 2, abs=1e-8)  # U = {b}, m = n = 2
    assert metrics.rouge_l("b a. a", "a b") == pytest.approx(1, abs=1e-8)  # U = {a, b}
    # "b b" and "a b" are common to "b a b" and "a b b": the package takes "b b"
    assert metrics.rouge_l("b a b", "a b b") == pytest.approx(1 / 2, abs=1e-8)  # U = {b}, m = n = 2


def test_rouge_l_counts_words_once_and_keeps_case_and_punctuation():
    # Unique words: {the, cat,} and {the, cat}: U = {the}, P = R = 1/2
    assert metrics.rouge_l("the the cat,", "the cat") == pytest.approx(1 / 2, abs=1e-8)
    assert metrics.rouge_l("Cat", "cat") == 0


def test_rouge_l_takes_white_space_between_dots_for_a_word():
    # Sentences "a" and "" against "b" and "": U = {""}, m = n = 2
    assert metrics.rouge_l("a. ", "b. ") == pytest.approx(1 / 2, abs=1e-8)
    assert metrics.rouge_l("a.", "b.") == 0


@pytest.mark.parametrize("vocabulary", [1, 2, 1000])
def test_two_sentences_of_five_thousand_words_need_no_recursion_and_little_memory(vocabulary):
    prediction = " ".join(str(i * i % vocabulary) for i in range(5000))
    reference = " ".join(str(i * 7 % vocabulary) for i in range(5000))
    tracemalloc.start()
    score = metrics.rouge_l(prediction, reference)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 < score <= 1
    assert peak < 10e6  # the table alone is 25 million cells, here bits: 3.1 MB


def test_a_long_sentence_scores_by_its_longest_common_subsequence():
    # 0 ... 4999 against its reverse: the LCS is one word. U has 1, m = n = 5000.
    words = [str(i) for i in range(5000)]
    assert metrics.rouge_l(" ".join(words), " ".join(reversed(words))) == pytest.approx(1 / 5000, abs=1e-8)
    # Even numbers in order against all: U = 2500 = n, m = 5000: P = 1, R = 1/2, F1 = 2/3
    assert metrics.rouge_l(" ".join(words[::2]), " ".join(words)) == pytest.approx(2 / 3, abs=1e-8)


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("The cat, sat!", "a cat sat", 1.0),  # {cat, sat} both
        ("cat cat dog", "cat bird", 2 / 5),  # 1 common: P = 1/3, R = 1/2, F1 = (1/3) / (5/6)
        ("cat cat", "cat cat cat", 4 / 5),  # 2 common: P = 1, R = 2/3
        ("U.S.", "us", 1.0),
        ("", "cat", 0.0),
        ("the", "the", 0.0),  # quirk: nothing is left to compare
    ],
)
def test_qa_f1_by_hand(prediction, reference, score):
    assert metrics.qa_f1(prediction, reference) == pytest.approx(score, abs=1e-12)


def test_chinese_is_cut_before_punctuation_is_deleted():
    assert metrics.qa_f1_zh("北京大学", "北京大学。") == 1
    assert metrics.qa_f1_zh("北京，大学", "北京大学") == 0  # 北京 and 大学 are not the one word 北京大学
    assert metrics.qa_f1_zh("GPT！", "gpt") == 1
    assert metrics.qa_f1_zh("ß", "ss") == 0  # lower case, not upper: SS
    assert metrics.qa_f1_zh("《", "《") == 1  # quirk: the official list of punctuation lacks 《, so it is a word


def test_rouge_l_zh_compares_words_not_characters():
    # 研究 / 生命 / 起源 against 生命 / 起源: U = 2, m = 2, n = 3: P = 2/3, R = 1, F1 = 4/5
    assert metrics.rouge_l_zh("研究生命起源", "生命起源") == pytest.approx(4 / 5, abs=1e-8)


def test_rouge_score_l_is_googles_definition():
    # the cat sat against the cat sat on mats: P = 1, R = 3/5, F1 = 3/4; case and punctuation do not count there
    assert metrics.rouge_score_l("The cat. Sat!", "the cat sat on mats") == pytest.approx(3 / 4, abs=1e-12)
    assert metrics.rouge_score_l("", "cat") == 0
    assert metrics.rouge_score_l("北京大学", "北京大学") == 0


@pytest.mark.parametrize(
    ("prediction", "reference", "all_classes", "score"),
    [
        ("Food", "Food", ["Food", "Sport"], 1.0),
        ("Food or Sport", "Food", ["Food", "Sport"], 1 / 2),
        ("Sport", "Food", ["Food", "Sport"], 0.0),
        ("food", "Food", ["Food", "Sport"], 0.0),
        ("Date of birth", "Date of birth", ["Date", "Date of birth"], 1.0),  # Date is part of the reference: removed
        ("Date of birth", "Date", ["Date", "Date of birth"], 1 / 2),  # the reference is part of another: kept
        ("abc", "abc", ["a", "ab", "abc"], 1 / 2),  # quirk: "a" removed, so the loop skips "ab", which stays
    ],
)
def test_classification_by_hand(prediction, reference, all_classes, score):
    assert metrics.classification(prediction, reference, all_classes) == score


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "score"),
    [
        (metrics.count, "7", "7", 1.0),
        (metrics.count, "There are 7, not 17.", "7", 1 / 2),
        (metrics.count, "seven", "7", 0.0),
        (metrics.count, "07", "7", 0.0),
        (metrics.retrieval, "Paragraph 3", "Paragraph 3", 1.0),
        (metrics.retrieval, "It is 3. Or 3 or 5", "Paragraph 3", 2 / 3),
        (metrics.retrieval_zh, "段落3或段落13", "段落3", 1 / 2),
    ],
)
def test_counts_and_retrievals_by_hand(metric, prediction, reference, score):
    assert metric(prediction, reference) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("return x", 1.0),
        ("\n\nreturn x\nmore", 1.0),  # leading newlines are dropped, later lines ignored
        ("# comment\n```python\n// comment\nreturn x", 1.0),  # none of these is code
        ("# comment\n\nreturn x", 0.0),  # quirk: the empty line after a comment counts as the line
        ("    return x", 0.8),  # indentation counts: 2 * 8 / (12 + 8)
        ("\r\nreturn x", 0.0),  # only newlines are dropped; "\r" shares nothing
        ("# return x", 0.0),
        ("", 0.0),
    ],
)
def test_code_similarity_takes_the_first_line_of_code(prediction, score):
    assert metrics.code_similarity(prediction, "return x") == score


def test_code_similarity_is_a_whole_percent_and_depends_on_the_order():
    assert metrics.code_similarity("abc", "abcd") == 0.86  # 6/7 = 0.857...
    assert metrics.code_similarity("", "") == metrics.code_similarity("# no code", "") == 1  # nothing equals nothing
    assert metrics.code_similarity("\nX = 1", "X = 1") == 1
    # All matches are one character long, and the prediction's first is taken:
    assert metrics.code_similarity("tide", "diet") == 0.25  # "t", which ends diet: no more, 2 * 1 / 8
    assert metrics.code_similarity("diet", "tide") == 0.5  # "d", then "e" behind it: 2 * 2 / 8


@pytest.mark.parametrize(
    ("prediction", "line"),
    [
        ("a\nb", "a"),
        ("\n\na\nb", "a"),
        ("\nXa\nb", "Xa"),
        (" \na", " "),
        ("\r\na", "\r"),
        ("", ""),
        ("\n", ""),
        ("a", "a"),
    ],
)
def test_first_line_drops_leading_newlines_and_nothing_else(prediction, line):
    assert metrics.first_line(prediction) == line


# ---- score_row and bad input -----------------------------------------------------------------------------------------


def test_a_sample_scores_the_best_of_its_references():
    assert metrics.score_row(metrics.qa_f1, "cat", ["dog", "cat bird", "cat"]) == 1
    assert metrics.score_row(metrics.qa_f1, "cat", ["dog", "cat bird"]) == pytest.approx(2 / 3)
    assert metrics.score_row(metrics.qa_f1, "cat", []) == 0


def test_the_first_line_rule_is_applied_when_the_task_has_it():
    assert metrics.score_row(metrics.qa_f1, "\ncat\ndog", ["cat"], first_line_only=True) == 1
    assert metrics.score_row(metrics.qa_f1, "\ncat\ndog", ["cat"]) == pytest.approx(2 / 3)


def test_one_text_in_place_of_a_list_of_references_is_refused():
    with pytest.raises(TypeError, match="list of texts"):
        metrics.score_row(metrics.qa_f1, "cat", "cat")


def test_what_cannot_be_scored_is_named():
    with pytest.raises(DataError, match=r"^classification needs all_classes, .* check the sample's fields$"):
        metrics.classification("Food", "Food")
    with pytest.raises(DataError, match="Paragraph"):
        metrics.retrieval("3", "段落3")
    with pytest.raises(DataError, match="段落"):
        metrics.retrieval_zh("3", "Paragraph 3")


# ---- properties ------------------------------------------------------------------------------------------------------


@generated
@given(ANY_TEXT, ANY_TEXT)
def test_scores_lie_between_0_and_1(prediction, reference):
    for metric in (metrics.qa_f1, metrics.qa_f1_zh, metrics.rouge_l, metrics.rouge_l_zh, metrics.code_similarity):
        score = metric(prediction, reference)
        assert isinstance(score, float) and 0 <= score <= 1


@generated
@given(ANY_TEXT)
def test_a_text_against_itself_scores_1_unless_nothing_of_it_is_compared(text):
    assert metrics.rouge_l(text, text) == (pytest.approx(1, abs=1e-8) if text.strip(".") else 0)
    assert metrics.rouge_l_zh(text, text) == (pytest.approx(1, abs=1e-8) if text.strip(".") else 0)
    assert metrics.qa_f1(text, text) in (0, 1)
    assert metrics.qa_f1_zh(text, text) in (0, 1)
    if text and not any(mark in text for mark in ("\n", "`", "#", "//")):
        assert metrics.code_similarity(text, text) == 1


# ---- what is imported ------------------------------------------------------------------------------------------------

SCORE_ALL = """
import json
from e2bench.scoring import metrics as m
scores = [m.qa_f1("the cat", "cat dog"), m.qa_f1_zh("研究生命起源", "生命起源。"), m.rouge_l("a b. c", "b a. c d"),
          m.rouge_l_zh("研究生命起源", "生命起源"), m.classification("x y", "x", ["x", "y"]), m.count("7", "7"),
          m.retrieval("7", "Paragraph 7"), m.retrieval_zh("7 8", "段落7"), m.code_similarity("x = f(1)", "y = f(10)")]
print(json.dumps(scores))
"""
BARRED = [
    "torch",
    "numpy",
    "pandas",
    "transformers",
    "rouge",
    "rouge_score",
    "fuzzywuzzy",
    "thefuzz",
    "Levenshtein",
    "rapidfuzz",
]


def run_scores(*path: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    command = [sys.executable, "-W", "error", "-c", SCORE_ALL]
    return subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)


def test_scores_need_no_torch_and_do_not_change_with_installed_packages(tmp_path):
    for name in BARRED:  # importable, and fatal even inside try ... except ImportError
        (tmp_path / f"{name}.py").write_text(f"import os; os.write(2, b'{name} was imported'); os._exit(3)\n")
    plain, barred = run_scores(), run_scores(tmp_path)
    assert (plain.returncode, plain.stderr) == (0, "")  # jieba and its warnings are silent
    assert (barred.returncode, barred.stderr) == (0, "")
    assert plain.stdout == barred.stdout


def test_words_added_to_jiebas_global_tokenizer_change_no_score():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jieba = pytest.importorskip("jieba")
    jieba.setLogLevel("WARNING")
    before = metrics.qa_f1_zh("研究生命起源", "生命")
    jieba.add_word("研究生命起源", freq=10**9)
    try:
        metrics._cut.cache_clear()
        assert metrics.qa_f1_zh("研究生命起源", "生命") == before == pytest.approx(1 / 2)  # P = 1/3, R = 1
    finally:
        jieba.del_word("研究生命起源")
