"""Predictions for a stream of rows, one chunk at a time, divided among the processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING

from accelerate.utils import gather_object

from bertcli.console import Console
from bertcli.data.encoding import RowWarning
from bertcli.data.formats import Row
from bertcli.inference.prediction_formats import Chunk, Prediction

if TYPE_CHECKING:
    from accelerate import Accelerator

CHUNK_SIZE = 1024  # rows of each process in memory
PART_SIZE = 10 * CHUNK_SIZE  # rows of a part of the output (`prediction_parts`); no chunk extends over two parts
FIRST_CHUNK_SIZE = 64

RowPredictor = Callable[[list[Row], int], tuple[list[Prediction], list[RowWarning]]]
"""Predicts rows, given the index of the first one, and warns about rows, numbered from 0 in the list."""


def predict_chunks(
    predict_rows: RowPredictor,
    rows: Iterator[Row],
    accelerator: Accelerator,
    console: Console,
    *,
    first_row: int = 0,
    is_stream: bool = False,
) -> Generator[Chunk]:
    """Yield the rows with their predictions in input order; memory does not grow with the number of rows.

    Every process reads all rows, predicts an equal share of each chunk, and receives the predictions of the others. If
    nobody reads the output any more, `throw` the BrokenPipeError into the generator of one process: all of them end.

    Args:
        rows: the rows from `first_row` on, the same in all processes.
        is_stream: start with small chunks: somebody may be waiting for the first predictions, or want no others.
    """
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    size = FIRST_CHUNK_SIZE if is_stream else CHUNK_SIZE
    while chunk := list(islice(rows, min(size * num_processes, PART_SIZE - first_row % PART_SIZE))):
        start, end = (len(chunk) * process // num_processes for process in (rank, rank + 1))
        share = predict_rows(chunk[start:end], first_row + start) if end > start else ([], [])
        shares = gather_object([(start, *share)])
        if None in shares:
            break
        for offset, _, warnings in shares:
            console.warn_about_rows(warnings, first_row=first_row + offset)
        try:
            yield list(zip(chunk, chain.from_iterable(predictions for _, predictions, _ in shares), strict=True))
        except BrokenPipeError:
            gather_object([None])
            break
        first_row += len(chunk)
        size = min(2 * size, CHUNK_SIZE)
    accelerator.wait_for_everyone()  # a process that exits before the others are done breaks their connections
