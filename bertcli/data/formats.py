"""Read JSON Lines, JSON (also SQuAD's, and exports of annotation tools) and CoNLL files as plain rows."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, BinaryIO

from bertcli.data.annotation_exports import (
    Row,
    is_label_studio,
    is_spacy_example,
    read_label_studio,
    read_prodigy_row,
    read_spacy_example,
)
from bertcli.data.text_files import without_compression_suffix
from bertcli.errors import DataError, shortened

MAX_LINE_EXCERPT = 50  # characters of a line in an error message
MAX_JSON_DEPTH = 2000  # a few times this depth crashes pyarrow's reader
TOO_DEEP = "JSON nested too deeply"
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
ONE_OBJECT_PER_LINE = "; each line must be one object"
JSON_BLANKS = " \t\r\n"
NOT_UNICODE = "a lone surrogate (half of a character, such as \\ud83d) in column {!r}; fix or remove it"
BETWEEN_ENTRIES = re.compile(r"[ \t\r\n,]*")
SAMPLED_BYTES = 1 << 12
FROZENSET = re.compile(r"frozenset\((.*)\)", re.DOTALL)
JSON_STRING = re.compile(rb'"(?:[^"\\\n]|\\.)*+"')
SQUAD_KINDS: dict[Any, str] = {list: "a list", str: "text", int: "an integer", str | int: "text or an integer"}


def join_words(value: str | list[str]) -> str:
    """Return a text unchanged, and a list of words joined with spaces."""
    return value if isinstance(value, str) else " ".join(value)


def read_jsonl(lines: Iterable[str], path: str) -> Iterator[tuple[str, Row]]:
    """Yield each object of a JSON Lines file with its location, `file:line`; read a JSON list with `read_json`.

    Raises:
        DataError: if a line is not a JSON object, or an object has a duplicate key.
    """
    lines, is_first = iter(lines), True
    for number, line in enumerate(lines, start=1):
        if not line.strip(JSON_BLANKS):
            continue
        if is_first and line.lstrip(JSON_BLANKS).startswith("[") and not is_spacy_example(parse_json(line)):
            yield from read_json("\n" * (number - 1) + line + "".join(lines), path)
            return
        try:
            row = STRICT_JSON.decode(line)
        except (ValueError, RecursionError) as error:
            raise _not_json(error, path, number, ONE_OBJECT_PER_LINE) from error
        yield f"{path}:{number}", _to_row(row, f"{path}:{number}")
        is_first = False


def read_json(text: str, path: str) -> Iterator[tuple[str, Row]]:
    """Yield each object with its location from a JSON list, or JSON Lines (which often end in .json).

    SQuAD's JSON and exports of Label Studio become rows; so do spaCy's examples, `["text", {"entities": […]}]`.

    Raises:
        DataError: if the text is in none of these formats, or an object has a duplicate key.
    """
    try:
        content = STRICT_JSON.decode(text)
    except (ValueError, RecursionError) as error:
        first, _, rest = text.strip(JSON_BLANKS).partition("\n")
        has_lines_suffix = without_compression_suffix(path).suffix.lower() in JSON_LINES_SUFFIXES
        is_lines = has_lines_suffix or not rest or parse_json(first) is not None
        if is_lines and (not text.lstrip(JSON_BLANKS).startswith("[") or is_spacy_example(parse_json(first))):
            yield from read_jsonl(text.split("\n"), path)
            return
        line, cure = 1, ""
        if isinstance(error, json.JSONDecodeError):
            line = error.lineno
            if error.msg == "Extra data":
                cure = ONE_OBJECT_PER_LINE if has_lines_suffix else "; use a list of objects, or one object per line"
        elif isinstance(error, _RepeatedKeyError):
            line = _line_of_repeated_key(text)
        raise _not_json(error, path, line, cure) from error
    rows: Iterable[Any] = content if isinstance(content, list) and not is_spacy_example(content) else [content]
    if is_squad(content):
        rows = read_squad(content, path)
    elif is_label_studio(content):
        rows = read_label_studio(content, path)
    for number, row in enumerate(rows, start=1):
        yield f"{path}, entry {number}", _to_row(row, f"{path}, entry {number}")


def parse_json(text: str) -> Any:
    """Return the parsed JSON value; None if the text is not a single valid one."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def parse_cell(value: Any) -> Any:
    """Parse text that is a list, tuple, set or object printed as JSON or Python; return other values unchanged.

    Text that Python would print differently is left unchanged: `['x' 'y']`, a printed NumPy array, would be parsed as a
    list of one string.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not text.startswith(("[", "{", "(", "set(", "frozenset(")):
        return value
    if frozen := FROZENSET.fullmatch(text):
        text = frozen[1] or "set()"
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        parsed = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
    if isinstance(parsed, set):
        return parsed if len(repr(parsed)) == len(text) else value  # a set is printed in any order
    is_printed = isinstance(parsed, list | tuple | dict) and repr(parsed) == text
    return value if not is_printed else list(parsed) if isinstance(parsed, tuple) else parsed


class _RepeatedKeyError(ValueError):
    """A JSON object with a duplicate key."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise _RepeatedKeyError(f"has the key {repeated[:80]!r} twice; rename or remove one of them")
    return row


