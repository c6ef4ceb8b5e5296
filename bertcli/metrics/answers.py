"""The answers of a model and the gold values of a split, as arrays that can be saved, resampled and compared.

Shapes: N rows, C labels (or choices).
"""

from __future__ import annotations

import hashlib
import io
import json
import operator
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from bertcli.errors import DataError
from bertcli.files import write_bytes
from bertcli.metrics.squad import squad_answers, squad_v2_answers
from bertcli.tasks.tags import infer_tag_set, read_tag_set, require_readable

Answers = dict[str, np.ndarray]
"""What the scores of a split are computed from: arrays with an entry for each of the N rows, and scalars.

The scalars are the names of the metrics, a hash of the gold values, and the ID of the positive label. If rows are
grouped, `group` has a hash of the group of each row; rows of a group are not independent of each other.
"""

GOLD_HASH, METRIC_NAMES, GROUP = "gold_hash", "metrics", "group"
DTYPES = {  # of predictions and gold values that are arrays
    "single_label": np.int64,
    "multiple_choice": np.int64,
    "multi_label": np.float32,
    "regression": np.float64,
}
QUESTION_ANSWERS = {"squad": squad_answers, "squad_v2": squad_v2_answers}


def collect_answers(
    names: Iterable[str],
    answer_kind: str,
    predictions: Any,
    references: Any,
    pos_label: int = 1,
    labels: Sequence[str] | None = None,
    probabilities: np.ndarray | None = None,
    groups: Sequence[Any] | None = None,
) -> Answers:
    """Return the arrays from which these metrics are computed for N rows, or for a sample of them.

    They are `predicted` and `gold` [N] (or [N, C] if a row has several labels) with `probabilities` [N, C] if a metric
    needs them; for tags, counts of `words` and `entities` (see `count_tags` and `count_entities`); and for questions,
    the scores of each.

    Args:
        names: of the metrics.
        answer_kind: the kind of predictions (`Head.answer_kind`).
        predictions: N predictions of that kind.
        references: N gold values.
        pos_label: ID of the positive label, for metrics of the second of two labels.
        labels: all labels of the model, for tags; None: the labels that occur.
        probabilities: [N, C] in the order of the label IDs, if a metric needs them.
        groups: the group of each row, if rows are grouped; None for a row that belongs to no other.

    Raises:
        DataError: if the metric `seqeval` cannot read the tags.
    """
    names = [*names]
    gold = np.asarray(references).tolist() if answer_kind in DTYPES else references
    answers = {GOLD_HASH: np.array(_hash_gold(gold, labels)), METRIC_NAMES: np.array(" ".join(names))}
    if groups is not None:
        names_of_groups = [f"row {row}" if group is None else f"group {group}" for row, group in enumerate(groups)]
        answers[GROUP] = np.array([_hash_group(name) for name in names_of_groups], np.uint64)
    if answer_kind in DTYPES:
        dtype = DTYPES[answer_kind]
        answers |= {"predicted": np.asarray(predictions, dtype), "gold": np.asarray(references, dtype)}
        if answer_kind == "single_label":
            answers["pos_label"] = np.array(pos_label)
        if probabilities is not None:
            answers["probabilities"] = np.asarray(probabilities, np.float64)
    elif answer_kind == "token_classification":
        answers["words"] = count_tags(predictions, references)
        if "seqeval" in names:
            answers["entities"] = count_entities(predictions, references, labels)
    else:
        answers["has_answer"] = np.array([bool(texts) for texts in references])
        for name in names:
            answers |= QUESTION_ANSWERS[name](predictions, references)
    return answers


def count_tags(predictions: list[list[str]], references: list[list[str | None]]) -> np.ndarray:
    """Return the numbers of right predictions and of words with a gold tag (not None) of each row. [N, 2]"""
    rows = zip(*_tagged(predictions, references), strict=True)
    counts = [(sum(map(operator.eq, predicted, gold)), len(gold)) for predicted, gold in rows]
    return np.array(counts).reshape(-1, 2)


