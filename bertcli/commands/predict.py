"""`bertcli predict`: answers for texts as they come, in their order, a chunk at a time."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bertcli.commands.trained import Trained, open_trained, seed_runs
from bertcli.data.encoding import encode_texts
from bertcli.data.inputs import USUAL_COLUMNS, Texts, guess_format, in_chunks, read_inputs
from bertcli.errors import UsageError, did_you_mean
from bertcli.recipe.schema import HardwareSection
from bertcli.runs.console import Console
from bertcli.training.devices import width_multiple
from bertcli.training.evaluation import compute_logits

FORMATS = ("jsonl", "csv", "tsv")
ROWS_AT_ONCE = 1024

Answer = dict[str, Any]


def predict(
    name: str,
    texts: Iterable[Texts] | None = None,
    output: str = "-",
    format_name: str = "jsonl",
    *,
    input_path: str = "-",
    input_format: str | None = None,
    columns: Sequence[str] | None = None,
    mirror: Path | None = None,
    hardware: HardwareSection | None = None,
    console: Console | None = None,
) -> int:
    """Write an answer for each input, in order; return their number.

    Args:
        name: run folder (of several seeds: the best by its own choice), model folder or hub name.
        texts: the inputs themselves; None: they are read from `input_path`, a file or `-` for standard input.
        output: a new file, or `-` for standard output.
        format_name: format of the answers, one of `FORMATS`.
        input_format: format of the input; None: as its ending says, plain lines on standard input.
        columns: names of the text columns; None: the task's, or `text`.

    Raises:
        UsageError: an unknown format, or the output file exists.
        DataError: the input cannot be read.
    """
    console = console or Console()
    if format_name not in FORMATS:
        cure = did_you_mean(format_name, FORMATS)
        raise UsageError(f"found format {format_name!r}, expected one of {', '.join(FORMATS)}.{cure}")
    trained = open_trained(_best_seed(name), mirror, hardware)
    columns = tuple(columns or (trained.task.text_columns if trained.task else USUAL_COLUMNS[:1]))
    if texts is None:
        texts = read_inputs(input_path, input_format or guess_format(input_path), columns)
    count = 0
    with _opened(output) as file:
        count = _write(predictions(trained, texts), columns, trained, file, format_name)
    if output != "-":
        console.say(f"{count} answers in {output}")
    return count


def predictions(trained: Trained, inputs: Iterable[Texts]) -> Iterator[tuple[Texts, Answer]]:
    """Each input with its answer; memory does not grow with the number of inputs."""
    for chunk in in_chunks(inputs, ROWS_AT_ONCE):
        pairs = [texts[1] for texts in chunk] if len(chunk[0]) == 2 else None
        encoded = encode_texts(trained.tokenizer, [texts[0] for texts in chunk], pairs, trained.max_length)
        logits = compute_logits(
            trained.accelerator,
            trained.model,
            encoded,
            max_tokens=trained.max_tokens,
            multiple_of=width_multiple(trained.accelerator),
        )
        yield from zip(chunk, trained.head.decode(logits), strict=True)


def _best_seed(name: str) -> str:
    runs = seed_runs(name)
    if len(runs) == 1:
        return runs[0]
    files = {run: Path(run) / "results.json" for run in runs}
    finished = {run: json.loads(file.read_text("utf-8")) for run, file in files.items() if file.is_file()}
    if not finished:
        raise UsageError(f"no run under {name} is finished yet; run the same `bertcli finetune` again, or name one")
    return max(finished, key=lambda run: finished[run]["metrics"]["validation"][finished[run]["best_by"]])


def _write(
    answers: Iterable[tuple[Texts, Answer]], columns: Sequence[str], trained: Trained, file: IO[str], format_name: str
) -> int:
    count = 0
    table: Any = None
    if format_name != "jsonl":
        names = [*columns, *_answer_columns(trained)]
        dialect = "excel" if format_name == "csv" else "excel-tab"
        table = csv.DictWriter(file, names, dialect=dialect, lineterminator="\n")
        table.writeheader()
    for count, (texts, answer) in enumerate(answers, start=1):
        row = dict(zip(columns, texts, strict=False))
        if table is None:
            file.write(json.dumps(row | answer, ensure_ascii=False) + "\n")
        else:
            table.writerow(row | _flat(answer))
        if count % ROWS_AT_ONCE == 0:
            file.flush()
    file.flush()
    return count


def _answer_columns(trained: Trained) -> list[str]:
    if trained.head.problem == "regression":
        return ["score"]
    first = "label" if trained.head.problem == "single_label" else "labels"
    return [first, *(f"probability_{label}" for label in trained.head.labels)]


def _flat(answer: Answer) -> dict[str, Any]:
    probabilities = answer.get("probabilities", {})
    row = {key: value for key, value in answer.items() if key != "probabilities"}
    if "labels" in row:
        row["labels"] = ",".join(row["labels"])
    return row | {f"probability_{label}": value for label, value in probabilities.items()}


@contextmanager
def _opened(output: str) -> Iterator[IO[str]]:
    """The output as a text file; a reader that goes away (`| head`) ends the work quietly."""
    if output != "-":
        try:
            file = open(output, "x", encoding="utf-8", newline="")  # noqa: SIM115 - closed below
        except FileExistsError as error:
            raise UsageError(f"{output} exists already; name another --output or remove it") from error
        except OSError as error:
            raise UsageError(f"cannot write {output}: {error.strerror}") from error
        with file:
            yield file
        return
    try:
        yield sys.stdout
    except BrokenPipeError:
        # Python flushes stdout once more at its end: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
