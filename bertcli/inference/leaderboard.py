"""Answers in the files that leaderboards and official scorers take: GLUE's TSV files, SQuAD's JSON files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from bertcli.console import Console
from bertcli.data.formats import Row
from bertcli.data.sources import load_split
from bertcli.errors import BertcliError, DataError, UsageError
from bertcli.files import open_new
from bertcli.heads.question_answering import QuestionAnswering
from bertcli.heads.span_decoding import SpanAnswer
from bertcli.inference.loaded_model import Trained, answer_inputs, models_together, open_trained
from bertcli.recipe.schema import HardwareSection
from bertcli.runs.folder import RunFolder, best_seed, chosen_run
from bertcli.tasks import TASKS, task_named
from bertcli.tasks.task import Task

SIMILARITY_RANGE = (0.0, 5.0)  # of STS-B's scores


def write_glue(
    name: str, output: Path, *, as_zip: bool, mirror: Path | None, hardware: HardwareSection | None, console: Console
) -> list[Path]:
    """Write the leaderboard's files for a GLUE run, or for each of a suite's runs, into the folder `output`.

    Args:
        as_zip: also pack all files into `<output>/submission.zip`.

    Raises:
        UsageError: no run there is of a GLUE task, or a file exists.
        DataError: a test split cannot be read.
    """
    output.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for run in _models_in(name):
        trained = open_trained(run, mirror, hardware)
        if trained.recipe is None or trained.task.submission is None:
            console.warn(f"{run}: its task {trained.task.name} has no leaderboard file")
            continue
        for task in (trained.task, *(task_named(other) for other in trained.task.submission.also)):
            assert task.submission is not None
            for split, file in task.submission.files.items():
                path = output / f"{file}.tsv"
                if path in written:
                    raise UsageError(f"found several runs of {task.name} in {name}; name one of them")
                _write_glue_file(trained, task, split, path, mirror, console)
                console.say(f"{run} → {path}")
                written.append(path)
    if not written:
        raise UsageError(f"found no run of a GLUE task in {name}")
    if as_zip:
        missing = [file for file in _wanted_files() if output / f"{file}.tsv" not in written]
        if missing:
            console.warn(f"the leaderboard wants these files, too: {', '.join(f'{one}.tsv' for one in missing)}")
        packed = output / "submission.zip"
        open_new(packed).close()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bundle:
            for path in written:
                bundle.write(path, path.name)
        written.append(packed)
    return written


def write_squad(trained: Trained, task: Task, rows: Iterator[Row], output: Path, console: Console) -> int:
    """Write `predictions.json`, `nbest_predictions.json` and, for tasks with open questions, `null_odds.json`.

    Returns:
        the number of questions.

    Raises:
        UsageError: the model is of another kind, or a file exists.
    """
    if not isinstance(trained.head, QuestionAnswering):
        raise UsageError(f"{trained.name} answers no questions ({trained.head.answer_kind}), so it has no SQuAD files")
    output.mkdir(parents=True, exist_ok=True)
    names = ["predictions", "nbest_predictions", *(["null_odds"] if task.unanswerable else [])]
    count = 0
    with ExitStack() as stack:
        display = stack.enter_context(console.display("answers"))
        files = {name: stack.enter_context(_JsonObject(output / f"{name}.json")) for name in names}
        answers = display.counted(_span_answers(trained, trained.head, task, rows, console))
        for number, (row, one) in enumerate(answers):
            key = str(row.get(task.id_column or "", number))
            files["predictions"].write(key, one.text)
            files["nbest_predictions"].write(key, _nbest(one))
            if task.unanswerable:
                files["null_odds"].write(key, one.null_odds)
            count = number + 1
    return count


def _wanted_files() -> Iterator[str]:
    """The names of all files of a submission to GLUE."""
    for task in TASKS.values():
        if task.submission is not None:
            yield from task.submission.files.values()


class _JsonObject:
    """A JSON object written one entry at a time, so that it need not fit in memory."""

    def __init__(self, path: Path):
        self._path, self._first = path, True
        self._file: IO[str]

    def __enter__(self) -> _JsonObject:
        self._file = open_new(self._path)
        self._file.write("{")
        return self

    def write(self, key: str, value: Any) -> None:
        """Add an entry."""
        comma = "" if self._first else ","
        self._file.write(f"{comma}\n{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}")
        self._first = False

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:  # else the file is left visibly unfinished
            self._file.write("\n}\n")
        self._file.close()


def _span_answers(
    trained: Trained, head: QuestionAnswering, task: Task, inputs: Iterator[Row], console: Console
) -> Iterator[tuple[Row, SpanAnswer]]:
    for asked, rows, items, logits in answer_inputs(trained, task, inputs, console):
        yield from zip(asked, head.read(task, rows, items, logits), strict=True)


def _nbest(one: SpanAnswer) -> list[dict[str, Any]]:
    return [
        {
            "text": candidate.text,
            "probability": candidate.probability,
            "start_logit": candidate.start_logit,
            "end_logit": candidate.end_logit,
        }
        for candidate in one.candidates
    ]


def _models_in(name: str) -> list[str]:
    """The models of a run, or of each run in a suite's folder: of a grid the chosen one, of several seeds the best."""
    members = [name] if _is_run(name) else [str(path) for path in sorted(Path(name).glob("*/")) if _is_run(str(path))]
    runs = [best_seed(member) for member in members or [name]]
    return [model for run in runs for model in models_together(run).values() or [run]]


def _is_run(name: str) -> bool:
    return RunFolder(Path(chosen_run(name))).recipe.is_file()


def _write_glue_file(
    trained: Trained, task: Task, split: str, path: Path, mirror: Path | None, console: Console
) -> None:
    assert task.submission is not None
    try:
        rows = load_split(task, split, mirror).select_columns(list(task.columns))
    except BertcliError as error:
        raise DataError(f"{path.name} needs the test rows of {task.name}: {error}") from error
    parts = answer_inputs(trained, task, iter(rows), console)
    answers = (given for _, some, items, logits in parts for given in trained.head.decide(task, some, items, logits))
    with open_new(path) as file, console.display(path.name, len(rows)) as display:
        file.write("index\tprediction\n")
        for number, given in enumerate(display.counted(answers)):
            file.write(f"{number}\t{_glue_answer(trained, task, given)}\n")


def _glue_answer(trained: Trained, task: Task, given: Any) -> str:
    """An answer as the leaderboard wants it: a number, or a label by its name or by its place in GLUE's own order."""
    assert task.submission is not None
    if task.problem == "regression":
        return f"{np.clip(given, *SIMILARITY_RANGE):.3f}"
    label = trained.head.labels[int(given)]
    return label if task.submission.answers == "names" else str(task.labels.index(label))
