"""`bertcli predict`: predict labels, tags or answers for a stream of inputs; output keeps input order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import bertcli
from bertcli.console import Console, Display, ignore_broken_pipe, is_first_process
from bertcli.data.formats import Row
from bertcli.data.prediction_inputs import (
    DEFAULT_TEXT_COLUMNS,
    PredictionInput,
    load_inputs,
    parquet_types,
    read_inputs,
    with_input_columns,
)
from bertcli.data.sources import split_files
from bertcli.errors import DataError, UsageError
from bertcli.files import hash_files, is_device, new_file
from bertcli.inference import prediction_stream
from bertcli.inference.embeddings import FeatureExtractor, write_features
from bertcli.inference.fill_mask import MaskFiller, has_masked_lm_head
from bertcli.inference.leaderboard import write_glue_files, write_squad_files
from bertcli.inference.loaded_model import (
    DEFAULT_DATA,
    LoadedModel,
    finetuning_recipe,
    load_for_inference,
    predict_rows,
)
from bertcli.inference.prediction_formats import (
    INPUT_PREFIX,
    Chunk,
    ParquetWriter,
    Prediction,
    PredictionWriter,
    TextWriter,
    output_columns,
)
from bertcli.inference.prediction_outputs import (
    STDOUT_NAMES,
    check_feature_output,
    check_not_input,
    check_outputs,
    resolve_format,
)
from bertcli.inference.prediction_parts import PredictionParts, Progress
from bertcli.inference.prediction_stream import RowPredictor, predict_chunks
from bertcli.models.from_pretrained import ModelSource
from bertcli.recipe.load import recipe_task
from bertcli.recipe.schema import HardwareSection, Recipe
from bertcli.runs.folder import RunFolder
from bertcli.runs.members import best_seed
from bertcli.tasks.task import HEADS, Task, load_class

if TYPE_CHECKING:
    from accelerate import Accelerator

STDIN = PredictionInput()


@dataclass(frozen=True)
class _Predictor:
    """Rows, and how to predict them.

    Attributes:
        read_rows: starts reading the rows.
        echo_columns: columns to write beside the predictions; None: all.
    """

    read_rows: Callable[[], Iterator[Row]]
    predict_rows: RowPredictor
    echo_columns: set[str | None] | None
    accelerator: Accelerator


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
    given = {"--labels": labels, "--top-k": top_k, "--precision": hardware and hardware.precision}
    parts = _open_parts(source, output, format_name, inputs, given, overwrite=overwrite)
    if labels is None and has_masked_lm_head(source):
        _check_fill_mask_options(source.name, inputs, format_name)
        predictor = _mask_predictor(MaskFiller(source, top_k, hardware), inputs)
        return _write_output(predictor, output, format_name, inputs, parts, console)
    loaded = load_for_inference(source, hardware, labels)
    _check_split(source.name, loaded.task, inputs.split, output, format_name, from_run=loaded.recipe is not None)
    predictor, task = _head_predictor(loaded, inputs, mirror)
    if format_name != "squad":
        return _write_output(predictor, output, format_name, inputs, parts, console)
    where = inputs.split or inputs.path
    rows = predictor.read_rows()
    num_questions = write_squad_files(loaded, task, rows, Path(output), console, where, overwrite=overwrite)
    console.say(f"wrote {num_questions} predictions to {output}")
    return num_questions


def _head_predictor(loaded: LoadedModel, inputs: PredictionInput, mirror: Path | None) -> tuple[_Predictor, Task]:
    """Return a predictor for the model's head, and the task that names the columns of the inputs."""
    from_run = loaded.recipe is not None
    task = with_input_columns(loaded.task, inputs, from_run=from_run)
    predictor = _Predictor(
        partial(load_inputs, task, inputs, loaded.head.default_columns, mirror, from_run=from_run),
        lambda rows, first_row: predict_rows(loaded, task, rows, first_row, next(iter(inputs.files), None)),
        None if inputs.keep_columns else {*loaded.head.echo_columns(task), task.id_column},
        loaded.accelerator,
    )
    return predictor, task


def _open_parts(
    source: ModelSource,
    output: str,
    format_name: str,
    inputs: PredictionInput,
    given: dict[str, Any],
    *,
    overwrite: bool,
) -> PredictionParts | None:
    """Return the parts of an output file; None if the output is a folder, standard output, a pipe or a device.

    Args:
        given: other command-line options that the predictions depend on.
    """
    if format_name == "squad" or output in STDOUT_NAMES or is_device(Path(output)):
        return None

    @cache
    def options() -> dict[str, Any]:
        version = {"bertcli version": bertcli.__version__, "part size": prediction_stream.PART_SIZE}
        # Kept rows are the same whichever of their columns are the texts.
        columns = {"--columns": inputs.columns and list(inputs.columns), "--keep-columns": inputs.keep_columns}
        return {"model": _hash_model(source), "--format": format_name, **columns, **given, **version}

    return PredictionParts(Path(output), options, overwrite=overwrite)


