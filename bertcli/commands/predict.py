"""`bertcli predict`: predict labels, tags or answers for a stream of inputs; output keeps input order."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from bertcli.cluster.launch import world_size
from bertcli.console import Console, escape_control, ignore_broken_pipe, is_first_process
from bertcli.data.formats import Row
from bertcli.data.prediction_inputs import (
    DEFAULT_TEXT_COLUMNS,
    PredictionInput,
    load_inputs,
    read_inputs,
    with_input_columns,
)
from bertcli.data.sources import split_files
from bertcli.errors import DataError, UsageError
from bertcli.files import new_file
from bertcli.inference.embeddings import FeatureExtractor, write_features
from bertcli.inference.fill_mask import MaskFiller, has_masked_lm_head
from bertcli.inference.leaderboard import write_glue_files, write_squad_files
from bertcli.inference.loaded_model import (
    CHUNK_SIZE,
    DEFAULT_DATA,
    LoadedModel,
    finetuning_recipe,
    load_for_inference,
    predict_inputs,
)
from bertcli.inference.prediction_outputs import (
    STDOUT_NAMES,
    check_feature_output,
    check_not_input,
    check_outputs,
    resolve_format,
)
from bertcli.models.from_pretrained import ModelSource
from bertcli.recipe.load import recipe_task
from bertcli.recipe.schema import HardwareSection, Recipe
from bertcli.runs.folder import best_seed
from bertcli.tasks.task import HEADS, Task, load_class

INPUT_PREFIX = "input_"  # for a kept column whose name the prediction also has
TABLE_OPTIONS: dict[str, dict[str, Any]] = {
    "csv": {},
    "tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None},
}
SEPARATOR = re.compile(r"\r\n|[\t\r\n]")  # characters in a text that TSV cannot represent
NEGATIVE_NUMBER = re.compile(r"-(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)  # not a formula
CSV_CHANGES = (
    "an apostrophe precedes = + - @ at the start of a cell, except in negative numbers, and control characters are "
    "written as \\uXXXX"
)
TABLE_CHANGES = {"csv": CSV_CHANGES, "tsv": f"tabs and line breaks become spaces, {CSV_CHANGES}"}
STDIN = PredictionInput()

Prediction = dict[str, Any]


def predict(
    name: str,
    inputs: PredictionInput = STDIN,
    output: str = "-",
    format_name: str | None = None,
    *,
    overwrite: bool = False,
    as_zip: bool = False,
    top_k: int = 5,
    labels: Sequence[str] | None = None,
    mirror: Path | None = None,
    hardware: HardwareSection | None = None,
    console: Console | None = None,
) -> int:
    """Write a prediction for each input, in order, and return their number.

    Args:
        name: run folder (with several seeds: its best seed is used), model folder or Hub model ID.
        inputs: ignored for `glue`, which predicts the task's test rows.
        output: a new file, or `-` for standard output; for `glue` and `squad` a folder.
        format_name: one of `prediction_outputs.FORMATS`; None: from the suffix of `output`, else JSON Lines.
        overwrite: replace existing files.
        as_zip: for `glue`, also write the files as one zip archive.
        top_k: number of tokens to predict per mask, for models with a masked-language-modeling head.
        labels: new names for the model's labels, in the order of their IDs; None: the saved names.

    Returns:
        The number of predictions; for `glue`, the number of files.

    Raises:
        UsageError: if the format is unknown or contradicts the suffix, an option does not apply to the model, or the
            output file exists or is also the input.
        DataError: if the input cannot be read.
        ModelError: if the model cannot be loaded, or has no supported head.
    """
    console = console or Console()
    format_name = resolve_format(format_name, output)
    check_outputs(format_name, output, inputs.files, keep_columns=inputs.keep_columns, overwrite=overwrite)
    if format_name == "glue":
        files = write_glue_files(
            name, Path(output), as_zip=as_zip, overwrite=overwrite, mirror=mirror, hardware=hardware, console=console
        )
        return len(files)
    source = ModelSource(best_seed(name), mirror)
    if labels is None and has_masked_lm_head(source):
        _check_fill_mask_options(source.name, inputs, format_name)
        predictions = _fill_masks(MaskFiller(source, top_k, hardware), inputs)
        return _write_output(output, predictions, format_name, console, overwrite=overwrite)
    loaded = load_for_inference(source, hardware, labels)
    from_run = loaded.recipe is not None
    _check_split(source.name, loaded.task, inputs.split, output, format_name, from_run=from_run)
    task = with_input_columns(loaded.task, inputs, from_run=from_run)
    rows = load_inputs(task, inputs, loaded.head.default_columns, mirror, from_run=from_run)
    if format_name == "squad":
        where = inputs.split or inputs.path
        num_questions = write_squad_files(loaded, task, rows, Path(output), console, where, overwrite=overwrite)
        console.say(f"wrote {num_questions} predictions to {output}")
        return num_questions
    predictions = iter_predictions(loaded, task, rows, console, keep_columns=inputs.keep_columns)
    return _write_output(output, predictions, format_name, console, overwrite=overwrite)


def _check_split(
    name: str, task: Task, split: str | None, output: str, format_name: str | None, *, from_run: bool
) -> None:
    """Check that the split, if any, is one of a run's task, and that the output is not one of its files."""
    if split is None:
        return
    if not from_run:
        raise UsageError(f"--split requires a run folder, whose recipe names the dataset; {name} is not one")
    check_not_input(output, format_name, split_files(task, split))


