"""LongBench's metrics: a prediction and a reference give a score in [0, 1]. No I/O, no model, no torch.

Every value is the official scorer's: `LongBench/metrics.py` and `eval.py` of THUDM/LongBench @ 2e00731, cited below as
LB. That scorer's results depend on which packages are installed (`rouge` or `rouge_score`, python-Levenshtein or not),
so the two formulas it takes from packages are computed here, and only jieba, which cuts Chinese, is used. Predictions
are taken as they are: stripping them first changes scores.

All metrics share one signature (`Metric`), so that a task row can hold any; `score_row` applies one to a sample.
"""

from __future__ import annotations

import logging
import re
import string
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any, Protocol

from e2bench.errors import DataError
from e2bench.scoring.bounds import check_sample, check_work

MOST_SENTENCE_STEPS = 1 << 26  # of ROUGE-L: words of the reference, once for each sentence of the prediction
MOST_CELLS = 1 << 25  # words times words in rouge_score's table, of 8 bytes each
MOST_CUT = 1 << 18  # characters for jieba, which takes up to 90 microseconds for each
MOST_CODE = 1 << 24  # characters times characters: difflib may look at each pair many times


class Metric(Protocol):
    """Score of one prediction against one reference, in [0, 1]. Only `classification` reads `all_classes`."""

    __name__: str

    def __call__(self, prediction: str, reference: str, all_classes: Sequence[str] | None = None) -> float:
        """In [0, 1]."""
        ...


def score_row(
    metric: Metric,
    prediction: str,
    references: Sequence[str],
    *,
    all_classes: Sequence[str] | None = None,
    first_line_only: bool = False,
) -> float:
    """Score of a sample in [0, 1]: the best over its references, 0 if it has none (LB eval.py, `scorer`).

    first_line_only: the task's rule, see `first_line`.
    Raises TypeError for one text in place of references, DataError for what is too long (`bounds`), and the metric's
    own DataError.
    """
    if isinstance(references, str):  # its characters would be taken as references
        raise TypeError(f"references must be a list of texts, got one text: {references[:40]!r}")
    if first_line_only:
        prediction = first_line(prediction)
    check_sample(prediction, (*references, *(all_classes or ())))
    return max((metric(prediction, reference, all_classes) for reference in references), default=0.0)


def first_line(prediction: str) -> str:
    """Text up to the first newline, after leading newlines (and nothing else) are dropped.

    The rule for trec, triviaqa, samsum and lsht. Source: LB eval.py, `scorer`.
    """
    return prediction.lstrip("\n").split("\n", 1)[0]


# ---- QA F1 -----------------------------------------------------------------------------------------------------------

_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ZH_PUNCTUATION = _ASCII_PUNCTUATION | str.maketrans(  # the official list, which lacks 《 and ·
    "",
    "",
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】"
    "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏",
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def qa_f1(prediction: str, reference: str, all_classes: Sequence[str] | None = None) -> float:
    """F1 of two bags of words, 2PR / (P + R); 0 without a common word.

    Words: lower case, without ASCII punctuation, then without the articles (a, an, the), split at white space. It is
    SQuAD's F1; HELMET and inspect_ai compute others. Agrees with LB metrics.py, `qa_f1_score`.
    """
    return _bag_f1(_english_words(prediction), _english_words(reference))


def qa_f1_zh(prediction: str, reference: str, all_classes: Sequence[str] | None = None) -> float:
    """F1 of two bags of jieba words; 0 without a common word.

    Each text is cut first and each word normalised after (lower case, ASCII and Chinese punctuation and white space
    deleted, empty words dropped); the other order cuts differently. Agrees with LB metrics.py, `qa_f1_zh_score`.
    """
    return _bag_f1(_chinese_words(prediction), _chinese_words(reference))


def _english_words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_ASCII_PUNCTUATION)).split()


def _chinese_words(text: str) -> list[str]:
    normalised = ("".join(word.lower().translate(_ZH_PUNCTUATION).split()) for word in _cut(text))
    return [word for word in normalised if word]


def _bag_f1(prediction: list[str], reference: list[str]) -> float:
    overlap = (Counter(prediction) & Counter(reference)).total()
    if overlap == 0:
        return 0.0
    precision, recall = overlap / len(prediction), overlap / len(reference)
    return 2 * precision * recall / (precision + recall)


@lru_cache(maxsize=16)  # a prediction is cut once, not once for each of its references
def _cut(text: str) -> tuple[str, ...]:
    """Words of `text` by jieba 0.42.1 in exact mode with its hidden Markov model; joined, they give the text again."""
    check_work(len(text), MOST_CUT, "jieba")
    return tuple(_jieba_tokenizer().cut(text, cut_all=False))


