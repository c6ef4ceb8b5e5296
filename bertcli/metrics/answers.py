"""The answers of a model and the gold values of a split, as arrays that can be saved, resampled and compared.

Shapes: N rows, C labels (or choices).
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from bertcli.errors import DataError
from bertcli.files import write_bytes
from bertcli.metrics.scores import DTYPES, count_entities, count_tags
from bertcli.metrics.squad import squad_question_scores, squad_v2_question_scores

Answers = dict[str, np.ndarray]
"""What the scores of a split are computed from: arrays with an entry for each of the N rows, and scalars.

The scalars are the names of the metrics, and a hash of the gold values.
"""

GOLD_HASH, METRIC_NAMES = "gold_hash", "metrics"
QUESTION_SCORES = {"squad": squad_question_scores, "squad_v2": squad_v2_question_scores}


def collect_answers(
    metric_names: Iterable[str],
    answer_kind: str,
    predictions: Any,
    references: Any,
    pos_label: int = 1,
    labels: Sequence[str] | None = None,
    probabilities: np.ndarray | None = None,
) -> Answers:
    """Return the arrays from which these metrics are computed for N rows, or for a sample of them.

    They are `predicted` and `gold` [N] (or [N, C] if a row has several labels) with `probabilities` [N, C] if a metric
    needs them; for tags, counts of `words` and `entities` (see `count_tags` and `count_entities`); and for questions,
    the scores of each.

    Args: as `bertcli.metrics.scores.compute_metrics`.
    """
    names = [*metric_names]
    answers = {GOLD_HASH: np.array(_hash_gold(references, labels)), METRIC_NAMES: np.array(" ".join(names))}
    if answer_kind in DTYPES:
        dtype = DTYPES[answer_kind]
        answers |= {"predicted": np.asarray(predictions, dtype), "gold": np.asarray(references, dtype)}
        if answer_kind == "single_label":
            answers["pos_label"] = np.array(pos_label)
        if probabilities is not None:
            answers["probabilities"] = probabilities
    elif answer_kind == "token_classification":
        answers["words"] = count_tags(predictions, references)
        if "seqeval" in names:
            answers["entities"] = count_entities(predictions, references, labels)
    else:
        for name in QUESTION_SCORES.keys() & {*names}:
            scores = QUESTION_SCORES[name](predictions, references)
            answers |= {score: np.array(values) for score, values in scores.items()}
        answers["has_answer"] = np.array([bool(texts) for texts in references])
    return answers


def _hash_gold(references: Any, labels: Sequence[str] | None) -> str:
    """Return a hash of the gold values and of the names of the labels: equal if two models answered the same rows."""
    gold = references.tolist() if isinstance(references, np.ndarray) else references
    return hashlib.sha256(json.dumps([gold, list(labels or ())]).encode()).hexdigest()


def concatenate_answers(*parts: Answers) -> Answers:
    """Return the answers to the rows of all parts, with the arrays that all of them have."""
    shared = [name for name in parts[0] if all(name in answers for answers in parts)]
    arrays = {name: [answers[name] for answers in parts] for name in shared}
    together = {name: np.concatenate(values) if values[0].ndim else values[0] for name, values in arrays.items()}
    hashes = "".join(str(answers[GOLD_HASH]) for answers in parts)
    return together | {GOLD_HASH: np.array(hashlib.sha256(hashes.encode()).hexdigest())}


def num_rows(answers: Answers) -> int:
    """Return the number of rows, N."""
    return next(len(values) for values in answers.values() if values.ndim)


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
