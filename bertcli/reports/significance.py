"""Say whether one of two runs is better than the other, in a sentence for each score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bertcli.errors import DataError, UsageError
from bertcli.metrics.answers import Answers, concatenate_answers, load_answers
from bertcli.metrics.scores import is_better_lower
from bertcli.metrics.significance import Difference, compare_answers
from bertcli.reports.comparison import Runs
from bertcli.reports.pages import Run
from bertcli.runs.folder import VALIDATION_ANSWERS, RunFolder
from bertcli.runs.members import fold_runs

ALPHA = 0.05


def compare_two_runs(runs: Runs) -> tuple[list[dict[str, Any]], str]:
    """Compare the answers of two runs to the same validation rows; return the comparison of each score, and sentences.

    Raises:
        UsageError: if there are not two runs, a run has no answers to compare, or they answered different rows.
    """
    if len(runs) != 2:
        raise UsageError(f"--significance compares two runs, found {len(runs)}; name two")
    (first_name, first), (second_name, second) = runs.items()
    first_answers, second_answers = (_answers_by_seed(name, seeds) for name, seeds in runs.items())
    try:
        differences = compare_answers(first_answers, second_answers)
    except DataError as error:
        raise UsageError(f"cannot compare {first_name} with {second_name}: {error}") from error
    in_percent = first[0].results.head == "question_answering"
    sentences = [_sentence(difference, first_name, second_name, in_percent=in_percent) for difference in differences]
    if any(difference.is_by_group for difference in differences):
        column = next((run.results.group_by for run in (*first, *second) if run.results.group_by), "group")
        sentences.append(f"rows with the same {column!r:.80} are not independent: they were drawn and swapped together")
    changes = {name: dict.fromkeys(change for run in seeds for change in _changes(run)) for name, seeds in runs.items()}
    if any(map(_have_other_texts, first, second)):
        sentences.append(
            f"the texts of some rows of {first_name} and {second_name} differ: this compares row 1 with row 1 and so "
            "on, which is meaningless unless they are versions of the same rows"
        )
    sentences += [
        f"compared are the answers of {name} {' and '.join(found)}" for name, found in changes.items() if found
    ]
    return [vars(difference) | {"difference": difference.value} for difference in differences], "\n".join(sentences)


def _have_other_texts(first: Run, second: Run) -> bool:
    """Return whether a column that both runs read has different texts in some rows; their labels are equal."""
    return any(
        row[column] != other[column]
        for row, other in (
            (line.get("texts", {}), other_line.get("texts", {}))
            for line, other_line in zip(first.predictions, second.predictions, strict=False)
        )
        for column in row.keys() & other.keys()
    )


def _changes(run: Run) -> Iterator[str]:
    """Yield what was changed in the answers of a run after the scores that selected its best model."""
    if run.results.temperature is not None:
        yield "after calibration"
    if "validation_tuned" in run.results.metrics:
        yield "with tuned thresholds"


def _answers_by_seed(name: str, runs: Sequence[Run]) -> list[Answers]:
    """Return the answers of each seed of a run; those of a cross-validation are to the rows of all folds."""
    answers = [_answers(run) for run in runs]
    return [concatenate_answers(*answers)] if fold_runs(Path(name)) else answers


def _answers(run: Run) -> Answers:
    if run.results.objective is not None:
        raise UsageError(f"{run.path} is a pretraining run, whose scores have no rows to compare; name fine-tuned runs")
    path = RunFolder(run.path).predictions / VALIDATION_ANSWERS
    if not path.is_file():
        raise UsageError(
            f"found no {path}, which holds the answers to the validation rows: {run.path} trained several tasks at "
            "once, or is of an earlier version (train it again with --overwrite)"
        )
    return load_answers(path)


def _sentence(difference: Difference, first_name: str, second_name: str, *, in_percent: bool) -> str:
    """Return the sentence that says which run is better by a score, if either."""
    is_error = is_better_lower(difference.score) or difference.score == "r2"
    scale, unit, digits = (1, "", ".4g") if is_error else (1 if in_percent else 100, " points", ".2f")
    second_is_better = (difference.value > 0) != is_better_lower(difference.score)
    better, sign = (second_name, 1) if second_is_better else (first_name, -1)
    interval = ""
    if difference.interval is not None:
        low, high = sorted(sign * scale * bound for bound in difference.interval)
        interval = f", 95 % interval {low:{digits}} to {high:{digits}}"
    if not difference.value:
        return f"no difference: {difference.score} {difference.first:{'.4g' if is_error else '.4f'}} of both"
    if difference.p_value < ALPHA:
        start = f"{better} is better: {difference.score}"
    else:
        start = f"no clear difference: {difference.score} of {better}"
    p_value = "p < 0.001" if difference.p_value < 0.001 else f"p {difference.p_value:.3f}"
    return f"{start} {sign * scale * difference.value:+{digits}}{unit}{interval}, {p_value} ({difference.test})"