@lru_cache(maxsize=1)
def _jieba_tokenizer() -> Any:
    """A jieba tokenizer of our own, so that words which other code adds to jieba's global one change no score.

    It reads the dictionary that comes with jieba. jieba itself would take whatever lies in the temporary folder under
    the name jieba.cache, which is no faster and may be another user's or another version's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba 0.42.1: pkg_resources, invalid escape sequences
        import jieba
    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer


# ---- ROUGE-L ---------------------------------------------------------------------------------------------------------


def rouge_l(prediction: str, reference: str, all_classes: Sequence[str] | None = None) -> float:
    """ROUGE-L F1 as PyPI's `rouge` 1.0.1 defines it, which is not `rouge_score`'s (4 to 11 points lower on LongBench).

    Both texts are split at every "." into sentences, those at white space into words, case and punctuation kept. For
    each pair of a reference and a prediction sentence, the words of their longest common subsequence (LCS) are put into
    one set U. With m and n the numbers of different words in reference and prediction, R = |U| / m, P = |U| / n, and
    F1 = 2 (PR / (P + R + 1e-8)): at most 1 - 5e-9. An empty text, or one of dots only, scores 0.

    Agrees with LB metrics.py, `rouge_score`, but for one deliberate difference: `rouge` rebuilds the LCS recursively
    and raises RecursionError when two sentences have about 1,000 words together, which the official scorer counts as
    0. Here the value is computed for any length.
    Source: rouge 1.0.1, rouge.py `_get_avg_scores`, rouge_score.py `rouge_l_summary_level` and `_recon_lcs`.
    """
    hypothesis, target = _sentences(prediction), _sentences(reference)
    if not hypothesis or not target:
        return 0.0
    hypothesis_words, target_words = set().union(*hypothesis), set().union(*target)
    overlap = _union_lcs_size(hypothesis, target, hypothesis_words & target_words)
    precision, recall = overlap / len(hypothesis_words), overlap / len(target_words)
    return 2.0 * (precision * recall / (precision + recall + 1e-8))


def rouge_l_zh(prediction: str, reference: str, all_classes: Sequence[str] | None = None) -> float:
    """`rouge_l` of jieba's words joined by spaces. Agrees with LB metrics.py, `rouge_zh_score`."""
    return rouge_l(" ".join(_cut(prediction)), " ".join(_cut(reference)))


def _sentences(text: str) -> list[list[str]]:
    # The package splits at " " again what it has joined with " ", so that white space alone is a sentence of one empty
    # word, while nothing at all between two dots is no sentence.
    return [part.split() or [""] for part in text.split(".") if part]


def _union_lcs_size(hypothesis: list[list[str]], target: list[list[str]], common: set[str]) -> int:
    """How many words are in the LCS of at least one pair of sentences. `common`: the words that both texts have.

    Words of one text only are dropped first, which leaves `_lcs_words` as it is; equal sentences are then taken once,
    and a pair that could add no new word is passed over.
    """
    columns = [_positions(sentence) for sentence in _distinct(hypothesis, common)]
    rows = list(_distinct(target, common))
    check_work(len(columns) * sum(1 + len(sentence) for sentence in rows), MOST_SENTENCE_STEPS, "ROUGE-L")
    missing = set(common)
    for sentence in rows:
        wanted = missing.intersection(sentence)
        for position in columns:
            if wanted.isdisjoint(position):
                continue
            found = _lcs_words([word for word in sentence if word in position], position)
            wanted -= found
            missing -= found
    return len(common) - len(missing)


def _distinct(sentences: list[list[str]], kept: set[str]) -> Iterable[tuple[str, ...]]:
    return dict.fromkeys(tuple(word for word in sentence if word in kept) for sentence in sentences)


def _positions(sentence: Sequence[str]) -> dict[str, int]:
    """Word -> integer whose bit j is set where the word stands at position j."""
    position: dict[str, int] = {}
    for j, word in enumerate(sentence):
        position[word] = position.get(word, 0) | 1 << j
    return position


def _lcs_words(x: Sequence[str], position: dict[str, int]) -> set[str]:
    """The words of that longest common subsequence of x and y which the `rouge` package picks among equally long ones.

    Args:
        x: the reference's sentence; every word is a key of `position`.
        position: `_positions(y)`, y the prediction's sentence.

    Let T[i, j] be the length of the LCS of the first i words of x and the first j of y. The package walks from the
    table's far corner: at equal words it takes the word and goes to (i-1, j-1), else to (i-1, j) if T[i-1, j] is larger
    than T[i, j-1], else to (i, j-1). So in row i, with k = T[i, j], it goes left until it meets the word x_i, or else
    to the first column c_i(k) where the row reaches k, and there it goes up. If it meets x_i at a column right of
    c_i(k), then row i-1 has less than k at c_i(k), and that column holds x_i as well. So where in row i the walk
    arrives makes no difference: **x_i is taken if and only if it is the word at column c_i(k)**. The k-th word of the
    LCS is the last such x_i, the search for the (k-1)-th starts at row i-1, and words which only one of the two
    sentences has play no part.

    A row is one integer whose zero bits are the columns c_i(1), c_i(2), ...; Hyyrö's recurrence ("Bit-parallel
    LCS-length computation revisited", AWOCA 2004) gives the next row in four operations. Memory is |x| |y| bits.
    """
    matches = [position[word] for word in x]
    full = (1 << max(position.values()).bit_length()) - 1
    rows = [full]
    for match in matches:
        row = rows[-1]
        matched = row & match
        rows.append((row + matched | row - matched) & full)

    words, i = set(), len(x)
    columns = ~rows[i] & full
    while columns:
        column = 1 << columns.bit_length() - 1  # c_i(k), the same in every row passed below
        while not matches[i - 1] & column:
            i -= 1
        i -= 1
        words.add(x[i])
        columns = ~rows[i] & column - 1
    return words


