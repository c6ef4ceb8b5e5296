"""Entities of tag sequences in every dialect: written from known entities, read back, scored and decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertcli.errors import DataError
from bertcli.heads.tag_decoding import allowed_transitions, detect_tag_scheme
from bertcli.reports.analysis import entity_pairs, extract_entities, per_label_scores
from bertcli.tasks.tags import infer_tag_set, read_tag_set, require_readable

from ..conftest import score_predictions

Entity = tuple[str, int, int]  # type, first word, last word
TYPES = ("PER", "LOC", "ORGANIZATION", "person-other")


def write_with_positions(letters: str) -> Callable[[str, int, str | None], list[str]]:
    """The positions of an entity's words in a scheme with other letters for its first, inner, last and only word."""
    first, inner, last, only = letters
    return lambda kind, length, previous: [only] if length == 1 else [first, *[inner] * (length - 2), last]


def write_iob1(kind: str, length: int, previous: str | None) -> list[str]:
    return ["B" if previous == kind else "I", *["I"] * (length - 1)]


DIALECTS: dict[str, tuple[Callable[[str, int, str | None], list[str]], Callable[[str, str], str], str]] = {
    "IOB1": (write_iob1, lambda position, kind: f"{position}-{kind}", "O"),
    "IOB2": (write_with_positions("BIIB"), lambda position, kind: f"{position}-{kind}", "O"),
    "IOBES": (write_with_positions("BIES"), lambda position, kind: f"{position}-{kind}", "O"),
    "BILOU": (write_with_positions("BILU"), lambda position, kind: f"{position}-{kind}", "O"),
    "BMEWO": (write_with_positions("BMEW"), lambda position, kind: f"{position}-{kind}", "O"),
    "lower case": (write_with_positions("BIIB"), lambda position, kind: f"{position}-{kind}".lower(), "O"),
    "lower case with o": (write_with_positions("BIES"), lambda position, kind: f"{position}-{kind}".lower(), "o"),
    "underscore": (write_with_positions("BIIB"), lambda position, kind: f"{position}_{kind}", "O"),
    "position last": (write_with_positions("BIIB"), lambda position, kind: f"{kind}-{position}", "O"),
    "bare": (write_with_positions("BIIB"), lambda position, kind: position, "O"),
    "plain": (write_with_positions("IIII"), lambda position, kind: kind, "O"),
}


def write_tags(dialect: str, entities: Sequence[Entity], num_words: int) -> list[str]:
    positions, join, outside = DIALECTS[dialect]
    tags = [outside] * num_words
    previous: Entity | None = None
    for kind, first, last in entities:
        before = previous[0] if previous and previous[2] == first - 1 else None
        tags[first : last + 1] = [join(position, kind) for position in positions(kind, last + 1 - first, before)]
        previous = kind, first, last
    return tags


def all_tags(dialect: str) -> tuple[str, ...]:
    """Every tag of a dialect: of entities of each type and length, apart and adjacent."""
    rows = [[(kind, 0, 0), (kind, 1, 3)] for kind in TYPES]
    return tuple(sorted({tag for row in rows for tag in write_tags(dialect, row, 5)}))


def type_in(dialect: str, kind: str) -> str:
    return "_" if dialect == "bare" else kind.lower() if dialect.startswith("lower") else kind


@st.composite
def entity_rows(draw: st.DrawFn) -> tuple[list[Entity], int]:
    """Entities of a row of words, and its number of words."""
    entities: list[Entity] = []
    position = 0
    for length, gap, kind in draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2), st.sampled_from(TYPES)))):
        first = position + gap
        entities.append((kind, first, first + length - 1))
        position = first + length
    return entities, position + draw(st.integers(0, 2))


def joined(entities: list[Entity]) -> list[Entity]:
    """The entities as types alone can mark them: adjacent ones of a type are one."""
    result: list[Entity] = []
    for kind, first, last in entities:
        if result and result[-1][0] == kind and result[-1][2] == first - 1:
            kind, first, _ = result.pop()
        result.append((kind, first, last))
    return result


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(rows=st.lists(st.tuples(entity_rows(), entity_rows()), min_size=1, max_size=4))
def test_entity_f1_is_an_independent_count_in_every_dialect(dialect: str, rows: list) -> None:
    """Metrics, entity lists and the report agree with the entities that the tags were written from."""
    labels = all_tags(dialect)
    tag_set = read_tag_set(labels)
    gold_rows, predicted_rows, gold, predicted = [], [], [], []
    for index, ((gold_entities, length), (predicted_entities, other_length)) in enumerate(rows):
        if dialect == "plain":
            gold_entities, predicted_entities = map(joined, (gold_entities, predicted_entities))
        num_words = max(length, other_length, 1)
        for entities, tag_rows, spans in (
            (gold_entities, gold_rows, gold),
            (predicted_entities, predicted_rows, predicted),
        ):
            tag_rows.append(write_tags(dialect, entities, num_words))
            expected = [(type_in(dialect, kind), first, last) for kind, first, last in entities]
            assert tag_set.entities(tag_rows[-1]) == expected
            spans += [(index, *entity) for entity in expected]
    num_correct = len({*gold} & {*predicted})
    scores = score_predictions(["seqeval"], "token_classification", predicted_rows, gold_rows, labels=labels)
    assert scores["precision"] == pytest.approx(num_correct / len(predicted) if predicted else 0.0)
    assert scores["recall"] == pytest.approx(num_correct / len(gold) if gold else 0.0)
    total = len(gold) + len(predicted)
    assert scores["f1"] == pytest.approx(2 * num_correct / total if total else 0.0)
    report = [{"gold": left, "predicted": right} for left, right in zip(gold_rows, predicted_rows, strict=True)]
    pairs = entity_pairs(report, tag_set)
    assert sum(left == right for left, right in pairs) == num_correct
    sets = ([extract_entities(row[side], tag_set) for row in report] for side in ("gold", "predicted"))
    assert sum(label.support for label in per_label_scores(*sets)) == len(gold)


