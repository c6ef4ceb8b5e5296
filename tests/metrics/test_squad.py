"""SQuAD scores against an independent implementation of the official rules, on edge cases."""

from __future__ import annotations

import random
import re
import string
from typing import Any

import pytest

from bertcli.metrics.answers import collect_answers
from bertcli.metrics.scores import compute_scores

from ..conftest import score_predictions

CASES = [  # predicted answer, gold answers
    ("the Beatles", ["Beatles", "The Beatles!"]),
    ("a an the", ["the"]),
    ("U.S.A.", ["USA", "the U.S.A"]),
    ("theatre", ["the atre"]),
    ("30 %", ["30%", "thirty percent"]),
    ("café  au lait", ["Café au\tlait"]),
    ("café", ["cafe", "cafe\u0301"]),
    ("„quoted“", ["quoted", '"quoted"']),
    ("one two two", ["two two three", "two"]),
    ("", ["something"]),
    ("something", []),
    ("", []),
    ("!?", ["..."]),
    ("the", ["a"]),
    ("–", []),
    ("10 o'clock", ["10 oclock", "ten"]),
]


def tokens_of(text: str) -> list[str]:
    """Tokens after the official normalization, one character at a time."""
    without_punctuation = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", without_punctuation, flags=re.UNICODE).split()


def f1_of(answer: str, gold: str, version: int) -> float:
    answer_tokens, gold_tokens = tokens_of(answer), tokens_of(gold)
    if version == 2 and (not answer_tokens or not gold_tokens):
        return float(answer_tokens == gold_tokens)
    unmatched, num_shared = list(gold_tokens), 0
    for token in answer_tokens:
        if token in unmatched:
            unmatched.remove(token)
            num_shared += 1
    if not num_shared:
        return 0.0
    precision, recall = num_shared / len(answer_tokens), num_shared / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)


def scores_of(answer: str, golds: list[str], version: int) -> tuple[float, float]:
    if version == 2:
        golds = [gold for gold in golds if tokens_of(gold)]
    golds = golds or [""]
    return (
        max(float(tokens_of(answer) == tokens_of(gold)) for gold in golds),
        max(f1_of(answer, gold, version) for gold in golds),
    )


def prediction(text: str, best_text: str | None = None, null_odds: float = 0.0) -> dict[str, Any]:
    return {"text": text, "best_text": text if best_text is None else best_text, "null_odds": null_odds}


def squad_scores(name: str, predictions: list[dict[str, Any]], golds: list[list[str]]) -> dict[str, float]:
    return score_predictions([name], "question_answering", predictions, golds)


@pytest.mark.parametrize(("answer", "golds"), CASES)
def test_squad_scores_match_the_official_rules(answer: str, golds: list[str]) -> None:
    exact, f1 = scores_of(answer, golds, 1)
    assert squad_scores("squad", [prediction(answer)], [golds]) == pytest.approx(
        {"exact_match": 100 * exact, "f1": 100 * f1}
    )
    exact, f1 = scores_of(answer, golds, 2)
    scores = squad_scores("squad_v2", [prediction(answer)], [golds])
    assert (scores["exact"], scores["f1"]) == (pytest.approx(100 * exact), pytest.approx(100 * f1))


def test_squad_f1_computed_by_hand() -> None:
    """2/3 and 2/4 shared tokens give F1 4/7."""
    scores = squad_scores("squad", [prediction("red green blue")], [["red green black white"]])
    assert scores == {"exact_match": 0.0, "f1": pytest.approx(400 / 7)}


def script_v1(answers: list[dict[str, Any]], golds: list[list[str]]) -> dict[str, float]:
    """The arithmetic of `evaluate-v1.1.py`."""
    exact = f1 = 0
    for answer, texts in zip(answers, golds, strict=True):
        exact += scores_of(answer["text"], texts, 1)[0]
        f1 += scores_of(answer["text"], texts, 1)[1]
    return {"exact_match": 100.0 * exact / len(golds), "f1": 100.0 * f1 / len(golds)}