def _hash_model(source: ModelSource) -> str:
    """Return a hash of what the predictions of a model depend on: its files, and the recipe of a run."""
    folder, recipe = Path(source.path), RunFolder(Path(source.name)).recipe
    if not folder.is_dir():
        return f"{source.name}@{source.config._commit_hash}"
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return hash_files(files | ({"recipe": recipe} if recipe.is_file() else {}))


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


def _mask_predictor(filler: MaskFiller, inputs: PredictionInput) -> _Predictor:
    column = (inputs.columns or DEFAULT_TEXT_COLUMNS)[0]

    def read_rows() -> Iterator[Row]:
        if inputs.values is not None:
            return ({column: values[0]} for values in inputs.values)
        return read_inputs(
            inputs.path,
            inputs.resolved_format,
            [column],
            default_columns=DEFAULT_TEXT_COLUMNS if inputs.columns is None else (),
            extra_columns=None if inputs.keep_columns else (),
            options=inputs.text_options,
        )

    return _Predictor(read_rows, partial(filler.predict_rows, column=column), None, filler.accelerator)


def _rename_clashes(row: Row, prediction: Prediction) -> Row:
    """Return the row, with `input_` before each name that the prediction also has, such as that of the gold label.

    Raises:
        DataError: if the row already has a column with the new name.
    """
    taken = output_columns(prediction)
    if taken.isdisjoint(row):
        return row
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
    predictor: _Predictor,
    output: str,
    format_name: str,
    inputs: PredictionInput,
    parts: PredictionParts | None,
    console: Console,
) -> int:
    """Write the predictions to a file or standard output and return their number.

    Args:
        parts: the parts of the file; None for standard output, a pipe or a device.
    """
    first_row = 0
    if parts is None:
        rows = predictor.read_rows()
    else:
        rows = parts.skip_finished(predictor.read_rows, can_reread="-" not in inputs.files)
        first_row = parts.progress.num_rows
        if parts.damaged_part is not None:
            console.warn(f"{parts.damaged_part} is damaged or missing; predicting from row {first_row + 1} on again")
        if first_row:
            console.say(f"resuming: {first_row} predictions are in {parts.folder}")
    chunks = predict_chunks(
        predictor.predict_rows, rows, predictor.accelerator, console, first_row=first_row, is_stream=parts is None
    )
    if not is_first_process():  # it computes its share of the predictions; the first process writes all
        return sum(map(len, chunks))
    to_stdout = output in STDOUT_NAMES
    # Predictions printed to a terminal already show progress.
    progress = Console(mute=True) if to_stdout and sys.stdout.isatty() else console
    with progress.display("predictions") as display:
        display.start_at(first_row)
        echoed = _echo(chunks, predictor.echo_columns, display)
        writer: PredictionWriter
        if parts is None:
            writer = TextWriter(format_name)
            num_predictions = _write_stream(chunks, echoed, writer, output)
        else:
            writer = _build_writer(format_name, inputs, parts.progress)
            num_predictions = parts.write(echoed, writer)
    if writer.warning:
        console.warn(writer.warning)
    if not to_stdout:
        console.say(f"wrote {num_predictions} predictions to {output}")
    return num_predictions


def _build_writer(format_name: str, inputs: PredictionInput, progress: Progress) -> PredictionWriter:
    if format_name != "parquet":
        return TextWriter(format_name, progress.columns, progress.num_changed_cells)
    return ParquetWriter(parquet_types(inputs.path) if inputs.files and inputs.resolved_format == "parquet" else {})


def _echo(chunks: Iterable[Chunk], columns: set[str | None] | None, display: Display) -> Iterator[Chunk]:
    """Reduce rows to the columns to write beside the predictions (None: all), renamed if a prediction has the name."""
    for chunk in chunks:
        display.advance(len(chunk))
        if columns is not None:
            chunk = [({name: row[name] for name in row if name in columns}, prediction) for row, prediction in chunk]
        yield [(_rename_clashes(row, prediction), prediction) for row, prediction in chunk]


def _write_stream(chunks: Generator[Chunk], echoed: Iterator[Chunk], writer: TextWriter, output: str) -> int:
    """Write to standard output, a pipe or a device; if the reader closes it (`| head`), end without an error."""
    with _open_stream(output) as file:
        try:
            return writer.write(echoed, file)
        except BrokenPipeError as error:
            with suppress(StopIteration, BrokenPipeError):
                chunks.throw(error)
            raise
    return 0


@contextmanager
def _open_stream(output: str) -> Iterator[IO[str]]:
    if output in STDOUT_NAMES:
        with ignore_broken_pipe():
            yield sys.stdout
    else:
        with new_file(Path(output)) as path, path.open("w", encoding="utf-8", newline="") as file:
            yield file
