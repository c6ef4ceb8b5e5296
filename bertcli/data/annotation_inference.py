"""Infer tasks other than text classification from columns: spans, tags, choices and questions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from bertcli.data.column_profile import Column, is_missing
from bertcli.data.formats import parse_cell
from bertcli.data.inferred_task import (
    LABEL_NAMES,
    TEXT_NAMES,
    Choices,
    InferredTask,
    chosen_columns,
    describe_counts,
    first_named,
    rank_texts,
    skip_unlabelled,
)
from bertcli.data.spans import parse_spans, place_spans, tags_of_spans
from bertcli.data.table_files import label_text
from bertcli.errors import UsageError, quoted, shortened
from bertcli.tasks.task import label_key

QUESTION_NAMES, CONTEXT_NAMES = ("question", "query"), ("context", "passage", "paragraph", "article", "text")
ANSWER_NAMES = ("answers", "answer", "answer_text", "answers.text", "answers_text", "answer.text")
START_NAMES = ("answer_start", "answers.answer_start", "answers_answer_start", "answer.answer_start", "start")
CHOICE_LIST_NAMES = ("choices", "options", "endings", "candidates")
CHOICE_COLUMN = re.compile(
    r"(?:(?P<stem>choice|option|ending|answer|solution|candidate|opt|sol)[ _]?)?(?P<at>[a-j]|\d)", re.I
)
SENTENCE_NAMES = ("sentence #", "sentence_id", "sentence", "sent_id", "sentence_number", "sentence_no")
WORD_NAMES = ("word", "token", "tokens", "words", "form")
TAG_NAMES = ("tag", "tags", "ner_tags", "ner", "label", "labels", "iob", "bio", "pos", "upos")
NO_TAG = ("", "-1", "-100")  # ignored in the loss, as null is
MAX_NUMBER_WORDS = 2  # in a column that numbers sentences, such as `Sentence: 1`
MAX_ABSENT_SHARE = 0.5  # of answers that are not in their passage; with more, they are labels
MAX_TOKEN_WORDS = 1.2  # on average, if each row is one word


def find_spans(columns: dict[str, Column], choices: Choices) -> InferredTask | None:
    """Return the task of labelled spans in a text; None if no column has spans."""
    candidates = [column for column in chosen_columns(columns, choices.label) or columns.values() if column.are_spans]
    if not candidates:
        return None
    spans = max(candidates, key=lambda column: column.name_score(("spans", "entities", "label", "labels", "ner")))
    texts = chosen_columns(columns, choices.text) or [
        column
        for column in (first_named(columns.values(), ("text", "tokenized_text", *TEXT_NAMES)), *columns.values())
        if column is not None and column is not spans and (column.texts or _are_words(column))
    ]
    if not texts:
        raise UsageError(f"found spans in column {quoted(spans.name)}, but no text; name its column with --text")
    counts = Counter(span.label for value in spans.present for span in parse_spans(value) or ())
    inferred = InferredTask(
        "spans",
        {"head": "token_classification", "text_columns": (texts[0].name,), "span_column": spans.name}
        | {"label_column": "tags"},
        {
            "task": f"spans (column {quoted(spans.name)}) in the text (column {quoted(texts[0].name)})",
            "labels": f"{sum(counts.values())} spans: {describe_counts(counts)}",
        },
    )
    skip_unlabelled(inferred, spans)
    num_cut = sum(_num_cut_spans(*row) for row in zip(texts[0].values, spans.values, strict=True))
    if num_cut:
        inferred.doubts.append(
            f"{num_cut} of {sum(counts.values())} spans begin or end inside a word, whose words then train nothing; "
            "offsets count characters from 0 and do not include the end"
        )
    return inferred


def _num_cut_spans(text: Any, cell: Any) -> int:
    """Return how many spans of a text begin or end inside a word; 0 if some are invalid, which reading reports."""
    try:
        return tags_of_spans(text, place_spans(text, parse_spans(cell) or ()))[1] if isinstance(text, str) else 0
    except ValueError:
        return 0


def _are_words(column: Column) -> bool:
    return column.are_lists and all(isinstance(item, str) for value in column.present for item in value)


def find_tags(columns: dict[str, Column], choices: Choices) -> InferredTask | None:
    """Return the task of words and tags: a list of each, a text with as many tags as words, or a row per word."""
    texts, labels = chosen_columns(columns, choices.text), chosen_columns(columns, choices.label)
    sentence = first_named(columns.values(), SENTENCE_NAMES)
    word = texts[0] if texts else first_named(columns.values(), WORD_NAMES)
    tag = labels[0] if labels else _best_tag_column(columns, word)
    if word is None or tag is None:
        return None
    keys: dict[str, Any] = {"head": "token_classification", "text_columns": (word.name,), "label_column": tag.name}
    if sentence is not None and _numbers_sentences(sentence, word, tag):
        inferred = InferredTask("tags", keys | {"sentence_column": sentence.name})
        tags = Counter(tag.texts)
        where = f"a row per word, sentences by column {quoted(sentence.name)}"
    elif _has_tag_per_word(word, tag):
        inferred = InferredTask("tags", keys)
        items = (label_text(item) or "" for value in tag.present for item in _items(value))
        tags = Counter(item for item in items if item.strip() not in NO_TAG)
        where = "a tag per word"
    else:
        return None
    inferred.findings["task"] = f"tags (column {quoted(tag.name)}) of words (column {quoted(word.name)}): {where}"
    inferred.findings["labels"] = f"{len(tags)} tags: {describe_counts(tags)}"
    others = [column for column in columns.values() if column not in (word, tag) and _has_tag_per_word(word, column)]
    if others and not labels:
        inferred.doubts.append(
            f"column {quoted(others[0].name)} also has a tag per word; --label {others[0].name} uses that one"
        )
    return inferred


def _numbers_sentences(sentence: Column, word: Column, tag: Column) -> bool:
    """Return whether each row is a word with its tag, and a column numbers the sentences."""
    if sentence in (word, tag) or not word.texts or not tag.texts or not sentence.texts:
        return False
    is_number = sentence.words_per_text <= MAX_NUMBER_WORDS and len(sentence.counts) < len(sentence.values)
    return is_number and word.words_per_text < MAX_TOKEN_WORDS


def _best_tag_column(columns: dict[str, Column], word: Column | None) -> Column | None:
    named = [first_named(columns.values(), [name]) for name in TAG_NAMES]
    candidates = [column for column in named if column is not None and column is not word]
    if word is None or word.texts:
        return candidates[0] if candidates else None
    return next((column for column in (*candidates, *columns.values()) if _has_tag_per_word(word, column)), None)


def _items(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return str(value).split(",") if " " not in str(value).strip() and "," in str(value) else str(value).split()


def _has_tag_per_word(word: Column, tag: Column) -> bool:
    """Return whether each row has as many tags as words, or two lists have the names of words and tags.

    If they are texts, some rows must have several words, and the tags must recur.
    """
    if word is tag or tag.is_number or not tag.present:
        return False
    if word.are_lists and tag.are_lists and word.name_score(WORD_NAMES) == 2 and tag.name_score(TAG_NAMES) == 2:
        return True
    lengths = [
        (
            len(words if isinstance(words := parse_cell(value), list) else str(value or "").split()),
            len(_items(parse_cell(tags))),
        )
        for value, tags in zip(word.values, tag.values, strict=True)
        if not is_missing(tags)
    ]
    is_equal = all(num_words == num_tags for num_words, num_tags in lengths)
    num_tags = {str(item) for value in tag.present for item in _items(value)}
    return (
        is_equal and any(num_words > 1 for num_words, _ in lengths) and 1 < len(num_tags) < sum(at for at, _ in lengths)
    )


def find_choices(columns: dict[str, Column], choices: Choices) -> InferredTask | None:
    """Return the task of choices in several columns or in a list; None if there are no choices or no answers."""
    named = first_named(columns.values(), CHOICE_LIST_NAMES)
    numbered: dict[str, list[Column]] = {}
    for column in columns.values():
        if (match := CHOICE_COLUMN.fullmatch(column.name.strip())) and column.texts and not column.is_number:
            numbered.setdefault((match["stem"] or "").lower(), []).append(column)
    series = max(numbered.values(), key=len, default=[])
    if named is not None and _are_words(named):
        choice_columns = [named]
        num_choices = len(named.present[0])
        unequal = next((value for value in named.present if len(value) != num_choices), None)
        if unequal is not None:
            raise UsageError(
                f"column {quoted(named.name)} has {num_choices} choices in the first row, but {len(unequal)} in "
                f"another, {quoted(unequal)}; expected as many in each row"
            )
    elif len(series) > 1:
        choice_columns, num_choices = series, len(series)
    else:
        return None
    labels = chosen_columns(columns, choices.label) or [
        column
        for column in columns.values()
        if column.name_score((*LABEL_NAMES, *ANSWER_NAMES, "correct")) and column.texts and column not in choice_columns
    ]
    label = next((column for column in labels if _is_choice_label(column, num_choices)), None)
    rest = [column for column in columns.values() if column not in (*choice_columns, label) and not column.is_reference]
    texts = chosen_columns(columns, choices.text) or rank_texts([column for column in rest if column.texts])[:1]
    if label is None:
        _refuse_choice_texts(labels, choice_columns)
    if label is None or not texts:
        return None
    if "0" not in label.counts and str(num_choices) in label.counts:
        raise UsageError(
            f"column {quoted(label.name)} numbers the choices from 1 to {num_choices}, expected 0 to {num_choices - 1} "
            "or letters (A, B, …); subtract 1 in the file"
        )
    doubts = []
    if label.is_number and "0" not in label.counts:
        doubts.append(
            f"no row of column {quoted(label.name)} has 0, the number of the first choice; if the numbers count from "
            "1, subtract 1 in the file"
        )
    return InferredTask(
        "choices",
        {
            "head": "multiple_choice",
            "text_columns": tuple(column.name for column in texts),
            "choice_columns": tuple(column.name for column in choice_columns),
            "label_column": label.name,
        },
        {
            "task": f"{num_choices} choices ({shortened(', '.join(column.name for column in choice_columns))}) for the "
            f"text in column {quoted(texts[0].name)}",
            "labels": f"column {quoted(label.name)}: {describe_counts(label.counts)}",
        },
        doubts,
        skips_unlabelled=len(label.present) < len(label.values),
    )


def _refuse_choice_texts(labels: Iterable[Column], choice_columns: Sequence[Column]) -> None:
    """Raise an error if a column has the text of one of the choices in each row, instead of its number."""
    rows = zip(*(column.values for column in choice_columns), strict=True)
    texts = [{str(text) for cell in map(parse_cell, row) for text in (cell if isinstance(cell, list) else [cell])}
             for row in rows]  # fmt: skip
    for column in labels:
        if all(is_missing(value) or str(value) in row for value, row in zip(column.values, texts, strict=True)):
            raise UsageError(
                f"column {quoted(column.name)} has the text of a choice, {quoted(column.texts[0])}, expected its "
                "number, from 0, or its letter (A, B, …); write that in the file"
            )


def _is_choice_label(column: Column, num_choices: int) -> bool:
    letters = {"ABCDEFGHIJ"[index] for index in range(min(10, num_choices))}
    keys = {label_key(text).upper() for text in column.counts} - {"-1"}
    return bool(keys) and (keys <= letters or keys <= {str(index) for index in range(num_choices + 1)})


def find_questions(columns: dict[str, Column], choices: Choices) -> InferredTask | None:
    """Return the task of questions about passages; None if there are no answers in passages."""
    texts = chosen_columns(columns, choices.text)
    question = texts[0] if len(texts) == 2 else first_named(columns.values(), QUESTION_NAMES)
    context = texts[1] if len(texts) == 2 else first_named(columns.values(), CONTEXT_NAMES)
    start = first_named(columns.values(), START_NAMES)
    start = start if start is not None and (start.is_integral or start.are_lists) else None
    rest = [column for column in columns.values() if column not in (question, context)]
    answers = next(iter(chosen_columns(columns, choices.label)), None) or first_named(rest, ANSWER_NAMES)
    answers = answers or (first_named(rest, ("text",)) if start is not None else None)
    if question is None or context is None or answers is None or not question.texts or not context.texts:
        return None
    pairs = [(str(passage), answer) for passage, answer in zip(context.values, answers.values, strict=True)]
    absent = [
        answer for passage, answer in pairs if not is_missing(answer) and str(answer).strip() not in passage
    ] if answers.texts else []  # fmt: skip
    if len(absent) > MAX_ABSENT_SHARE * len(answers.texts) and choices.kind is None:
        return None
    unanswered = sum(not _has_answer(parse_cell(value)) for value in answers.values)
    inferred = InferredTask(
        "questions",
        {
            "head": "question_answering",
            "text_columns": (question.name, context.name),
            "label_column": answers.name,
        },
        {"task": f"questions ({quoted(question.name)}) about a passage ({quoted(context.name)})"},
    )
    if unanswered:
        inferred.keys["unanswerable"] = True
        inferred.findings["answers"] = f"{unanswered} of {len(answers.values)} questions have no answer in the passage"
    if absent:
        raise UsageError(
            f"found answers that are not in their passage, such as {quoted(absent[0])} ({len(absent)} in all, column "
            f"{quoted(context.name)}); correct them, or set --problem single_label if the answers are labels"
        )
    repeated = sum(passage.count(str(answer)) > 1 for passage, answer in pairs) if answers.texts else 0
    if start is not None and start is not answers and not any(isinstance(value, dict) for value in answers.present):
        _add_starts(inferred, context, answers, start)
    elif repeated:
        inferred.doubts.append(
            f"{repeated} answers occur several times in their passage, and the first place is used; --label COLUMN "
            "names a column with `answer_start`, as in SQuAD"
        )
    identifier = first_named(columns.values(), ("id",))
    if identifier is not None and len(identifier.counts) == len(identifier.values):
        inferred.keys["id_column"] = identifier.name
    return inferred


def _add_starts(inferred: InferredTask, context: Column, answers: Column, start: Column) -> None:
    """Set the column of the starts of the answers; how many answers are not there is a doubt."""
    inferred.keys["answer_start_column"] = start.name
    rows = [
        (str(passage), str(answer), label_key(label_text(offset) or ""))
        for passage, answer, offset in zip(context.values, answers.values, start.values, strict=True)
        if not is_missing(answer)
    ] if answers.texts else []  # fmt: skip
    moved = sum(not passage.startswith(answer, int(key)) for passage, answer, key in rows if key.isdecimal())
    if moved:
        inferred.doubts.append(
            f"{moved} of {len(rows)} answers are not at their start (column {quoted(start.name)}, in characters from "
            "0), and the nearest place is used; correct the column, or remove task.answer_start_column"
        )


def _has_answer(value: Any) -> bool:
    if isinstance(value, dict):
        value = value.get("text")
    return bool(value) and not is_missing(value)