def test_plain_tag_that_begins_with_o_is_an_entity() -> None:
    def f1(predicted: list[str], gold: list[str]) -> float:
        return score_predictions(["seqeval"], "token_classification", [predicted], [gold])["f1"]

    assert f1(["O", "O", "PERSON"], ["ORGANIZATION", "O", "PERSON"]) == pytest.approx(2 / 3)
    assert f1(["location-other", "O"], ["person-other", "O"]) == 0
    assert f1(["b-loc", "b-loc", "b-per"], ["b-loc", "i-loc", "b-per"]) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("O E-mail E-mail S-class", [("E-mail", 1, 2), ("S-class", 3, 3)]),  # not IOBES without B-
        ("S-Bahn O U-Bahn", [("S-Bahn", 0, 0), ("U-Bahn", 2, 2)]),
        ("t_cell b_cell O", [("t_cell", 0, 0), ("b_cell", 1, 1)]),
        ("O S-PER S-PER", [("PER", 1, 1), ("PER", 2, 2)]),
        ("B M E S B E", [("_", 0, 2), ("_", 3, 3), ("_", 4, 5)]),  # word segmentation
        ("B-PER I-PER [SEP] O", [("PER", 0, 1)]),
        ("B:PER I:PER O", [("PER", 0, 1)]),
        ("NOUN VERB X", []),
        ("A B E I N S", []),  # parts of speech of an Italian treebank
        ("0 1 2", []),
    ],
)
def test_tags_are_read_as_a_set(tags: str, entities: list[Entity]) -> None:
    assert infer_tag_set([tags.split()]).entities(tags.split()) == entities


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ("O B-PER I-PER MISC", "'B-PER', 'I-PER' with a position and 'MISC' without"),
        ("O B I PER", "'B', 'I' with a position and 'PER' without"),
        ("OTHER B_PER I_PER", "'B_PER', 'I_PER' with a position and 'OTHER' without"),
        ("NOUN VERB", "the tags do not mark entities"),
    ],
)
def test_tags_whose_entities_are_unclear_are_refused_by_name(tags: str, named: str) -> None:
    with pytest.raises(DataError, match=named) as error:
        require_readable(read_tag_set(tuple(tags.split())))
    assert "set task.metrics to [accuracy]" in str(error.value)
    long_tags = ("O", f"B-{'x' * 500}", "y" * 500)
    with pytest.raises(DataError) as error:
        require_readable(read_tag_set(long_tags))
    assert len(str(error.value)) < 300


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.text(max_size=6), max_size=6), max_size=4))
def test_any_tags_are_read_or_refused(rows: list[list[str]]) -> None:
    tag_set = infer_tag_set(rows)
    for row in rows:
        for _, first, last in tag_set.entities(row):
            assert 0 <= first <= last < len(row)
    if tag_set.marks_entities:
        assert score_predictions(["seqeval"], "token_classification", rows, rows)["accuracy"] == float(any(rows))


@pytest.mark.parametrize("tags", ["B-X I-X O", "b-x i-x o", "B_X I_X O", "X-B X-I O", "B I O"])
def test_constrained_decoding_knows_every_notation(tags: str) -> None:
    labels = tags.split()
    assert detect_tag_scheme(labels, [labels, [labels[0], labels[2]]]) == "IOB2"
    assert not allowed_transitions(labels, "IOB2")[2, 1]
    assert allowed_transitions(labels, "IOB2")[0, 1]


@pytest.mark.parametrize(
    "tags",
    [
        ("O", "B-PER", "E-PER", "B-LOC", "L-LOC"),
        ("O", "B-PER", "S-PER", "U-LOC"),
        ("O", "b_per", "s_per", "l_per"),
        ("O", "PER-B", "PER-E", "PER-U"),
        ("O", "B", "I", "E", "U"),
    ],
)
def test_tags_of_both_iobes_and_bilou_are_a_problem(tags: tuple[str, ...]) -> None:
    tag_set = read_tag_set(tags)
    assert not tag_set.marks_entities
    assert "IOBES" in str(tag_set.problem)
    assert "BILOU" in str(tag_set.problem)