STRICT_JSON = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _not_json(error: Exception, path: str, line: int, cure: str = "") -> DataError:
    """Return the error for JSON that cannot be parsed."""
    if isinstance(error, json.JSONDecodeError):
        return DataError(f"{path}:{line}: not JSON ({error.msg}){cure}")
    if isinstance(error, _RepeatedKeyError):
        return DataError(f"{path}:{line}: {error}")
    reason = TOO_DEEP if isinstance(error, RecursionError) else f"not JSON ({error})"
    return DataError(f"{path}:{line}: {reason}")


def _line_of_repeated_key(text: str) -> int:
    """Return the line of the first entry that has a duplicate key in a JSON list; 1 if the text is not a list."""
    position = text.find("[") + 1
    try:
        while text.lstrip(JSON_BLANKS).startswith("["):
            position = BETWEEN_ENTRIES.match(text, position).end()  # type: ignore[union-attr]
            _, position = STRICT_JSON.raw_decode(text, position)
    except _RepeatedKeyError:
        return text.count("\n", 0, position) + 1
    return 1


def check_json_depth(file: BinaryIO, path: str) -> None:
    """Check that JSON or JSON Lines are not nested so deeply that pyarrow's reader would crash the process.

    A first pass only counts brackets, in blocks of a few kilobytes. A second pass, which ignores brackets in strings,
    finds the line; it runs only if many more brackets open than close.

    Raises:
        DataError: if the nesting is too deep; the message names the line.
    """
    depth = 0
    while depth <= MAX_JSON_DEPTH and (part := file.read(SAMPLED_BYTES)):
        depth += part.count(b"[") + part.count(b"{") - part.count(b"]") - part.count(b"}")
    if depth <= MAX_JSON_DEPTH:
        return
    depth = 0
    file.seek(0)
    for number, line in enumerate(file, start=1):
        for bracket in re.findall(rb"[][{}]", JSON_STRING.sub(b"", line)):
            depth += 1 if bracket in b"[{" else -1
            if depth > MAX_JSON_DEPTH:
                raise DataError(f"{path}:{number}: {TOO_DEEP}")


def is_unicode(value: Any) -> bool:
    """Return whether a value is free of lone surrogates (halves of characters), which JSON escapes may produce."""
    if not isinstance(value, str | list | dict):
        return True
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)).encode()
    except UnicodeEncodeError:
        return False
    return True


def require_object(row: object, location: str) -> Row:
    """Return `row` unchanged if it is a JSON object.

    Raises:
        DataError: if it is not an object.
    """
    if not isinstance(row, dict):
        raise DataError(f"{location}: found {type(row).__name__}, expected an object")
    return row


def _to_row(value: object, location: str) -> Row:
    """Return an entry of a JSON file as a row.

    Raises:
        DataError: if it is neither an object nor an example of spaCy.
    """
    return read_prodigy_row(require_object(read_spacy_example(value), location))


def check_column_names(names: Iterable[str], path: str, cure: str = "") -> None:
    """Check that no two columns have the same name; columns without a name are ignored.

    Args:
        cure: what else to do about a duplicate name.

    Raises:
        DataError: if a name occurs twice or contains a NUL character.
    """
    seen: set[str] = set()
    for name in names:
        if "\0" in name:
            raise DataError(f"{path} has a NUL character in a column name; it is not a text file")
        if name and name in seen:
            raise DataError(f"{path} has the column {name[:80]!r} twice; rename or remove one of them{cure}")
        seen.add(name)


