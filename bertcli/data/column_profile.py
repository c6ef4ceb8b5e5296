"""Profile the columns of a table: what their names and values say about what they hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bertcli.data.formats import parse_cell
from bertcli.data.spans import parse_spans
from bertcli.data.table_files import label_text
from bertcli.tasks.task import COMMA_NUMBER, NUMBER, label_key

ID_NAMES = ("id", "uid", "guid", "uuid", "index", "idx", "key", "unnamed", "row", "no", "nr")
LINK = re.compile(r"\w+://\S+")
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]\d{1,2}:\d{2}.*)?")


def is_blank(value: Any) -> bool:
    """Return whether a cell has no text: it is null, NaN or blank."""
    return (
        value is None or (isinstance(value, float) and value != value) or (isinstance(value, str) and not value.strip())
    )


def is_missing(value: Any) -> bool:
    """Return whether a cell has no label: it is blank, or NaN as text in CSV."""
    return is_blank(value) or (isinstance(value, str) and value.strip() in ("nan", "NaN"))


@dataclass
class Column:
    """A column of the sampled rows, and what is known about its values."""

    name: str
    values: list[Any]

    @cached_property
    def present(self) -> list[Any]:
        """The values that are not missing; printed lists and objects are parsed."""
        return [parse_cell(value) for value in self.values if not is_missing(value)]

    @cached_property
    def texts(self) -> list[str]:
        """The present values as text; empty if some are lists or objects."""
        if any(isinstance(value, list | dict | set) for value in self.present):
            return []
        return [(label_text(value) or "").strip() for value in self.present]

    @cached_property
    def counts(self) -> Counter[str]:
        """Number of rows of each distinct text."""
        return Counter(self.texts)

    @cached_property
    def words_per_text(self) -> float:
        """Mean number of words."""
        return sum(len(text.split()) for text in self.texts) / max(1, len(self.texts))

    @property
    def words_of_name(self) -> list[str]:
        """The words of the column's name, in lower case."""
        return [word.lower() for word in re.findall(r"[^\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", self.name))]

    def name_score(self, names: Sequence[str]) -> float:
        """Return 2 if the name is one of these, 1 if one of its words is, else 0."""
        plain = self.name.strip().lower()
        return 2 if plain in names else 1 if {*self.words_of_name} & {*names} else 0

    @cached_property
    def is_number(self) -> bool:
        """Whether all values are numbers."""
        return bool(self.texts) and all(map(NUMBER.fullmatch, self.texts))

    @cached_property
    def is_comma_number(self) -> bool:
        """Whether all values are numbers, and some have a decimal comma."""
        return (
            bool(self.texts)
            and all(map(COMMA_NUMBER.fullmatch, self.texts))
            and any("," in text for text in self.texts)
        )

    @cached_property
    def is_integral(self) -> bool:
        """Whether all values are integers."""
        return self.is_number and all(re.fullmatch(r"[+-]?\d+", label_key(text)) for text in self.counts)

    @cached_property
    def is_flag(self) -> bool:
        """Whether the values are 0 and 1 (or false and true), both of which occur."""
        keys = {label_key(text) for text in self.counts}
        return keys - {"-1"} in ({"0", "1"}, {"false", "true"})

    @cached_property
    def is_reference(self) -> bool:
        """Whether the values identify rows or link somewhere, rather than say something: IDs, addresses, dates."""
        if not self.texts:
            return False
        if all(LINK.fullmatch(text) for text in self.texts) or all(DATE.fullmatch(text) for text in self.texts):
            return True
        is_distinct = len(self.counts) == len(self.values) and len(self.values) > 1
        is_counter = is_distinct and self.is_integral
        return is_counter or (bool({*self.words_of_name} & {*ID_NAMES}) and self.words_per_text < 2) or self.name == ""

    @cached_property
    def are_lists(self) -> bool:
        """Whether all values are lists, or printed lists, of plain values."""
        return bool(self.present) and all(
            isinstance(value, list) and not any(isinstance(item, list | dict) for item in value)
            for value in self.present
        )

    @cached_property
    def are_spans(self) -> bool:
        """Whether all values are lists of labelled spans, at least one of which has a span."""
        try:
            spans = [parse_spans(value) for value in self.present if isinstance(value, list | dict)]
        except ValueError:
            return False
        return any(spans) and len(spans) == len(self.present)