def script_v2(answers: list[dict[str, Any]], golds: list[list[str]]) -> dict[str, float]:
    """The arithmetic of `evaluate-v2.0.py`, with `best_text` and `null_odds` for its search of thresholds."""
    result = {}
    for index, name in enumerate(("exact", "f1")):
        raw = [scores_of(answer["text"], texts, 2)[index] for answer, texts in zip(answers, golds, strict=True)]
        result[name] = 100.0 * sum(raw) / len(raw)
        for group, members in (("HasAns", True), ("NoAns", False)):
            part = [score for score, texts in zip(raw, golds, strict=True) if bool(texts) == members]
            result[f"{group}_{name}"] = 100.0 * sum(part) / len(part)
        best = current = sum(1 for texts in golds if not texts)
        threshold = 0.0
        for row in sorted(range(len(golds)), key=lambda row: answers[row]["null_odds"]):
            if golds[row]:
                current += scores_of(answers[row]["best_text"], golds[row], 2)[index]
            elif answers[row]["best_text"]:
                current += -1
            if current > best:
                best, threshold = current, answers[row]["null_odds"]
        result |= {f"best_{name}": 100.0 * best / len(golds), f"best_{name}_thresh": threshold}
    return result


@pytest.mark.parametrize("seed", range(3))
def test_squad_scores_equal_those_of_the_official_scripts_to_the_last_digit(seed: int) -> None:
    rng = random.Random(seed)

    def text(max_words: int) -> str:
        return " ".join(rng.choices(["one", "two", "three", "the", "!", "four", "five"], k=rng.randint(1, max_words)))

    golds = [[text(7) for _ in range(rng.choice([0, 1, 1, 3]))] for _ in range(997)]
    answers = [prediction(rng.choice(["", text(9)]), text(9), rng.uniform(-9, 9)) for _ in golds]
    assert squad_scores("squad_v2", answers, golds) == script_v2(answers, golds)
    golds = [texts or ["one"] for texts in golds]
    assert squad_scores("squad", answers, golds) == script_v1(answers, golds)


def test_squad_v2_question_whose_gold_answer_is_only_an_article_has_an_answer() -> None:
    scores = squad_scores("squad_v2", [prediction(""), prediction("a dog")], [["the"], []])
    assert (scores["HasAns_exact"], scores["NoAns_exact"]) == (100.0, 0.0)


def test_answers_that_an_earlier_version_saved_have_scores_without_a_best_threshold() -> None:
    answers = collect_answers(["squad_v2"], "question_answering", [prediction("dog"), prediction("")], [["a dog"], []])
    saved = {name: values for name, values in answers.items() if "span" not in name and name != "null_odds"}
    groups = [f"{group}_{name}" for group in ("HasAns", "NoAns") for name in ("exact", "f1")]
    assert compute_scores(saved) == dict.fromkeys(("exact", "f1", *groups), 100.0)


def test_squad_v2_thresholds_match_an_exhaustive_search() -> None:
    rng = random.Random(0)
    golds = [rng.choice([[], ["one two"], ["three", "the three four"]]) for _ in range(60)]
    answers = [
        prediction(
            "",
            rng.choice(["one", "three four", "one two", ""]),
            rng.choice([-2.0, -1.0, 0.5, 1.5, rng.random()]),
        )
        for _ in golds
    ]
    scores = squad_scores("squad_v2", answers, golds)
    assert scores["NoAns_exact"] == 100.0
    assert scores["HasAns_exact"] == 0.0
    for name, index in (("exact", 0), ("f1", 1)):
        totals = {}
        for threshold in [-99.0, *(answer["null_odds"] for answer in answers)]:
            texts = [answer["best_text"] if answer["null_odds"] <= threshold else "" for answer in answers]
            totals[threshold] = (
                100 * sum(scores_of(text, gold, 2)[index] for text, gold in zip(texts, golds, strict=True)) / 60
            )
        # Answers with equal odds are added one at a time, so the threshold may fall between them, as in the script.
        assert scores[f"best_{name}"] >= max(totals.values()) - 1e-9
        assert scores[f"best_{name}"] <= max(totals.values()) + 100 * 4 / 60
