"""Entity-level scores match conlleval and seqeval for every tagging scheme."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

from bertcli.data.sources import load_training_rows
from bertcli.errors import DataError
from bertcli.heads.token_classification import TokenClassification, resolve_tags
from bertcli.metrics.answers import count_entities
from bertcli.tasks.tags import read_tag_set
from bertcli.tasks.task import Task

from ..conftest import score_predictions


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
    scores = score_predictions(("seqeval",), "token_classification", [predicted], [gold])
    assert scores == pytest.approx(scores_of([predicted], [gold]))


@pytest.mark.parametrize("prefixes", ["IO", "BIO", "BIOES"])
def test_seqeval_matches_conlleval_on_random_sequences(prefixes: str) -> None:
    rng = random.Random(prefixes)

    def tags() -> list[str]:
        drawn = (rng.choice(prefixes) for _ in range(9))
        return [prefix if prefix == "O" else f"{prefix}-{rng.choice(['PER', 'LOC'])}" for prefix in drawn]

    predictions, references = [tags() for _ in range(80)], [tags() for _ in range(80)]
    scores = score_predictions(("seqeval",), "token_classification", predictions, references)
    assert scores == pytest.approx(scores_of(predictions, references))


def test_seqeval_reads_bilou_as_iobes() -> None:
    gold = [["U-A", "U-A", "O", "B-B", "I-B", "L-B", "B-A", "L-A"]]
    predicted = [["U-A", "U-A", "O", "B-B", "I-B", "L-B", "B-A", "L-B"]]
    scores = score_predictions(["seqeval"], "token_classification", predicted, gold)
    assert (scores["precision"], scores["recall"]) == (pytest.approx(3 / 5), pytest.approx(3 / 4))


Tag = tuple[str, str]  # position in IOBES and entity type; ("O", "") is outside
DIALECTS: dict[str, tuple[str, Callable[[str, str], str]]] = {  # positions in IOBES, and how a tag is written
    "IOB1 and IOB2": ("BI", lambda position, kind: f"{position}-{kind}"),
    "IOBES": ("BIES", lambda position, kind: f"{position}-{kind}"),
    "BILOU": ("BIES", lambda position, kind: f"{position.translate(BILOU)}-{kind}"),
    "BMEWO": ("BIES", lambda position, kind: f"{position.translate(BMEWO)}-{kind}"),
    "lower-case positions": ("BI", lambda position, kind: f"{position.lower()}-{kind}"),
    "underscore": ("BI", lambda position, kind: f"{position}_{kind}"),
    "lower-case IOBES with underscore": ("BIES", lambda position, kind: f"{position}_{kind}".lower()),
    "position last": ("BIES", lambda position, kind: f"{kind}-{position}"),
    "positions alone": ("BI", lambda position, kind: position),
    "types alone": ("I", lambda position, kind: kind),
}
BILOU, BMEWO = str.maketrans("ES", "LU"), str.maketrans("IS", "MW")


def entities_of(tags: list[Tag]) -> set[tuple[str, int, int]]:
    """conlleval's entities of a row of tags."""
    return chunks_of([position if position == "O" else f"{position}-{kind}" for position, kind in tags])


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_entity_f1_of_any_tag_sequence_is_that_of_conlleval_in_every_dialect(
    dialect: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rows from a file, with words that have no gold tag; predictions, too, may begin an entity with I- or E-."""
    positions, write = DIALECTS[dialect]
    kinds = ["_"] if dialect == "positions alone" else ["PER", "LOC"]
    tags: list[Tag] = [("O", ""), *itertools.product(positions, kinds)]
    names = {tag: "O" if tag[0] == "O" else write(*tag) for tag in tags}
    missing = data.draw(st.sampled_from([None, "-100", ""]))
    words = st.tuples(st.sampled_from(tags), st.sampled_from(tags), st.integers(0, 5).map(bool))
    rows = [[(tag, tag, True) for tag in tags], *data.draw(st.lists(st.lists(words, min_size=1), max_size=5))]
    path = tmp_path_factory.mktemp("tags") / "rows.jsonl"
    lines = ({"text": ["w"] * len(row), "label": [names[gold] if is_tagged else missing for gold, _, is_tagged in row]}
             for row in rows)  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    fields = {"files": {"train": str(path)}, "head": "token_classification", "text_columns": ("text",)}
    task = Task.model_validate(fields)
    split = load_training_rows(task)
    head = TokenClassification(resolve_tags(task, split))
    references = head.references(task, split)
    predictions = [[names[predicted] for _, predicted, _ in row] for row in rows]
    scores = score_predictions(("seqeval",), "token_classification", predictions, references, labels=head.labels)

    gold, predicted = (
        [
            (index, *entity)
            for index, row in enumerate(rows)
            for entity in entities_of([word[side] for word in row if word[2]])
        ]
        for side in (0, 1)
    )
    num_correct = len({*gold} & {*predicted})
    matches = [gold_tag == tag for row in rows for gold_tag, tag, is_tagged in row if is_tagged]
    assert scores == pytest.approx(
        {
            "precision": num_correct / len(predicted),
            "recall": num_correct / len(gold),
            "f1": 2 * num_correct / (len(gold) + len(predicted)),
            "accuracy": sum(matches) / len(matches),
        }
    )


def iobes(tags: list[Tag]) -> list[str]:
    """The tags as seqeval reads them."""
    return [position if position == "O" else f"{position}-{kind}" for position, kind in tags]


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_entities_of_any_tags_are_those_that_seqeval_finds(dialect: str, data: st.DataObject) -> None:
    positions, write = DIALECTS[dialect]
    kinds = ["_"] if dialect == "positions alone" else ["PER", "LOC", "other-PER"]
    tags: list[Tag] = [("O", ""), *itertools.product(positions, kinds)]
    names = {tag: "O" if tag[0] == "O" else write(*tag) for tag in tags}
    tag_set = read_tag_set((*names.values(), "[PAD]"))
    rows = data.draw(st.lists(st.lists(st.tuples(st.sampled_from(tags), st.sampled_from(tags))), max_size=6))
    sides = [[[pair[side] for pair in row] for row in rows] for side in (0, 1)]
    for row in itertools.chain(*sides):
        found = tag_set.entities([names[tag] for tag in row])
        expected = [(kind.lower() if "lower-case IOBES" in dialect else kind, *span)
                    for kind, *span in get_entities(iobes(row))]  # fmt: skip
        assert found == expected
        assert tag_set.entities([names[tag] if tag[0] != "O" else "[PAD]" for tag in row]) == expected

    predicted, gold = ([[names[tag] for tag in row] for row in side] for side in sides)
    counts = count_entities(predicted, gold, [*names.values()])
    assert counts.tolist() == [
        [len(found & expected), len(found), len(expected)]
        for found, expected in zip(*([{*get_entities(iobes(row))} for row in side] for side in sides), strict=True)
    ]
    if any(rows):
        scores = score_predictions(["seqeval"], "token_classification", predicted, gold, labels=[*names.values()])
        by_side = [[iobes(row) for row in side] for side in sides]
        expected = precision_recall_fscore_support(by_side[1], by_side[0], average="micro", zero_division=0)[:3]
        assert [scores[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected, abs=1e-12)


def test_entity_f1_does_not_import_scikit_learn() -> None:
    """The import takes half a second, of a short command on a CPU one twentieth; seqeval imports it."""
    code = (
        "import sys\nfrom bertcli.metrics.answers import collect_answers\n"
        "from bertcli.metrics.scores import compute_scores\n"
        "rows = [['O', 'B-X']], [['B-X', 'B-X']]\n"
        "compute_scores(collect_answers(['seqeval'], 'token_classification', *rows))\n"
        "assert not {'seqeval', 'sklearn'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_parts_of_speech_are_scored_by_accuracy_of_the_tagged_words() -> None:
    gold, predicted = [["NOUN", None, "VERB"], ["X"]], [["NOUN", "X", "NOUN"], ["X"]]
    assert score_predictions(("accuracy",), "token_classification", predicted, gold) == {
        "accuracy": pytest.approx(2 / 3)
    }
    with pytest.raises(DataError, match=r"do not mark entities.*set task.metrics to \[accuracy\]"):
        score_predictions(("seqeval",), "token_classification", predicted, gold)