def _check_fill_mask_options(name: str, inputs: PredictionInput, format_name: str) -> None:
    """Check that every option applies to masked language models.

    Raises:
        UsageError: if an option does not apply.
    """
    has_pairs = inputs.values is not None and any(len(values) != 1 for values in inputs.values)
    unsupported = {"--split": inputs.split is not None, "--format squad": format_name == "squad", "--pair": has_pairs}
    for option, is_set in unsupported.items():
        if is_set:
            raise UsageError(
                f"{name} is a masked language model, which fills masks in single texts; leave out {option}"
            )


def _fill_masks(filler: MaskFiller, inputs: PredictionInput) -> Iterator[tuple[Row, Prediction]]:
    column = (inputs.columns or DEFAULT_TEXT_COLUMNS)[0]
    if inputs.values is not None:
        return filler.fill(({column: values[0]} for values in inputs.values), column)
    kept = None if inputs.keep_columns else ()
    rows = read_inputs(
        inputs.path,
        inputs.resolved_format,
        [column],
        default_columns=DEFAULT_TEXT_COLUMNS if inputs.columns is None else (),
        extra_columns=kept,
        options=inputs.text_options,
    )
    return ((_rename_clashes(row, prediction), prediction) for row, prediction in filler.fill(rows, column))


def iter_predictions(
    loaded: LoadedModel, task: Task, inputs: Iterable[Row], console: Console, *, keep_columns: bool = False
) -> Iterator[tuple[Row, Prediction]]:
    """Yield the echoed columns and the prediction of each input; memory does not grow with the number of inputs.

    Args:
        keep_columns: echo all columns.
    """
    echo_columns = {*loaded.head.echo_columns(task), task.id_column}
    for part_inputs, rows, encoded, logits in predict_inputs(loaded, task, inputs, console):
        predictions = loaded.head.to_json(task, rows, encoded, logits)
        for row, prediction in zip(part_inputs, predictions, strict=True):
            if keep_columns:
                yield _rename_clashes(row, prediction), prediction
            else:
                yield {name: row[name] for name in row if name in echo_columns}, prediction


def _rename_clashes(row: Row, prediction: Prediction) -> Row:
    """Return the row, with `input_` before each name that the prediction also has, such as that of the gold label.

    Raises:
        DataError: if the row already has a column with the new name.
    """
    taken = {*prediction, *_table_row({}, prediction)}
    renamed = {f"{INPUT_PREFIX}{name}" if name in taken else name: value for name, value in row.items()}
    if len(renamed) < len(row) or taken & renamed.keys():
        names = {*row, *taken}
        clash = next(name for name in row if name in taken and f"{INPUT_PREFIX}{name}" in names)
        raise DataError(
            f"cannot keep the column {clash!r}: {INPUT_PREFIX + clash!r} already exists; rename one of them"
        )
    return renamed


def predict_features(
    name: str,
    inputs: PredictionInput,
    output: str,
    *,
    layers: list[int],
    pooling: str,
    overwrite: bool = False,
    mirror: Path | None = None,
    hardware: HardwareSection | None = None,
    console: Console | None = None,
) -> int:
    """Write an encoder's hidden states for each input, pooled or per token, and return the number of inputs.

    Args:
        name: as for `predict`; the model needs no head.
        output: a new `.parquet` or `.npy` file.
        layers: 0 is the embedding layer, 1 the first layer, -1 the last.
        pooling: `mean`, `cls`, or `tokens` for one vector per token.
        overwrite: replace an existing file.

    Raises:
        UsageError: if an option does not apply to the model or the output format, or the output file exists or is
            also the input.
        DataError: if the input cannot be read.
        ModelError: if the model cannot be loaded.
    """
    check_feature_output(Path(output), pooling, inputs.files, overwrite=overwrite)
    console, name = console or Console(), best_seed(name)
    recipe = finetuning_recipe(name)
    from_run = recipe is not None
    task = _feature_task(recipe)
    _check_split(name, task, inputs.split, output, None, from_run=from_run)
    task = with_input_columns(task, inputs, from_run=from_run)
    rows = load_inputs(task, inputs, DEFAULT_TEXT_COLUMNS, mirror, from_run=from_run)
    data = recipe.data if recipe else DEFAULT_DATA
    hardware = recipe.hardware.with_overrides(hardware) if recipe else hardware
    extractor = FeatureExtractor(ModelSource(name, mirror), layers, data, hardware)
    with console.display("inputs") as display:
        num_inputs = write_features(
            extractor, display.track(rows), task.columns, Path(output), pooling, overwrite=overwrite
        )
    console.say(f"wrote features of {num_inputs} inputs to {output}")
    return num_inputs


