"""Tag sets: how the tags of a task mark entities. Metrics, predictions, reports and decoding all use this module.

Which words are entities depends on all tags of a task, not on each tag alone: `S-PER` is a single-word entity if
`B-PER` exists, `E-mail` alongside `PERSON` is an entity type, and `B` is a position alongside `I`, but a part of speech
alongside `NOUN`. Supported are

* positions and types: `B-PER`, `b-per`, `B_PER`, also with the position last (`PER-B`) and with `:`, `.`, `/` or `|`.
  The positions are those of IOB1 and IOB2 (B I), IOBES (B I E S), BILOU (B I L U) and BMES (B M E S or W);
* positions alone: `B`, `I`, …, for entities of one type;
* types alone, alongside `O`: consecutive words with the same tag are one entity;
* tags without `O` and without positions, such as parts of speech: they mark no entities.

Anything else is ambiguous; `TagSet.problem` explains why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from bertcli.errors import DataError

POSITIONS = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "L", "U": "U", "M": "I", "W": "S"}
"""Position letters, each with its equivalent in IOBES or BILOU."""
FIRST_POSITIONS, LAST_POSITIONS = frozenset("BSU"), frozenset("ESLU")  # of the words that start and end an entity
OUTSIDE = ("", "")  # position and type of a word outside entities
OUTSIDE_TAGS = ("O", "o")
SPECIAL_TOKEN_TAGS = frozenset({"[CLS]", "[SEP]", "[PAD]", "<s>", "</s>", "<pad>"})  # labels of some models on the Hub
NO_TYPE = "_"  # the entity type of tags that are positions alone, as in seqeval
MAX_QUOTED_TAGS, MAX_QUOTED_CHARS = 2, 18  # in an error message

Parts = dict[str, tuple[str, str]]
"""Entity tags, each with its position (B I E S L U) and its entity type."""


@dataclass(frozen=True)
class TagSet:
    """The interpretation of a task's tags as entity marks; see `read_tag_set`.

    Attributes:
        parts: position and type of each entity tag. A tag without a position continues an entity of its type (I).
        marks_entities: whether the tags mark entities; false for parts of speech, and if there is a `problem`.
        problem: why it is unclear which words are entities; None if it is clear.
    """

    parts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    marks_entities: bool = False
    problem: str | None = None

    def is_outside(self, tag: str | None) -> bool:
        """Return whether a word with this tag is outside all entities; false for tags that do not mark entities."""
        return self.marks_entities and tag not in self.parts

    def entities(self, tags: Sequence[str]) -> list[tuple[str, int, int]]:
        """Return (type, first word, last word) of each entity in a row of tags; none if tags do not mark entities.

        Tags that break their scheme count as in conlleval and seqeval: an entity may start with any position, and it
        ends before a word outside entities, of another type, or with the first position of an entity.
        """
        found: list[tuple[str, int, int]] = []
        position_before, kind_before = OUTSIDE
        for index, tag in enumerate(tags):
            position, kind = self.parts.get(tag, OUTSIDE)
            is_first = kind != kind_before or position in FIRST_POSITIONS or position_before in LAST_POSITIONS
            if kind and is_first:
                found.append((kind, index, index))
            elif kind:
                found[-1] = kind, found[-1][1], index
            position_before, kind_before = position, kind
        return found


def _notations() -> list[re.Pattern[str]]:
    """Return the patterns of tags with a position and a type, most common first."""
    patterns = []
    for separator in "-_:./|":
        for letters in ("".join(POSITIONS), "".join(POSITIONS).lower()):
            patterns.append(f"(?P<position>[{letters}]){re.escape(separator)}(?P<type>.*)")
            patterns.append(f"(?P<type>.+){re.escape(separator)}(?P<position>[{letters}])")
    return [re.compile(pattern, re.DOTALL) for pattern in patterns]


NOTATIONS = _notations()
STANDARD_NOTATION = NOTATIONS[0]  # B-PER
COMMON_NOTATIONS = [NOTATIONS[0], NOTATIONS[2], NOTATIONS[4], NOTATIONS[6]]  # B-PER, b-per, B_PER, b_per


def split_tag(tag: str) -> tuple[str, str]:
    """Split `B-PER` into `B` and `PER`; return two empty strings for `O` and any tag not in this notation."""
    match = STANDARD_NOTATION.fullmatch(tag)
    return (POSITIONS[match["position"]], match["type"]) if match else ("", "")


def split_tags(tags: Sequence[str]) -> list[tuple[str, str]]:
    """Return the position and type of each tag of a tag set; two empty strings for tags outside entities."""
    tag_set = read_tag_set(tuple(tags))
    if tag_set.problem is not None:
        return [split_tag(tag) for tag in tags]
    return [tag_set.parts.get(tag, OUTSIDE) for tag in tags]


@cache
def read_tag_set(tags: tuple[str, ...]) -> TagSet:
    """Determine the tagging scheme of `tags`, the full tag set of a task or model."""
    outside = next((tag for tag in OUTSIDE_TAGS if tag in tags), None)
    others = [tag for tag in tags if tag != outside and tag not in SPECIAL_TOKEN_TAGS]
    mixed: Parts = {}
    for notation in NOTATIONS:
        parts = _parse(notation, others)
        if parts and len(parts) == len(others) and _is_scheme(notation, parts):
            return _tag_set_of(parts)
        if not mixed and (
            _has_begin_and_more(parts) or (notation is STANDARD_NOTATION and _positions(parts) & {*"BI"})
        ):
            mixed = parts
    for letters in (POSITIONS, {letter.lower(): position for letter, position in POSITIONS.items()}):
        bare = {tag: (letters[tag], NO_TYPE) for tag in others if tag in letters}
        if _positions(bare) & {*"BI"} and (outside is not None or _has_begin_and_more(bare)):
            if len(bare) == len(others):
                return _tag_set_of(bare)
            if outside is not None and _has_begin_and_more(bare):
                mixed = mixed or bare
    if mixed:
        return TagSet(problem=_describe_mixed(mixed, [tag for tag in others if tag not in mixed]))
    if outside is None:
        return TagSet()
    return TagSet({tag: ("I", tag or NO_TYPE) for tag in others}, marks_entities=True)


def infer_tag_set(rows: Iterable[Iterable[str | None]]) -> TagSet:
    """Return the tag set of all tags that occur in the rows, for rows of an unknown task."""
    distinct = {tag for row in rows for tag in row if tag is not None}
    return read_tag_set(tuple(sorted(distinct)))


def require_readable(tag_set: TagSet) -> TagSet:
    """Return the tag set unchanged if it marks entities.

    Raises:
        DataError: if it does not mark entities, or it is unclear how.
    """
    if tag_set.marks_entities:
        return tag_set
    cause = tag_set.problem or "the tags do not mark entities: there is no O, and none has a position such as B- or I-"
    raise DataError(f"{cause}. To score tags instead of entities, set task.metrics to [accuracy].")


def _parse(notation: re.Pattern[str], tags: Iterable[str]) -> Parts:
    matches = {tag: match for tag in tags if (match := notation.fullmatch(tag))}
    return {tag: (POSITIONS[match["position"].upper()], match["type"] or NO_TYPE) for tag, match in matches.items()}


def _positions(parts: Parts) -> set[str]:
    return {position for position, _ in parts.values()}


def _is_scheme(notation: re.Pattern[str], parts: Parts) -> bool:
    """Return whether tags in this notation form a tagging scheme, rather than being types that only look like it."""
    if notation not in COMMON_NOTATIONS:
        return _has_begin_and_more(parts)
    positions = _positions(parts)
    return bool(positions & {*"BI"}) or (notation is STANDARD_NOTATION and positions in ({"S"}, {"U"}))


def _has_begin_and_more(parts: Parts) -> bool:
    """Return whether some entity type has tags both for its first word and for another word."""
    kinds: dict[str, set[str]] = {}
    for position, kind in parts.values():
        kinds.setdefault(kind, set()).add(position)
    return any("B" in positions and positions & {*"IEL"} for positions in kinds.values())


def _tag_set_of(parts: Parts) -> TagSet:
    """Return the tag set of tags that all have a position; it has a `problem` if the tags are of two schemes."""
    iobes, bilou = _of_positions(parts, "ES"), _of_positions(parts, "LU")
    if iobes and bilou:
        found = f"found tags of IOBES ({_quote(iobes)}) and of BILOU ({_quote(bilou)})"
        return TagSet(problem=f"{found}; write all tags in the same scheme")
    return TagSet(parts, marks_entities=True)


def _of_positions(parts: Parts, positions: str) -> list[str]:
    """Return the tags with one of these positions."""
    return [tag for tag, (position, _) in parts.items() if position in positions]


def _quote(tags: Iterable[str]) -> str:
    return ", ".join(repr(tag[:MAX_QUOTED_CHARS]) for tag in [*tags][:MAX_QUOTED_TAGS])


def _describe_mixed(parts: Parts, rest: Sequence[str]) -> str:
    return (
        f"found the tags {_quote(parts)} with a position and {_quote(rest)} without one, so it is unclear which words "
        "are entities; write all tags in the same notation, and O for words outside entities"
    )