def read_squad(content: Any, location: str) -> Iterator[Row]:
    """Yield a row for each question of SQuAD's official JSON, with the columns of the Hugging Face dataset.

    Raises:
        DataError: if the content does not have SQuAD's structure; the message names the paragraph or question.
    """
    for article_number, article in enumerate(_squad_value(content, "data", list, location), start=1):
        article_location = f"{location}: article {article_number}"
        paragraphs = _squad_value(article, "paragraphs", list, article_location)
        for paragraph_number, paragraph in enumerate(paragraphs, start=1):
            paragraph_location = f"{article_location}, paragraph {paragraph_number}"
            context = _squad_value(paragraph, "context", str, paragraph_location)
            questions = _squad_value(paragraph, "qas", list, paragraph_location)
            for number, question in enumerate(questions, start=1):
                row = _squad_question(question, f"{paragraph_location}, question", number)
                yield row | {"title": article.get("title", ""), "context": context}


def _squad_question(question: Any, location: str, number: int) -> Row:
    """Return the ID, question and answers of an entry of `qas`; test data have no `answers`."""
    identifier = _squad_value(question, "id", str | int, f"{location} {number}")
    location = f"{location} {identifier!r:.80}"
    answers = _squad_value(question, "answers", list, location) if "answers" in question else []
    locations = [f"{location}, answer {number}" for number in range(1, len(answers) + 1)]
    fields = {"text": str, "answer_start": int}
    return {
        "id": str(identifier),
        "question": _squad_value(question, "question", str, location),
        "answers": {
            name: [_squad_value(answer, name, kind, where) for answer, where in zip(answers, locations, strict=True)]
            for name, kind in fields.items()
        },
    }


def _squad_value(parent: Any, key: str, kind: Any, location: str) -> Any:
    """Return the value under `key`.

    Raises:
        DataError: if `parent` is not an object, or the value is missing or not of this kind.
    """
    if not isinstance(parent, dict):
        raise DataError(f"{location}: found {json_excerpt(parent)}, expected an object with the key {key!r}")
    value = parent.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = f"{json_excerpt(value)} under {key!r}" if key in parent else f"no {key!r}"
        raise DataError(f"{location}: found {found}, expected {SQUAD_KINDS[kind]}")
    return value


def json_excerpt(value: Any) -> str:
    """Return the value as JSON, truncated for a message."""
    return shortened(json.dumps(value, ensure_ascii=False, default=str))


def is_squad(content: Any) -> bool:
    """Return whether JSON content is structured like SQuAD: an object whose `data` lists articles with paragraphs."""
    data = content.get("data") if isinstance(content, dict) else None
    return isinstance(data, list) and all(isinstance(article, dict) and "paragraphs" in article for article in data)


CONLL_TAB = re.compile(r" *\t[ \t]*")
CONLL_BLANKS = " \t\r\n"
DOCUMENT_START = "-DOCSTART-"
CONLL_COMMENT = re.compile(r"#+(?:[ \t]|$)|#(?:begin|end) |#[\w.:-]+[ \t]*=")
DOCUMENT_BOUNDARY = re.compile(r"#(?:begin|end) document\b")  # in CoNLL-2012; also ends a sentence
CONLL_KEY = re.compile(r"#+[ \t]*[\w.:-]+[ \t]*=")  # the start of a comment such as `# sent_id = 1`
WORD_INDEX = re.compile(r"(?:[0-9]+-)?([0-9]+)(?:\.[0-9]+)?")  # 3; 1-2 and 1.1 in CoNLL-U; 4-3 in WebAnno's TSV
MIN_CONLL_2012_COLUMNS = 10
UNIVERSAL_COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")  # of CoNLL-U
UNIVERSAL_TAGS = {"upos": 3, "xpos": 4}
IOB_TAG = re.compile(r"O|[BIESLU]-.+")
WEBANNO_INDEX = re.compile(r"[0-9]+-[0-9]+")

ConllLine = tuple[int, str, list[str]]
"""Line number, text and columns; a blank line has no columns."""


