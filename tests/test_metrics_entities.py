"""Entity scores: whole entities as conlleval counts them, whatever the tagging scheme."""

from __future__ import annotations

import random

import pytest

from bertcli.metrics import compute_metrics


def chunks_of(tags: list[str]) -> set[tuple[str, int, int]]:
    """conlleval's rules for where an entity starts and ends (https://www.clips.uantwerpen.be/conll2000/chunking)."""
    found: set[tuple[str, int, int]] = set()
    before, before_kind, start = "O", "", 0
    for at, tag in enumerate([*tags, "O"]):
        place, _, kind = tag.partition("-")
        ends = before != "O" and (before in "ES" or place in ("B", "S", "O") or kind != before_kind)
        starts = place != "O" and (place in "BS" or before in ("E", "S", "O") or kind != before_kind)
        if ends:
            found.add((before_kind, start, at - 1))
        if starts:
            start = at
        before, before_kind = place, kind
    return found


def scores_of(predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
    ours = [chunks_of(tags) for tags in predictions]
    right = [chunks_of(tags) for tags in references]
    hits = sum(len(one & two) for one, two in zip(ours, right, strict=True))
    precision = hits / max(1, sum(map(len, ours)))
    recall = hits / max(1, sum(map(len, right)))
    words = [a == b for one, two in zip(predictions, references, strict=True) for a, b in zip(one, two, strict=True)]
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "accuracy": sum(words) / len(words)}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (["I-PER", "I-PER", "O"], ["B-PER", "I-PER", "O"]),  # IOB1 against IOB2
        (["I-PER", "B-PER", "O"], ["I-PER", "I-PER", "O"]),  # IOB1's B only parts neighbours
        (["B-PER", "I-LOC", "O"], ["B-PER", "B-LOC", "O"]),  # the kind changes within
        (["O", "I-ORG", "I-ORG"], ["O", "B-ORG", "I-ORG"]),  # begins with I after O
        (["S-PER", "B-ORG", "E-ORG"], ["B-PER", "B-ORG", "I-ORG"]),  # IOBES
        (["S-PER", "S-PER", "O"], ["B-PER", "I-PER", "O"]),
        (["B-LOC", "E-LOC", "I-LOC"], ["B-LOC", "I-LOC", "B-LOC"]),
        (["O", "O", "O"], ["O", "O", "O"]),
    ],
)
def test_odd_sequences_score_as_conlleval(answer: list[str], right: list[str]) -> None:
    found = compute_metrics(("seqeval",), "token_classification", [answer], [right])
    assert found == pytest.approx(scores_of([answer], [right]))


@pytest.mark.parametrize("places", ["IO", "BIO", "BIOES"])
def test_random_sequences_score_as_conlleval(places: str) -> None:
    chance = random.Random(places)

    def tags() -> list[str]:
        drawn = (chance.choice(places) for _ in range(9))
        return [place if place == "O" else f"{place}-{chance.choice(['PER', 'LOC'])}" for place in drawn]

    predictions, references = [tags() for _ in range(80)], [tags() for _ in range(80)]
    found = compute_metrics(("seqeval",), "token_classification", predictions, references)
    assert found == pytest.approx(scores_of(predictions, references))


def test_bilou_counts_as_iobes() -> None:
    right = [["U-A", "U-A", "O", "B-B", "I-B", "L-B", "B-A", "L-A"]]
    found = [["U-A", "U-A", "O", "B-B", "I-B", "L-B", "B-A", "L-B"]]
    scores = compute_metrics(["seqeval"], "token_classification", found, right)
    assert (scores["precision"], scores["recall"]) == (pytest.approx(3 / 5), pytest.approx(3 / 4))
