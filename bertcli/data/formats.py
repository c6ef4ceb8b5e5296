"""File formats as plain rows: JSON Lines, SQuAD's nested JSON, CoNLL's columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from bertcli.errors import DataError

Row = dict[str, Any]


def join_words(value: str | list[str]) -> str:
    """Return a text unchanged, and a list of words joined with spaces."""
    return value if isinstance(value, str) else " ".join(value)


def read_jsonl(lines: Iterable[str], path: str) -> Iterator[tuple[str, Row]]:
    """Yield each object of a JSON Lines file with its location, `file:line`.

    Raises:
        DataError: a line is not a JSON object.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise DataError(f"{path}:{number}: not JSON ({reason}); each line must be one object") from error
        yield f"{path}:{number}", require_object(row, f"{path}:{number}")


def require_object(row: object, location: str) -> Row:
    """Return `row`, which must be a JSON object.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(row, dict):
        raise DataError(f"{location}: found {type(row).__name__}, expected an object")
    return row


def read_squad(content: Any, location: str) -> Iterator[Row]:
    """Yield a row for each question of SQuAD's official JSON, in the columns of the Hugging Face dataset.

    Raises:
        DataError: the content does not have SQuAD's structure.
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
        raise DataError(f"{location}: not SQuAD's JSON (data → paragraphs → qas); {error!r} is missing") from error


def is_squad(content: Any) -> bool:
    """Whether JSON content has SQuAD's structure: an object whose `data` is a list of articles with paragraphs."""
    data = content.get("data") if isinstance(content, dict) else None
    return isinstance(data, list) and all(isinstance(article, dict) and "paragraphs" in article for article in data)


def read_conll(lines: Iterable[str], location: str) -> Iterator[Row]:
    """Yield a row for each sentence of a CoNLL file: one word per line, its tag in the last column.

    Blank lines separate sentences.

    Raises:
        DataError: a line has another number of columns than the first, or fewer than two.
    """
    words: list[str] = []
    tags: list[str] = []
    num_columns = None
    for number, line in enumerate(lines, start=1):
        columns = line.split()
        if not columns or columns[0] == "-DOCSTART-":
            if words:
                yield {"tokens": words, "tags": tags}
            words, tags = [], []
            continue
        num_columns = num_columns or len(columns)
        if len(columns) != num_columns or num_columns < 2:
            expected = max(2, num_columns)
            raise DataError(f"{location}:{number}: found {len(columns)} columns, expected {expected} (word … tag)")
        words.append(columns[0])
        tags.append(columns[-1])
    if words:
        yield {"tokens": words, "tags": tags}
