"""File forms as plain rows: JSON Lines, SQuAD's nested JSON, CoNLL's columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from bertcli.errors import DataError

Row = dict[str, Any]


def as_text(value: str | list[str]) -> str:
    """A text, or a list of words with spaces between them."""
    return value if isinstance(value, str) else " ".join(value)


def jsonl_rows(lines: Iterable[str], path: str) -> Iterator[tuple[str, Row]]:
    """Each object of JSON Lines with its place, `file:line`.

    Raises:
        DataError: a line is not JSON, or no object.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise DataError(f"{path}:{number}: not JSON ({reason}); each line must be one object") from error
        yield f"{path}:{number}", checked_object(row, f"{path}:{number}")


def checked_object(row: object, place: str) -> Row:
    """`row`, which must be an object."""
    if not isinstance(row, dict):
        raise DataError(f"{place}: found {type(row).__name__}, expected an object")
    return row


def squad_rows(content: Any, place: str) -> Iterator[Row]:
    """A row for each question of the official SQuAD JSON, in the hub's columns.

    Raises:
        DataError: something in it is not where the format has it.
    """
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = question.get("answers", [])
                    yield {
                        "id": str(question["id"]),
                        "title": article.get("title", ""),
                        "context": paragraph["context"],
                        "question": question["question"],
                        "answers": {
                            "text": [answer["text"] for answer in answers],
                            "answer_start": [answer["answer_start"] for answer in answers],
                        },
                    }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{place}: this is not SQuAD's JSON (data → paragraphs → qas); {error!r} is missing") from error


def is_squad(content: Any) -> bool:
    """Whether JSON content looks like SQuAD's: an object whose `data` are articles with paragraphs."""
    data = content.get("data") if isinstance(content, dict) else None
    return isinstance(data, list) and all(isinstance(article, dict) and "paragraphs" in article for article in data)


def conll_rows(lines: Iterable[str], place: str) -> Iterator[Row]:
    """A row for each sentence of a CoNLL file: a word a line, its tag in the last column, an empty line between.

    Raises:
        DataError: a line whose number of columns is not the others'.
    """
    words: list[str] = []
    tags: list[str] = []
    width = None
    for number, line in enumerate(lines, start=1):
        columns = line.split()
        if not columns or columns[0] == "-DOCSTART-":
            if words:
                yield {"tokens": words, "tags": tags}
            words, tags = [], []
            continue
        width = width or len(columns)
        if len(columns) != width or width < 2:
            raise DataError(f"{place}:{number}: found {len(columns)} columns, expected {max(2, width)} (word … tag)")
        words.append(columns[0])
        tags.append(columns[-1])
    if words:
        yield {"tokens": words, "tags": tags}
