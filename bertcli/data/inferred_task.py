"""What is inferred from rows: a task definition, what it is based on, and what the data leave open."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bertcli.data.column_profile import Column
from bertcli.errors import shortened

KINDS = ("single_label", "multi_label", "regression", "tags", "spans", "questions", "choices")
TEXT_NAMES = (
    *("text", "sentence", "review", "content", "body", "tweet", "comment", "message", "document", "utterance"),
    *("description", "abstract", "post", "query", "question", "title", "headline", "summary", "phrase", "input", "sms"),
)
LABEL_NAMES = (
    *(
        "label",
        "labels",
        "class",
        "category",
        "categories",
        "target",
        "sentiment",
        "intent",
        "topic",
        "topics",
        "stars",
    ),
    *(
        "rating",
        "score",
        "answer",
        "polarity",
        "emotion",
        "emotions",
        "tag",
        "tags",
        "genre",
        "genres",
        "spam",
        "grade",
        "gold",
    ),
)
GROUP_NAMES = (
    *("user", "author", "patient", "doc", "document", "article", "speaker", "customer", "session", "subject", "source"),
    *("title", "movie", "thread", "conversation", "dialog", "dialogue", "group", "person", "company", "product"),
)
MAX_COUNTED_LABELS = 6  # in a finding


@dataclass
class InferredTask:
    """A task definition inferred from rows.

    Attributes:
        kind: one of `KINDS`.
        keys: keys of the recipe's section `task`, without files.
        findings: what was found, by topic.
        doubts: decisions that the data leave open, each with the option that decides it.
        skips_empty: whether rows lack a text, so that `task.files.skip_empty` is needed.
        skips_unlabelled: whether rows lack a label, so that `data.skip_unlabelled` is needed.
        decimal: decimal separator of numbers; None: point.
    """

    kind: str
    keys: dict[str, Any] = field(default_factory=dict)
    findings: dict[str, str] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    skips_empty: bool = False
    skips_unlabelled: bool = False
    decimal: str | None = None


@dataclass(frozen=True)
class Choices:
    """What the user has decided: columns by name, and the kind of task; None or empty: to be inferred."""

    text: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    kind: str | None = None
    group: str | None = None
    split: str | None = None
    label_delimiter: str | None = None


def first_named(columns: Iterable[Column], names: Sequence[str]) -> Column | None:
    """Return the column with the first of these names, in any case."""
    by_name = {column.name.strip().lower(): column for column in columns}
    return next((by_name[name] for name in names if name in by_name), None)


def chosen_columns(columns: dict[str, Column], names: Sequence[str]) -> list[Column]:
    """Return the columns with these names, in the order of the names."""
    return [columns[name] for name in names if name in columns]


def rank_texts(columns: Iterable[Column]) -> list[Column]:
    """Return the columns that may be texts, most likely first."""

    def score(column: Column) -> float:
        length = min(column.words_per_text, 20) / 5
        share = len(column.counts) / max(1, len(column.texts))
        return 2 * column.name_score(TEXT_NAMES) + length + share

    candidates = [column for column in columns if column.texts and not column.is_number and not column.is_reference]
    return sorted(candidates, key=score, reverse=True)


def shell_argument(name: str) -> str:
    """Return a column name as an argument of a command."""
    return name if re.fullmatch(r"[\w.-]+", name) else f'"{name}"'


def skip_unlabelled(inferred: InferredTask, column: Column) -> None:
    """Skip rows without a label if there are some; an empty cell of several labels means none of them."""
    num_missing = len(column.values) - len(column.present)
    is_empty_list = inferred.kind == "multi_label" and all(isinstance(value, str) for value in column.values)
    if num_missing and not is_empty_list:
        inferred.skips_unlabelled = True
        inferred.findings["missing"] = (
            f"{num_missing} row{'s have' if num_missing > 1 else ' has'} no label and will be skipped "
            "(data.skip_unlabelled)"
        )


def describe_counts(counts: Counter[Any]) -> str:
    """Return the most common values with their counts, truncated for a message."""
    listed = ", ".join(f"{str(name)[:30]} ({count})" for name, count in counts.most_common(MAX_COUNTED_LABELS))
    return shortened(listed) + (", …" if len(counts) > MAX_COUNTED_LABELS and len(listed) <= 78 else "")
