"""A new recipe as YAML with comments, for a person to edit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bertcli.recipe.load import to_yaml, to_yaml_value

KEY_COMMENTS = {
    "text_columns": "two columns for pairs of texts",
    "labels": "the second one is the positive one if `metrics` has f1",
    "answer_start_column": "offset in the passage, in characters",
    "label_delimiter": "between the labels in a cell",
    "label_columns": "each holds 0 or 1",
    "span_column": "start, end and label of each span",
    "sentence_column": "each row is one word",
    "split_column": "names each row's split",
    "group_by": "rows with the same value stay in one split",
    "held_out_fraction": "of the training rows, or of their groups, for validation",
    "column_names": "the files have no header",
    "skip_empty": "rows without a text",
    "skip_unlabelled": "rows without a label",
    "unanswerable": "some questions have no answer in the passage",
}


def to_commented_yaml(recipe: Mapping[str, Any], comments: Iterable[str]) -> str:
    """Return a recipe as YAML, after lines of comments, and with a comment where a key needs one."""
    return "\n".join([*(f"# {comment}" for comment in comments), *_yaml_lines(recipe, 0)]) + "\n"


def _yaml_lines(section: Mapping[str, Any], depth: int) -> Iterator[str]:
    """Yield a section's keys as YAML lines, with a comment where a key needs one."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield f"{'  ' * depth}{key}:"
            yield from _yaml_lines(value, depth + 1)
            continue
        line = to_yaml({key: to_yaml_value(value)}).rstrip("\n").removesuffix("\n...")
        comment = f"  # {KEY_COMMENTS[key]}" if key in KEY_COMMENTS and "\n" not in line else ""
        yield from (f"{'  ' * depth}{part}" for part in f"{line}{comment}".splitlines())