def _feature_task(recipe: Recipe | None) -> Task:
    """Return the task that names the text columns."""
    if recipe is not None:
        return recipe_task(recipe)
    return load_class(HEADS, "text_classification").default_task("text_classification")


def _write_output(
    output: str,
    predictions: Iterable[tuple[Row, Prediction]],
    format_name: str,
    console: Console,
    *,
    overwrite: bool,
) -> int:
    """Write the predictions to a file or standard output and return their number."""
    if not is_first_process():  # it computes its share of the predictions; the first process writes all
        return sum(1 for _ in predictions)
    to_stdout = output in STDOUT_NAMES
    # Predictions printed to a terminal already show progress.
    progress = Console(mute=True) if to_stdout and sys.stdout.isatty() else console
    num_predictions = 0  # if the reader closes the pipe early, the block below ends without a result
    with _open_output(output, overwrite=overwrite) as file, progress.display("predictions") as display:
        num_predictions = write_predictions(display.track(predictions), file, format_name, console.warn)
    if world_size() > 1:  # after such an end, the others still wait for this one's share
        deque(predictions, maxlen=0)
    if not to_stdout:
        console.say(f"wrote {num_predictions} predictions to {output}")
    return num_predictions


def write_predictions(
    predictions: Iterable[tuple[Row, Prediction]],
    file: IO[str],
    format_name: str,
    warn: Callable[[str], None] = warnings.warn,
) -> int:
    """Stream predictions to `file` as JSON Lines, or as a table with the columns of the first one.

    Args:
        warn: called with a message if a table cannot represent all texts unchanged.

    Raises:
        DataError: if the columns of a prediction differ from those of the first one, or a table would have none.
    """
    num_predictions = num_changed = 0
    table: Any = None
    stream = iter(predictions)
    if format_name != "jsonl":
        first = next(stream, None)
        if first is None:
            raise DataError(
                f"found no inputs, so the columns of the {format_name.upper()} table are unknown; add a row, or write "
                "JSON Lines (--format jsonl)"
            )
        names = list(_table_row(*first))
        table = csv.DictWriter(file, names, lineterminator="\n", **TABLE_OPTIONS[format_name])
        table.writerow({name: _escape_cell(name, format_name) for name in names})
        stream = chain([first], stream)
    for row, prediction in stream:
        num_predictions += 1
        if table is None:
            file.write(escape_control(_to_json(row | prediction)) + "\n")
        else:
            cells = _table_row(row, prediction)
            if new := cells.keys() - set(table.fieldnames):
                raise DataError(
                    f"row {num_predictions} has the column {min(new):.80}, which the first row does not have; "
                    "write JSON Lines (--format jsonl)"
                )
            escaped = {name: _escape_cell(value, format_name) for name, value in cells.items()}
            num_changed += sum(escaped[name] != value for name, value in cells.items() if isinstance(value, str))
            table.writerow(escaped)
        if num_predictions % CHUNK_SIZE == 0:  # a reader of the pipe may wait for complete chunks
            file.flush()
    file.flush()
    if num_changed:
        changes = f"cells that differ from the original text: {num_changed}; {TABLE_CHANGES[format_name]}"
        warn(f"{changes}; --format jsonl keeps all texts unchanged")
    return num_predictions


def _table_row(row: Row, prediction: Prediction) -> dict[str, Any]:
    """Flatten a row and its prediction for a table: lists are joined, each probability gets its own column."""
    cells: dict[str, Any] = {}
    row = {key: _to_json(value) if isinstance(value, dict) else value for key, value in row.items()}
    for key, value in (row | prediction).items():
        if isinstance(value, dict):
            cells |= {f"probability_{label}": probability for label, probability in value.items()}
        elif isinstance(value, list) and key == "probabilities":
            cells |= {f"probability_{index}": probability for index, probability in enumerate(value)}
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            cells[key] = _to_json(value)
        elif isinstance(value, list):
            cells[key] = (" " if key in ("words", "tags") else ",").join(map(str, value))
        else:
            cells[key] = value
    return cells


def _escape_cell(value: Any, format_name: str) -> Any:
    """Escape a text cell as `TABLE_CHANGES` says, against terminal control codes and spreadsheet formulas (OWASP)."""
    if not isinstance(value, str):
        return value
    text = escape_control(SEPARATOR.sub(" ", value) if format_name == "tsv" else value)
    is_formula = text.startswith(("=", "+", "-", "@", "\t")) and not NEGATIVE_NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text


def _to_json(value: Any) -> str:
    """Return the value as JSON, which has no NaN and no infinity: they become null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_without_non_finite(value), ensure_ascii=False)


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_non_finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_non_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _open_output(output: str, *, overwrite: bool) -> Iterator[IO[str]]:
    """Open a file, or standard output, where a closed pipe (`| head`) ends the command without an error."""
    if output in STDOUT_NAMES:
        with ignore_broken_pipe():
            yield sys.stdout
        return
    with new_file(Path(output), overwrite=overwrite) as tmp, tmp.open("w", encoding="utf-8", newline="") as file:
        yield file
