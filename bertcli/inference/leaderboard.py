"""Prediction files for leaderboards and official scorers: GLUE's TSV files and SQuAD's JSON files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from bertcli.console import Console
from bertcli.data.formats import Row
from bertcli.data.sources import load_split
from bertcli.errors import BertcliError, DataError, UsageError, quoted
from bertcli.files import new_file
from bertcli.heads.question_answering import QuestionAnswering
from bertcli.heads.span_decoding import SpanPrediction
from bertcli.inference.loaded_model import LoadedModel, load_for_inference, multitask_models, predict_inputs
from bertcli.inference.prediction_outputs import NULL_ODDS_FILE, SQUAD_FILES
from bertcli.models.from_pretrained import ModelSource
from bertcli.recipe.schema import HardwareSection
from bertcli.runs.folder import RunFolder
from bertcli.runs.members import best_seed, chosen_run
from bertcli.tasks import TASKS, get_task
from bertcli.tasks.task import Task

STSB_SCORE_RANGE = (0.0, 5.0)


def write_glue_files(
    name: str,
    output: Path,
    *,
    as_zip: bool,
    overwrite: bool,
    mirror: Path | None,
    hardware: HardwareSection | None,
    console: Console,
) -> list[Path]:
    """Write the submission files of a GLUE run, or of each run in a suite's folder, to the folder `output`.

    Args:
        as_zip: also write all files to the archive `<output>/submission.zip`.
        overwrite: replace existing files.

    Returns:
        The written files.

    Raises:
        UsageError: if no run has a GLUE task, two runs have the same task, or a file exists.
        DataError: if a test split cannot be read.
    """
    output.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for model in _models_in(name):
        loaded = load_for_inference(ModelSource(model, mirror), hardware)
        if loaded.recipe is None or loaded.task.submission is None:
            console.warn(f"{model}: skipped, since GLUE has no submission file for task {loaded.task.name}")
            continue
        for task in (loaded.task, *(get_task(extra) for extra in loaded.task.submission.extra_tasks)):
            assert task.submission is not None
            for split, file in task.submission.files.items():
                path = output / f"{file}.tsv"
                if path in written:
                    raise UsageError(f"found several runs of {task.name} in {name}; specify one of them")
                with new_file(path, overwrite=overwrite) as tmp:
                    _write_glue_file(loaded, task, split, path.name, tmp, mirror, console)
                console.say(f"{model} → {path}")
                written.append(path)
    if not written:
        raise UsageError(f"found no run of a GLUE task in {name}; pass such a run, or a folder of such runs")
    if as_zip:
        written.append(_write_zip(written, output, console, overwrite=overwrite))
    return written


def _write_zip(files: list[Path], output: Path, console: Console, *, overwrite: bool) -> Path:
    """Write the archive, and warn if it lacks any files that the leaderboard requires."""
    submissions = [task.submission for task in TASKS.values() if task.submission is not None]
    required = [f"{file}.tsv" for submission in submissions for file in submission.files.values()]
    missing = [file for file in required if output / file not in files]
    if missing:
        console.warn(f"the leaderboard also requires: {', '.join(missing)}")
    path = output / "submission.zip"
    with new_file(path, overwrite=overwrite) as tmp, zipfile.ZipFile(tmp, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
    return path


def write_squad_files(
    loaded: LoadedModel,
    task: Task,
    rows: Iterator[Row],
    output: Path,
    console: Console,
    source: str = "the input",
    *,
    overwrite: bool,
) -> int:
    """Write `predictions.json`, `nbest_predictions.json` and, if questions may be unanswerable, `null_odds.json`.

    Args:
        source: where the rows were read from, for error messages.

    Returns:
        The number of questions.

    Raises:
        UsageError: if the model is not a question-answering model, or a file exists.
        DataError: if an id is not a text or a number, two questions have the same id, or only some have one.
    """
    head = loaded.head
    if not isinstance(head, QuestionAnswering):
        raise UsageError(f"{loaded.name} predicts {head.answer_kind}; --format squad requires question_answering")
    output.mkdir(parents=True, exist_ok=True)
    names = [*SQUAD_FILES, *([NULL_ODDS_FILE] if task.unanswerable else [])]
    num_questions = 0
    with ExitStack() as stack:
        display = stack.enter_context(console.display("predictions"))
        paths = {name: stack.enter_context(new_file(output / f"{name}.json", overwrite=overwrite)) for name in names}
        files = {name: stack.enter_context(_JsonObjectWriter(path)) for name, path in paths.items()}
        answers = display.track(_span_predictions(loaded, head, task, rows, console, source))
        for key, answer in _with_question_ids(answers, task.id_column, source, console):
            num_questions += 1
            files["predictions"].write(key, answer.text)
            files["nbest_predictions"].write(key, _nbest(answer))
            if task.unanswerable:
                files[NULL_ODDS_FILE].write(key, answer.null_odds)
    return num_questions


def _with_question_ids(
    answers: Iterable[tuple[Row, SpanPrediction]], id_column: str | None, source: str, console: Console
) -> Iterator[tuple[str, SpanPrediction]]:
    """Yield each answer with the id of its question: its number from 0 if the rows do not have the column of the id."""
    row_of_id: dict[str, int] = {}
    column, has_ids = id_column or "", False
    for number, (row, answer) in enumerate(answers, start=1):
        if number == 1:
            has_ids = column in row
            if column and not has_ids:
                console.warn(
                    f"{source} has no column {quoted(column)} (task.id_column), so its questions are numbered from 0"
                )
        elif (column in row) != has_ids:
            having, lacking = (1, number) if has_ids else (number, 1)
            raise DataError(
                f"{source}: question {having} has an id in column {quoted(column)}, but question {lacking} does not; "
                "set the ids of all questions, or of none"
            )
        key = _question_id(row[column] if has_ids else number - 1, f"{source}: question {number}")
        if key in row_of_id:
            raise DataError(
                f"{source}: questions {row_of_id[key]} and {number} have the same id {key[:80]!r}, by which "
                "--format squad stores predictions; make the ids distinct, or use --format jsonl"
            )
        row_of_id[key] = number
        yield key, answer


def _question_id(value: Any, question: str) -> str:
    if not isinstance(value, str | int | float) or isinstance(value, bool) or value != value:  # the last: NaN
        raise DataError(
            f"{question} has the id {json.dumps(value, default=str)[:80]}, expected a text or a number; set one"
        )
    return str(value)


class _JsonObjectWriter:
    """A JSON file whose object is written one entry at a time, so that it need not fit in memory."""

    def __init__(self, path: Path):
        self._path, self._is_empty = path, True
        self._file: IO[str]

    def __enter__(self) -> _JsonObjectWriter:
        self._file = self._path.open("w", encoding="utf-8", newline="")
        self._file.write("{")
        return self

    def write(self, key: str, value: Any) -> None:
        """Add an entry."""
        comma = "" if self._is_empty else ","
        self._file.write(f"{comma}\n{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}")
        self._is_empty = False

    def __exit__(self, exception_type: object, *_: object) -> None:
        if exception_type is None:
            self._file.write("\n}\n")
        self._file.close()


def _span_predictions(
    loaded: LoadedModel, head: QuestionAnswering, task: Task, inputs: Iterator[Row], console: Console, source: str
) -> Iterator[tuple[Row, SpanPrediction]]:
    for part_inputs, rows, encoded, logits in predict_inputs(loaded, task, inputs, console, source):
        yield from zip(part_inputs, head.decode(task, rows, encoded, logits), strict=True)


def _nbest(answer: SpanPrediction) -> list[dict[str, Any]]:
    return [
        {
            "text": candidate.text,
            "probability": candidate.probability,
            "start_logit": candidate.start_logit,
            "end_logit": candidate.end_logit,
        }
        for candidate in answer.candidates
    ]


def _models_in(name: str) -> list[str]:
    """Return the models of a run, or of each run in a suite's folder.

    A grid is represented by its best point, and several seeds by the best one. Multitask runs have one model per task.
    """
    members = [name] if _is_run(name) else [str(path) for path in sorted(Path(name).glob("*/")) if _is_run(str(path))]
    runs = [best_seed(member) for member in members or [name]]
    return [model for run in runs for model in multitask_models(run).values() or [run]]


def _is_run(name: str) -> bool:
    return RunFolder(Path(chosen_run(name))).recipe.is_file()


def _write_glue_file(
    loaded: LoadedModel, task: Task, split: str, name: str, path: Path, mirror: Path | None, console: Console
) -> None:
    """Write the predictions for a split to `path`, a temporary file that will be renamed to `name`."""
    try:
        rows = load_split(task, split, mirror).select_columns(list(task.columns))
    except BertcliError as error:
        raise DataError(f"cannot write {name}, which needs the test rows of {task.name}: {error}") from error
    parts = predict_inputs(loaded, task, iter(rows), console)
    predictions = (
        prediction
        for _, part_rows, encoded, logits in parts
        for prediction in loaded.head.to_predictions(task, part_rows, encoded, logits)
    )
    with path.open("w", encoding="utf-8", newline="") as file, console.display(name, len(rows)) as display:
        file.write("index\tprediction\n")
        for index, prediction in enumerate(display.track(predictions)):
            file.write(f"{index}\t{_glue_value(loaded, task, prediction)}\n")


def _glue_value(loaded: LoadedModel, task: Task, prediction: Any) -> str:
    """Format a prediction for the leaderboard: a number, a label name, or a label ID in GLUE's own label order."""
    assert task.submission is not None
    if task.problem == "regression":
        return f"{np.clip(prediction, *STSB_SCORE_RANGE):.3f}"
    label = loaded.head.labels[int(prediction)]
    return label if task.submission.answers == "names" else str(task.labels.index(label))
