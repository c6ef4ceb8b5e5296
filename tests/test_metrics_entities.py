"""Entity-level scores match conlleval for every tagging scheme."""

from __future__ import annotations

import itertools
import random

import pytest

from bertcli.metrics import compute_metrics


def chunks_of(tags: list[str]) -> set[tuple[str, int, int]]:
    """conlleval's rules for where an entity starts and ends (https://www.clips.uantwerpen.be/conll2000/chunking)."""
    chunks: set[tuple[str, int, int]] = set()
    previous, previous_type, start = "O", "", 0
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        ends = previous != "O" and (previous in "ES" or prefix in ("B", "S", "O") or kind != previous_type)
        starts = prefix != "O" and (prefix in "BS" or previous in ("E", "S", "O") or kind != previous_type)
        if ends:
            chunks.add((previous_type, start, index - 1))
        if starts:
            start = index
        previous, previous_type = prefix, kind
    return chunks


def scores_of(predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
    predicted = [chunks_of(tags) for tags in predictions]
    gold = [chunks_of(tags) for tags in references]
    num_correct = sum(len(left & right) for left, right in zip(predicted, gold, strict=True))
    precision = num_correct / max(1, sum(map(len, predicted)))
    recall = num_correct / max(1, sum(map(len, gold)))
    pairs = zip(itertools.chain(*predictions), itertools.chain(*references), strict=True)
    matches = [predicted_tag == gold_tag for predicted_tag, gold_tag in pairs]
    f1 = 2 * precision * recall / (precision + recall) if num_correct else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "accuracy": sum(matches) / len(matches)}


@pytest.mark.parametrize(
    ("predicted", "gold"),
    [
        (["I-PER", "I-PER", "O"], ["B-PER", "I-PER", "O"]),  # IOB1 against IOB2
        (["I-PER", "B-PER", "O"], ["I-PER", "I-PER", "O"]),  # in IOB1, B only separates adjacent entities
        (["B-PER", "I-LOC", "O"], ["B-PER", "B-LOC", "O"]),  # the type changes within
        (["O", "I-ORG", "I-ORG"], ["O", "B-ORG", "I-ORG"]),  # starts with I after O
        (["S-PER", "B-ORG", "E-ORG"], ["B-PER", "B-ORG", "I-ORG"]),  # IOBES
        (["S-PER", "S-PER", "O"], ["B-PER", "I-PER", "O"]),
        (["B-LOC", "E-LOC", "I-LOC"], ["B-LOC", "I-LOC", "B-LOC"]),
        (["O", "O", "O"], ["O", "O", "O"]),
    ],
)
def test_seqeval_matches_conlleval_on_edge_cases(predicted: list[str], gold: list[str]) -> None:
    scores = compute_metrics(("seqeval",), "token_classification", [predicted], [gold])
    assert scores == pytest.approx(scores_of([predicted], [gold]))


@pytest.mark.parametrize("prefixes", ["IO", "BIO", "BIOES"])
def test_seqeval_matches_conlleval_on_random_sequences(prefixes: str) -> None:
    rng = random.Random(prefixes)

    def tags() -> list[str]:
        drawn = (rng.choice(prefixes) for _ in range(9))
        return [prefix if prefix == "O" else f"{prefix}-{rng.choice(['PER', 'LOC'])}" for prefix in drawn]

    predictions, references = [tags() for _ in range(80)], [tags() for _ in range(80)]
    scores = compute_metrics(("seqeval",), "token_classification", predictions, references)
    assert scores == pytest.approx(scores_of(predictions, references))


def test_seqeval_reads_bilou_as_iobes() -> None:
    gold = [["U-A", "U-A", "O", "B-B", "I-B", "L-B", "B-A", "L-A"]]
    predicted = [["U-A", "U-A", "O", "B-B", "I-B", "L-B", "B-A", "L-B"]]
    scores = compute_metrics(["seqeval"], "token_classification", predicted, gold)
    assert (scores["precision"], scores["recall"]) == (pytest.approx(3 / 5), pytest.approx(3 / 4))
