"""Whether one of two runs is better than the other, said in a sentence for each score."""

from __future__ import annotations

from typing import Any

from bertcli.errors import DataError, UsageError
from bertcli.metrics.answers import Answers, load_answers
from bertcli.metrics.scores import is_better_lower
from bertcli.metrics.significance import Difference, compare_answers
from bertcli.reports.comparison import Runs
from bertcli.reports.pages import Run
from bertcli.runs.folder import VALIDATION_ANSWERS, RunFolder

ALPHA = 0.05


def compare_two_runs(runs: Runs) -> tuple[list[dict[str, Any]], str]:
    """Compare the answers of two runs to the same validation rows; return the comparison of each score, and sentences.

    Raises:
        UsageError: if there are not two runs, a run has no answers to compare, or they answered different rows.
    """
    if len(runs) != 2:
        raise UsageError(f"--significance compares two runs, found {len(runs)}; name two")
    (first_name, first), (second_name, second) = runs.items()
    first_answers, second_answers = ([_answers(run) for run in seeds] for seeds in (first, second))
    try:
        differences = compare_answers(first_answers, second_answers)
    except DataError as error:
        raise UsageError(f"cannot compare {first_name} with {second_name}: {error}") from error
    in_percent = first[0].results.head == "question_answering"
    sentences = [_sentence(difference, first_name, second_name, in_percent=in_percent) for difference in differences]
    return [vars(difference) | {"difference": difference.value} for difference in differences], "\n".join(sentences)


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
    scale, unit = (1, "") if is_error else (1 if in_percent else 100, " points")
    second_is_better = (difference.value > 0) != is_better_lower(difference.score)
    better, sign = (second_name, 1) if second_is_better else (first_name, -1)
    interval = ""
    if difference.interval is not None:
        low, high = sorted(sign * scale * bound for bound in difference.interval)
        interval = f", 95 % interval {low:.2f} to {high:.2f}"
    if not difference.value:
        return f"no difference: {difference.score} {difference.first:.4f} of both"
    if difference.p_value < ALPHA:
        start = f"{better} is better: {difference.score}"
    else:
        start = f"no clear difference: {difference.score} of {better}"
    p_value = "p < 0.001" if difference.p_value < 0.001 else f"p {difference.p_value:.3f}"
    return f"{start} {sign * scale * difference.value:+.2f}{unit}{interval}, {p_value} ({difference.test})"