def rouge_score_l(prediction: str, reference: str, all_classes: Sequence[str] | None = None) -> float:
    """ROUGE-L F1 of Google's `rouge_score` package, without stemming: not LongBench's number, for comparison only.

    One LCS over the whole texts, counted with repetitions; it keeps a-z and 0-9 alone, so Chinese scores nothing.
    """
    words, wanted = (len(re.findall("[a-zA-Z0-9]+", text)) for text in (prediction, reference))
    check_work(words * wanted, MOST_CELLS, "rouge_score")
    return float(_google_scorer().score(reference, prediction)["rougeL"].fmeasure)


@lru_cache(maxsize=1)
def _google_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # slow to import, seldom used

    return RougeScorer(["rougeL"], use_stemmer=False)


# ---- exact answers ---------------------------------------------------------------------------------------------------


def classification(prediction: str, reference: str, all_classes: Sequence[str] | None = None) -> float:
    """1 / (number of class names found in the prediction) if the reference is one of them, else 0.

    Names that are a proper part of the reference are removed from the found ones first, by a loop that removes from the
    list it runs over, so the name after a removed one is not looked at: kept, as it is the official value.
    The official fallback to the nearest name is left out, since it can never be reached (a list is compared with 0).
    Raises DataError without all_classes. Agrees with LB metrics.py, `classification_score`.
    """
    if all_classes is None:
        raise DataError(
            "classification needs all_classes, the list of class names, got none; check the sample's fields"
        )
    found = [name for name in all_classes if name in prediction]
    for name in found:
        if name in reference and name != reference:
            found.remove(name)
    return 1.0 / len(found) if reference in found else 0.0


def retrieval(prediction: str, reference: str, all_classes: Sequence[str] | None = None) -> float:
    """Share of the numbers in the prediction equal to N, for a reference with "Paragraph N"; 0 without a number.

    Numbers are groups of digits compared as text: 07 is not 7. Raises DataError for a reference without "Paragraph N".
    Agrees with LB metrics.py, `retrieval_score`.
    """
    return count(prediction, _paragraph_number(r"Paragraph (\d+)", reference))


def retrieval_zh(prediction: str, reference: str, all_classes: Sequence[str] | None = None) -> float:
    """`retrieval` for a reference with "段落N". Agrees with LB metrics.py, `retrieval_zh_score`."""
    return count(prediction, _paragraph_number(r"段落(\d+)", reference))


def count(prediction: str, reference: str, all_classes: Sequence[str] | None = None) -> float:
    """Share of the numbers (groups of digits) in the prediction equal to the whole reference; 0 without a number.

    Agrees with LB metrics.py, `count_score`.
    """
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(reference) / len(numbers) if numbers else 0.0


def _paragraph_number(pattern: str, reference: str) -> str:
    match = re.search(pattern, reference)
    if match is None:
        raise DataError(
            f"reference {reference[:40]!r} names no paragraph, needs {pattern!r}; check the sample's answers"
        )
    return match[1]


# ---- code ------------------------------------------------------------------------------------------------------------


def code_similarity(prediction: str, reference: str, all_classes: Sequence[str] | None = None) -> float:
    """difflib's ratio of the prediction's first line of code and the reference, rounded to whole percent.

    The line: leading newlines are dropped, then the first line without a backtick, "#" or "//" counts, indentation
    included; none is the empty line. An empty line after a comment is such a line and scores 0: kept, as it is the
    official value (lm-eval's version 6 skips it). The ratio is 2M / (length of both), M the matching characters as
    Ratcliff and Obershelp find them: the order of the two matters, and frequent characters of a reference of 200 or
    more start no match. fuzzywuzzy 0.18.0's `fuzz.ratio` gives it when python-Levenshtein is not installed, as in
    LongBench's requirements; with it, or from thefuzz or rapidfuzz, values are about 2 points higher on average.
    Agrees with LB metrics.py, `code_sim_score`.
    """
    line = _first_code_line(prediction)
    if line == reference:
        return 1.0  # also when both are empty
    if not line or not reference:
        return 0.0
    matcher = SequenceMatcher(None, line, reference)
    if round(100 * matcher.real_quick_ratio()) == 0:  # by the lengths alone
        return 0.0
    check_work(len(line) * len(reference), MOST_CODE, "code similarity")
    return round(100 * matcher.ratio()) / 100


def _first_code_line(prediction: str) -> str:
    lines = prediction.lstrip("\n").split("\n")
    return next((line for line in lines if not ("`" in line or "#" in line or "//" in line)), "")