def count_entities(
    predictions: list[list[str]], references: list[list[str | None]], labels: Sequence[str] | None = None
) -> np.ndarray:
    """Return the numbers of right, predicted and gold entities of each row, from which F1 is computed. [N, 3]

    Args:
        predictions: N rows of tags.
        references: N rows of gold tags; None for words without one, which are ignored.
        labels: all tags, from which the tagging scheme is inferred (see `bertcli.tasks.tags`); if None, it is inferred
            from the tags that occur.

    Raises:
        DataError: if the tags follow no known tagging scheme, or the scheme is ambiguous.
    """
    tag_set = read_tag_set(tuple(labels)) if labels else infer_tag_set([*predictions, *references])
    require_readable(tag_set)
    rows = zip(*_tagged(predictions, references), strict=True)
    entities = [tuple({*tag_set.entities(tags)} for tags in pair) for pair in rows]
    counts = [(len(predicted & gold), len(predicted), len(gold)) for predicted, gold in entities]
    return np.array(counts).reshape(-1, 3)


def _tagged(predictions: Any, references: Any) -> tuple[list[list[str]], list[list[str]]]:
    """Return the rows of predicted and gold tags without the words that lack a gold tag (None)."""
    if not any(None in row for row in references):
        return predictions, references
    kept = [[index for index, tag in enumerate(row) if tag is not None] for row in references]
    return tuple(  # type: ignore[return-value]
        [[row[index] for index in indices] for row, indices in zip(rows, kept, strict=True)]
        for rows in (predictions, references)
    )


def _hash_group(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _hash_gold(gold: list[Any], labels: Sequence[str] | None) -> str:
    """Return a hash of the gold values and of the names of the labels: equal if two models answered the same rows."""
    return hashlib.sha256(json.dumps([gold, list(labels or ())]).encode()).hexdigest()


def concatenate_answers(*parts: Answers) -> Answers:
    """Return the answers to the rows of all parts, with the arrays that all of them have."""
    shared = [name for name in parts[0] if all(name in answers for answers in parts)]
    arrays = {name: [answers[name] for answers in parts] for name in shared}
    together = {name: np.concatenate(values) if values[0].ndim else values[0] for name, values in arrays.items()}
    hashes = "".join(str(answers[GOLD_HASH]) for answers in parts)
    return together | {GOLD_HASH: np.array(hashlib.sha256(hashes.encode()).hexdigest())}


def metric_names(answers: Answers) -> list[str]:
    """Return the names of the metrics that the answers were collected for."""
    return str(answers[METRIC_NAMES]).split()


def num_rows(answers: Answers) -> int:
    """Return the number of rows, N."""
    return next(len(values) for values in answers.values() if values.ndim)


def group_indices(answers: Answers) -> np.ndarray:
    """Return the index of the group of each row, from 0 in the order of the rows; without groups, that of the row. [N]

    It is the same for any names of the same groups.
    """
    if GROUP not in answers:
        return np.arange(num_rows(answers))
    _, first_rows, indices = np.unique(answers[GROUP], return_index=True, return_inverse=True)
    return np.unique(first_rows[indices], return_inverse=True)[1]


def save_answers(path: Path, answers: Answers) -> None:
    """Write answers as a compressed NumPy archive (`numpy.load` reads it)."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **answers)  # type: ignore[arg-type]
    write_bytes(path, [buffer.getvalue()])


def load_answers(path: Path) -> Answers:
    """Read the answers that `save_answers` wrote.

    Raises:
        DataError: if the file is missing or damaged.
    """
    try:
        with np.load(path) as archive:
            answers = {name: archive[name] for name in archive.files}
        if missing := {GOLD_HASH, METRIC_NAMES} - answers.keys():
            raise ValueError(f"found no {', '.join(sorted(missing))}")
        if len({len(values) for values in answers.values() if values.ndim}) != 1:
            raise ValueError("expected arrays with an entry for each row")
    except (OSError, ValueError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise DataError(
            f"cannot read the answers to the validation split in {path}: {error}. Restore it, or train the run again "
            "with --overwrite"
        ) from error
    return answers
