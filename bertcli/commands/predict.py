"""`bertcli predict`: answers for inputs as they come, in their order, a chunk at a time."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from bertcli.console import Console, harmless, reader_may_leave
from bertcli.data.formats import Row
from bertcli.data.prediction_inputs import USUAL_COLUMNS, fitted, guess_format, inputs_of, read_inputs, with_columns
from bertcli.errors import UsageError, did_you_mean
from bertcli.files import open_new
from bertcli.inference.embeddings import Extractor, write_features
from bertcli.inference.fill_mask import MaskFiller, fills_masks
from bertcli.inference.leaderboard import write_glue, write_squad
from bertcli.inference.loaded_model import (
    DATA_OF_BARE_MODELS,
    ROWS_AT_ONCE,
    Trained,
    answer_inputs,
    open_trained,
    run_recipe,
    usual_task,
)
from bertcli.recipe.load import recipe_task
from bertcli.recipe.schema import HardwareSection
from bertcli.runs.folder import best_seed
from bertcli.tasks.task import Task

FORMATS = ("jsonl", "csv", "tsv", "glue", "squad")

Answer = dict[str, Any]


def predict(
    name: str,
    values: Iterable[Sequence[str]] | None = None,
    output: str = "-",
    format_name: str = "jsonl",
    *,
    input_path: str = "-",
    input_format: str | None = None,
    split: str | None = None,
    as_zip: bool = False,
    top_k: int = 5,
    columns: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    mirror: Path | None = None,
    hardware: HardwareSection | None = None,
    console: Console | None = None,
) -> int:
    """Write an answer for each input, in order; return their number.

    Args:
        name: run folder (of several seeds: the best by its own choice), model folder or hub name.
        values: the inputs themselves, the values of a row's columns in their order; None: they are read.
        output: a new file, or `-` for standard output; for `glue` and `squad` a folder.
        format_name: format of the answers, one of `FORMATS`.
        as_zip: for `glue`, also pack the files into one.
        top_k: how many tokens to list for a mask, if the model is one that fills them.
        input_path: the file to read, or `-` for standard input.
        input_format: its format; None: as its ending says, plain lines on standard input.
        split: answer this split of the model's task instead.
        columns: names of the input's columns; None: the task's.
        labels: names for the model's labels, in the order of their numbers; None: its own.

    Raises:
        UsageError: an unknown format, or the output file exists.
        DataError: the input cannot be read.
    """
    console = console or Console()
    _check_format(format_name, output)
    if format_name == "glue":
        return len(write_glue(name, Path(output), as_zip=as_zip, mirror=mirror, hardware=hardware, console=console))
    name = best_seed(name)
    kind = input_format or guess_format(input_path)
    if labels is None and fills_masks(name, mirror):
        _check_for_masks(name, values, split, format_name)
        answers = _filled(MaskFiller(name, top_k, mirror, hardware), values, input_path, kind, columns)
        return _write_to(output, answers, format_name, console)
    trained = open_trained(name, mirror, hardware, labels)
    is_known, usual = trained.recipe is not None, trained.head.usual_columns
    _check_split(name, split, is_known=is_known)
    task = with_columns(trained.task, columns, is_known=is_known)
    if not is_known:
        task, values = fitted(task, values)
    is_open = not is_known and columns is None
    rows = inputs_of(task, values, input_path, kind, usual, split, mirror, refuses_pairs=is_open)
    if format_name == "squad":
        count = write_squad(trained, task, iter(rows), Path(output), console)
        console.say(f"{count} answers in {output}")
        return count
    return _write_to(output, predictions(trained, task, rows, console), format_name, console)


def _check_format(format_name: str, output: str) -> None:
    if format_name not in FORMATS:
        cure = did_you_mean(format_name, FORMATS)
        raise UsageError(f"found format {format_name!r}, expected one of {', '.join(FORMATS)}.{cure}")
    if format_name in ("glue", "squad") and output == "-":
        raise UsageError(f"--format {format_name} writes several files; name a folder for them with --output")


def _check_split(name: str, split: str | None, *, is_known: bool) -> None:
    if split is not None and not is_known:
        raise UsageError(f"{name} is not a run folder, so it does not say which data --split means")


def _check_for_masks(name: str, values: Iterable[Sequence[str]] | None, split: str | None, format_name: str) -> None:
    """Refuse what a model that fills masks has no use for.

    Raises:
        UsageError: with what it was made for.
    """
    is_one_text = values is None or all(len(row) == 1 for row in values)
    refused = {"--split": split is not None, "--format squad": format_name == "squad", "--pair": not is_one_text}
    for option, is_given in refused.items():
        if is_given:
            raise UsageError(f"{name} fills the masks of single texts and has no use for {option}; leave it out")


def _filled(
    filler: MaskFiller,
    values: Iterable[Sequence[str]] | None,
    input_path: str,
    kind: str,
    columns: Sequence[str] | None,
) -> Iterator[tuple[Row, Answer]]:
    column = (columns or USUAL_COLUMNS)[0]
    texts = read_inputs(input_path, kind, [column]) if values is None else ({column: row[0]} for row in values)
    return filler.fill(texts, column)


def predictions(trained: Trained, task: Task, inputs: Iterable[Row], console: Console) -> Iterator[tuple[Row, Answer]]:
    """What is repeated of each input, with its answer; memory does not grow with the number of inputs."""
    kept = {*trained.head.echoed(task), task.id_column}
    for asked, rows, items, logits in answer_inputs(trained, task, inputs, console):
        for row, given in zip(asked, trained.head.decode(task, rows, items, logits), strict=True):
            yield {name: row[name] for name in row if name in kept}, given


def predict_features(
    name: str,
    values: Iterable[Sequence[str]] | None,
    output: str,
    *,
    layers: list[int],
    pooling: str,
    input_path: str = "-",
    input_format: str | None = None,
    split: str | None = None,
    columns: Sequence[str] | None = None,
    mirror: Path | None = None,
    hardware: HardwareSection | None = None,
    console: Console | None = None,
) -> int:
    """Write an encoder's vectors for each input; return their number. The arguments are those of `predict`.

    Args:
        name: also an encoder without a head.
        output: a new `.parquet` or `.npy` file.
        layers: 0 is the embeddings, 1 the first layer, -1 the last.
        pooling: `mean`, `cls`, or `tokens` for the vectors of all tokens.

    Raises:
        UsageError: what is asked for cannot be.
        DataError: the input cannot be read.
    """
    name = best_seed(name)
    recipe = run_recipe(name)
    _check_split(name, split, is_known=recipe is not None)
    task = recipe_task(recipe) if recipe else usual_task("text_classification")
    task = with_columns(task, columns, is_known=recipe is not None)
    if recipe is None:
        task, values = fitted(task, values)
    kind = input_format or guess_format(input_path)
    rows = inputs_of(
        task, values, input_path, kind, USUAL_COLUMNS, split, mirror, refuses_pairs=recipe is None and columns is None
    )
    data = recipe.data if recipe else DATA_OF_BARE_MODELS
    hardware = recipe.hardware.with_asked(hardware) if recipe else hardware
    extractor = Extractor(name, layers, data, mirror, hardware)
    console = console or Console()
    with console.display("inputs") as display:
        count = write_features(extractor, display.counted(rows), task.columns, Path(output), pooling)
    console.say(f"vectors of {count} inputs in {output}")
    return count


def _write_to(output: str, answers: Iterable[tuple[Row, Answer]], format_name: str, console: Console) -> int:
    """Write the answers to a new file or standard output; return their number."""
    if output == "-" and sys.stdout.isatty():  # the answers themselves show how far it is
        console = Console(mute=True)
    count = 0
    with _opened(output) as file, console.display("answers") as display:
        count = _write(display.counted(answers), file, format_name)
    if output != "-":
        console.say(f"{count} answers in {output}")
    return count


def _write(answers: Iterable[tuple[Row, Answer]], file: IO[str], format_name: str) -> int:
    """Write the answers as they come: JSON Lines, or a table whose columns are those of the first."""
    count = 0
    table: Any = None
    stream = iter(answers)
    if format_name != "jsonl":
        first = next(stream, None)
        if first is None:
            return 0
        dialect = "excel" if format_name == "csv" else "excel-tab"
        names = list(_flat(*first))
        table = csv.DictWriter(file, names, dialect=dialect, lineterminator="\n")
        table.writerow({name: _cell(name) for name in names})
        stream = chain([first], stream)
    for row, given in stream:
        count += 1
        if table is None:
            file.write(harmless(json.dumps(row | given, ensure_ascii=False)) + "\n")
        else:
            table.writerow({key: _cell(value) for key, value in _flat(row, given).items()})
        if count % ROWS_AT_ONCE == 0:  # who sends so many inputs may wait for their answers
            file.flush()
    file.flush()
    return count


def _flat(row: Row, given: Answer) -> dict[str, Any]:
    """A row and its answer as the cells of a table: lists joined, each probability a column."""
    cells: dict[str, Any] = {}
    for key, value in (row | given).items():
        if isinstance(value, dict):
            cells |= {f"probability_{label}": share for label, share in value.items()}
        elif isinstance(value, list) and key == "probabilities":
            cells |= {f"probability_{number}": share for number, share in enumerate(value)}
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            cells[key] = json.dumps(value, ensure_ascii=False)
        elif isinstance(value, list):
            cells[key] = (" " if key in ("words", "tags") else ",").join(map(str, value))
        else:
            cells[key] = value
    return cells


def _cell(value: Any) -> Any:
    """A cell that no terminal obeys and, by an apostrophe before it (OWASP), no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    text = harmless(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


@contextmanager
def _opened(output: str) -> Iterator[IO[str]]:
    """The output as a text file; a reader that goes away (`| head`) ends the work quietly."""
    if output != "-":
        with open_new(Path(output)) as file:
            yield file
        return
    with reader_may_leave():
        yield sys.stdout