def read_conll(lines: Iterable[str], location: str, *, require_tags: bool = True) -> Iterator[Row]:
    """Yield a row for each sentence of a CoNLL file: one word per line, its tag in the last column.

    Spaces and tabs separate columns, blank lines separate sentences, and comments before a sentence are skipped. A
    first column that numbers the words is skipped. In CoNLL-U, which has ten columns, the tags are the parts of speech.

    Args:
        lines: lines as an editor counts them, with or without line breaks.
        require_tags: whether to refuse files of words alone, whose rows have no tags.

    Raises:
        DataError: if a line has no tag or not as many columns as the first line, or the words are not in the first
            column.
    """
    sentences = _conll_sentences(lines, location, min_columns=2 if require_tags else 1)
    first = list(islice(sentences, 1))
    if first and _word_column(first[0]) > 0:  # one sentence may be `1 2 3`
        first += islice(sentences, 1)
    index = _find_word_column(first, location)
    is_universal = index == 1 and len(first[0][0]) == len(UNIVERSAL_COLUMNS)
    for number, lines_of_words in enumerate(chain(first, sentences), start=1):
        sentence = lines_of_words if index == 0 else _without_subwords(lines_of_words, number, location)
        row = {"tokens": [columns[index] for columns in sentence]}
        if is_universal:
            tags = {name: [columns[at] for columns in sentence] for name, at in UNIVERSAL_TAGS.items()}
            yield row | {"tags": tags["upos"]} | tags
        else:
            has_tags = len(sentence[0]) > index + 1
            yield row | {"tags": [columns[-1] for columns in sentence]} if has_tags else row


def _conll_sentences(lines: Iterable[str], location: str, min_columns: int) -> Iterator[list[list[str]]]:
    """Yield each sentence as the columns of its words.

    Raises:
        DataError: if a line has fewer than `min_columns` columns, or not as many as the first line.
    """
    sentence: list[list[str]] = []
    num_columns = 0
    for number, text, columns in _skip_comments(enumerate(lines, start=1)):
        if not columns or columns[0] == DOCUMENT_START:
            if sentence:
                yield sentence
            sentence = []
            continue
        num_columns = num_columns or len(columns)
        if len(columns) != num_columns and "\t" in text:  # a word that contains spaces
            by_tab = CONLL_TAB.split(text)
            columns = by_tab if len(by_tab) == num_columns else columns
        if len(columns) != num_columns or num_columns < min_columns:
            cure = "; put comments before the sentence" if sentence and CONLL_COMMENT.match(text) else ""
            expected = max(min_columns, num_columns)
            raise DataError(
                f"{location}:{number}: found {len(columns)} columns, expected {expected} "
                f"({'word … tag' if expected > 1 else 'word'}), in {text[:MAX_LINE_EXCERPT]!r}{cure}"
            )
        sentence.append(columns)
    if sentence:
        yield sentence


def _split_columns(text: str) -> list[str]:
    """Split at spaces and tabs; other whitespace, such as U+00A0 or U+3000, is part of a word."""
    columns = text.replace("\t", " ").split(" ")
    return [column for column in columns if column] if "" in columns else columns


def _skip_comments(lines: Iterator[tuple[int, str]]) -> Iterator[ConllLine]:
    """Yield the lines, skipping comments before sentences; a document boundary after a word becomes a blank line.

    A `#` may also be the first word of a sentence. Then its line has as many columns as the others, and its last
    column is a tag that also occurs in other lines. To decide this, the rest of the file is read at the first possible
    comment.

    Args:
        lines: lines with their numbers.
    """
    num_columns, tags = 0, {"O"}
    at_start = True
    for number, line in lines:
        text = line.strip(CONLL_BLANKS)
        if _may_be_comment(text, at_start):
            rest = [(number, text), *((number, line.strip(CONLL_BLANKS)) for number, line in lines)]
            yield from _skip_comments_of(rest, num_columns, tags, at_start)
            return
        columns = _split_columns(text)
        at_start = not columns or columns[0] == DOCUMENT_START
        if not at_start:
            num_columns = num_columns or len(columns)
            tags.add(columns[-1])
        yield number, text, columns


def _may_be_comment(text: str, at_start: bool) -> bool:
    return text.startswith("#") and (CONLL_COMMENT if at_start else DOCUMENT_BOUNDARY).match(text) is not None


