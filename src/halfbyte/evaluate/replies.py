"""Free answers against their references, as statistics of each row whose sums make the score.

chrF compares characters and serves any script. BLEU, the length ratio and distinct-n count words between blanks, and ROUGE-L words of
a-z and 0-9: they say little of languages that write without blanks (Chinese, Japanese, Thai), and ROUGE-L splits words at accents and
sees nothing of other alphabets. How a text was cut into words is part of each metric's unit.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from halfbyte.evaluate.metrics import BLEU_ORDERS, Metric, Scores

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU, CHRF

CHRF_ORDERS = 6
ROUGE_WORD = re.compile("[a-z0-9]+")


def reply_scores(answers: Sequence[str], references: Sequence[str], ended: Sequence[bool]) -> list[Scores]:
    """`ended`: the answer ended by itself, and not at the limit of tokens."""
    if not len(answers) == len(references) == len(ended):
        raise ValueError(f"{len(answers)} answers, {len(references)} references and {len(ended)} ends: one of each a row")
    on = f"{len(answers):,} answers"
    lengths = [(len(answer.split()), len(reference.split())) for answer, reference in zip(answers, references)]
    return [
        chrf_scores(answers, references),
        bleu_scores(answers, references),
        rouge_scores(answers, references),
        _scores(Metric("length error", "ratio", False, f"{on}, words too many or too few by words of the reference"), [(abs(a - r), r) for a, r in lengths]),
        _scores(Metric("length ratio", "ratio", True, f"{on}, words of the answer by words of the reference, best at 1"), lengths),
        *(_scores(Metric(f"distinct-{order}", "mean", True, f"{on}, words"), [_distinct(answer, order) for answer in answers]) for order in (1, 2)),
        _scores(Metric("ended by itself", "mean", True, on), [(end, 1) for end in ended]),
    ]


def bleu_scores(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """[answer's words, reference's words, matching n-grams of order 1..4, the answer's n-grams of order 1..4] as sacrebleu's corpus_bleu counts them."""
    from sacrebleu.metrics import BLEU

    # `force` keeps sacrebleu from warning that a text looks tokenised: it is what the model and the user's file say.
    bleu = BLEU(force=True)
    return _sacrebleu_scores("BLEU", "bleu", bleu, answers, references, 2 + 2 * BLEU_ORDERS)


def chrf_scores(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """[the answer's n-grams, the reference's, matching] of 1 to 6 characters, blanks left out, as sacrebleu's corpus_chrf counts them."""
    from sacrebleu.metrics import CHRF

    return _sacrebleu_scores("chrF", "chrf", CHRF(), answers, references, 3 * CHRF_ORDERS)


def rouge_scores(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """F-measure of the longest common subsequence of words, of each row (Lin 2004); the score is their mean, as rouge_score's rougeL without stemming."""
    rows = [(_rouge(answer, reference), 1) for answer, reference in zip(answers, references, strict=True)]
    return _scores(Metric("ROUGE-L", "mean", True, f"{len(answers):,} answers, words of a-z and 0-9, lower case, no stemming"), rows)


def count_empty(answers: Sequence[str]) -> int:
    """Answers of nothing but blanks."""
    return sum(not answer.strip() for answer in answers)


def _rouge(answer: str, reference: str) -> float:
    said, asked = (ROUGE_WORD.findall(text.lower()) for text in (answer, reference))
    shared = _common_subsequence(said, asked)
    return 2 * shared / (len(said) + len(asked)) if shared else 0.0


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest one. A column of the usual table is one integer with a bit a word, so that a word costs a few additions and not a loop over
    the other text (Crochemore et al. 2001, A fast and practical bit-vector algorithm for the longest common subsequence problem)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = open_bits = (1 << len(first)) - 1
    for word in second:
        met = open_bits & places.get(word, 0)
        open_bits = (open_bits + met) | (open_bits - met)
    return len(first) - (open_bits & every).bit_count()


def _distinct(answer: str, order: int) -> tuple[float, int]:
    """(distinct n-grams / n-grams, 1), or (0, 0) of an answer too short to have any (Li et al. 2016, A Diversity-Promoting Objective Function).

    Of each answer, where that paper counts all answers together: the share of all falls as answers are added, and a bootstrap draw, in which
    answers stand twice, would look less varied than the answers it is drawn from.
    """
    words = answer.split()
    ngrams = [tuple(words[place : place + order]) for place in range(len(words) - order + 1)]
    return (len(set(ngrams)) / len(ngrams), 1) if ngrams else (0.0, 0)


def _sacrebleu_scores(name: str, kind: str, metric: "BLEU | CHRF", answers: Sequence[str], references: Sequence[str], columns: int) -> Scores:
    """sacrebleu's public functions give scores only; what it sums to a corpus score is what its own bootstrap draws from, too."""
    rows = metric._extract_corpus_statistics(answers, [references])
    return _scores(Metric(name, kind, True, f"{len(answers):,} answers, sacrebleu {metric.get_signature()}"), rows, columns)


def _scores(metric: Metric, rows: Sequence[Sequence[float]], columns: int = 2) -> Scores:
    return Scores(metric, np.array(rows, np.float64).reshape(-1, columns))
