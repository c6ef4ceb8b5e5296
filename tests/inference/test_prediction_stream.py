"""Chunks of a stream of rows: their sizes, memory, and what happens when nobody reads any more."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

import pytest
from accelerate import Accelerator

from bertcli.console import Console
from bertcli.data.formats import Row
from bertcli.inference import prediction_stream
from bertcli.inference.prediction_stream import CHUNK_SIZE, Prediction, RowWarning, predict_chunks

from ..conftest import QUIET


def predict_rows(rows: list[Row], first_row: int) -> tuple[list[Prediction], list[RowWarning]]:
    warnings = [(index, "odd") for index, row in enumerate(rows) if row["n"] == 70]
    return [{"row": first_row + index, "n": row["n"]} for index, row in enumerate(rows)], warnings


def endless(num_read: list[int], first: int = 0) -> Iterator[Row]:
    for number in count(first):
        num_read[0] = number + 1
        yield {"n": number}


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_one_chunk_of_rows_is_read_at_a_time(accelerator: Accelerator) -> None:
    num_read = [0]
    next(predict_chunks(predict_rows, endless(num_read), accelerator, QUIET))
    assert num_read == [CHUNK_SIZE]


def test_chunks_of_a_stream_start_small_and_keep_every_row_in_order(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prediction_stream, "PART_SIZE", 2000)
    num_read = [0]
    chunks = predict_chunks(predict_rows, endless(num_read), accelerator, Console(), is_stream=True)
    found = []
    for size in (64, 128, 256, 512, 1024, 16, 1024):  # 2000 rows are a part
        chunk = next(chunks)
        found += chunk
        assert len(chunk) == size
        assert num_read == [len(found)]
    assert found == [({"n": number}, {"row": number, "n": number}) for number in range(len(found))]
    assert "rows 71 (1): odd" in capsys.readouterr().err


def test_resumed_chunks_are_those_of_an_undisturbed_stream(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_stream, "PART_SIZE", 1500)
    full = predict_chunks(predict_rows, endless([0]), accelerator, QUIET)
    resumed = predict_chunks(predict_rows, endless([0], 1500), accelerator, QUIET, first_row=1500)
    assert list(islice(full, 2, 5)) == list(islice(resumed, 3))


def test_stream_ends_once_its_reader_is_gone(accelerator: Accelerator) -> None:
    num_read = [0]
    chunks = predict_chunks(predict_rows, endless(num_read), accelerator, QUIET)
    next(chunks)
    with pytest.raises(StopIteration):
        chunks.throw(BrokenPipeError())
    assert num_read == [CHUNK_SIZE]