def _skip_comments_of(
    lines: Sequence[tuple[int, str]], num_columns: int, tags: set[str], starts_sentence: bool
) -> Iterator[ConllLine]:
    """Yield the lines as `_skip_comments` does.

    Args:
        lines: remaining lines of a file with their numbers.
        num_columns: number of columns of the preceding lines, 0 if there are none.
        tags: tags of the preceding lines.
        starts_sentence: whether the first line is the start of a sentence.
    """
    at_start = starts_sentence
    for _, text in lines:
        if _may_be_comment(text, at_start):
            at_start = True
            continue
        columns = _split_columns(text)
        at_start = not columns or columns[0] == DOCUMENT_START
        if not at_start:
            num_columns = num_columns or len(columns)
            tags.add(columns[-1])
    at_start = starts_sentence
    for number, text in lines:
        columns = _split_columns(text)
        if _may_be_comment(text, at_start):
            has_tag = num_columns == 1 or columns[-1] in tags  # a file of words alone has no tags
            is_word = len(columns) == num_columns and has_tag and not CONLL_KEY.match(text)
            if not is_word:
                if not at_start:
                    yield number, "", []
                at_start = True
                continue
        at_start = not columns or columns[0] == DOCUMENT_START
        yield number, text, columns


def _word_column(sentence: list[list[str]]) -> int:
    """Return the index of the column of words: the first, or the one after a column of word numbers."""
    first, *others = zip(*sentence, strict=True)
    if others and _counts_words(first):
        return 1
    # CoNLL-2012: document, part, word number, word, …
    if len(others) + 1 >= MIN_CONLL_2012_COLUMNS and len({*first}) == 1 and _counts_words(others[1]):
        return 3
    return 0


def _counts_words(column: Sequence[str]) -> bool:
    """Return whether a column of a sentence numbers its words."""
    matches = [WORD_INDEX.fullmatch(value) for value in column]
    if not all(matches):
        return False
    # Skip the ranges (1-2) and empty nodes (1.1) of CoNLL-U, unless all lines look like that (1-1, 1-2, … in WebAnno).
    plain = [int(value) for value in column if value.isdecimal()]
    numbers = plain or [int(match[1]) for match in matches if match]
    return numbers[0] in (0, 1) and numbers == [*range(numbers[0], numbers[0] + len(numbers))]


def _without_subwords(sentence: list[list[str]], number: int, location: str) -> list[list[str]]:
    """Return the numbered words of a sentence without the ranges (1-2) and empty nodes (1.1) of CoNLL-U.

    Raises:
        DataError: if the first column does not number the words, unlike in the first sentences.
    """
    if not _counts_words([columns[0] for columns in sentence]):
        raise DataError(
            f"{location}: sentence {number} begins {' '.join(sentence[0])[:MAX_LINE_EXCERPT]!r}, expected a first "
            "column that numbers the words, as in the first sentence"
        )
    return [columns for columns in sentence if columns[0].isdecimal()]


def _find_word_column(sentences: list[list[list[str]]], location: str) -> int:
    """Return the index of the column of words, judging by the first two sentences.

    Raises:
        DataError: if the words are not in the first or second column, or it is unclear which column has the tags.
    """
    indices = {_word_column(sentence) for sentence in sentences}
    if 0 in indices or max(map(len, sentences), default=0) < 2:
        return 0
    lines = [columns for sentence in sentences for columns in sentence]
    word, tag = max(indices) + 1, max(indices) + 2
    if word > 2:
        found = "the columns are those of CoNLL-2012"
    elif all(WEBANNO_INDEX.fullmatch(columns[0]) for columns in lines):
        found, word, tag = "the columns are those of WebAnno's TSV", 3, 4
    elif len(lines[0]) == 2:
        found = "the first column numbers the words, and there are no tags"
    elif len(lines[0]) > 3 and all(IOB_TAG.fullmatch(value) for columns in lines for value in columns[-2:]):
        found = "there are two columns of tags"
    else:
        return word - 1
    raise DataError(
        f"{location}: {found}; expected the word in the first column and its tag in the last one. Keep only those two, "
        f"for example columns {word} and {tag}: awk '!/^#/ {{print ${word}, ${tag}}}' FILE > NEW"
    )
