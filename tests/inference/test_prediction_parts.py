"""Predictions that were killed at any moment and are started again end like undisturbed ones, row for row."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from accelerate import Accelerator

from bertcli.data.formats import Row
from bertcli.errors import DataError, UsageError
from bertcli.files import file_lock
from bertcli.inference import prediction_stream
from bertcli.inference.prediction_formats import ParquetWriter, PredictionWriter, TextWriter
from bertcli.inference.prediction_parts import PredictionParts
from bertcli.inference.prediction_stream import Prediction, RowWarning, predict_chunks

from ..conftest import QUIET

# Four parts, the last one shorter. Only the first row has all columns; CSV marks every seventh text.
ROWS: list[Row] = [
    {"n": n, "text": f"{'=' * (n % 7 == 0)}film {n}"} | ({"note": "x"} if n < 9 else {}) for n in range(38)
]
OPTIONS = {"model": "a", "--format": "x"}
NAMES = ["out.jsonl", "out.csv", "out.parquet"]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_stream, "PART_SIZE", 10)
    monkeypatch.setattr(prediction_stream, "CHUNK_SIZE", 4)


def write(
    name: str,
    rows: Sequence[Row] = ROWS,
    *,
    fail_at: int | None = None,
    overwrite: bool = False,
    can_reread: bool = True,
    **options: str,
) -> tuple[int, PredictionWriter]:
    """Write predictions for rows, or resume; return the number of rows that were predicted now, and the writer."""
    num_predicted = 0

    def predict_rows(rows: list[Row], first_row: int) -> tuple[list[Prediction], list[RowWarning]]:
        nonlocal num_predicted
        num_predicted += len(rows)
        if any(row["n"] == fail_at for row in rows):
            raise DataError("failed")
        return [{"label": f"label {row['n']}", "probabilities": {"a": row["n"] / 3}} for row in rows], []

    parts = PredictionParts(Path(name), lambda: OPTIONS | options, overwrite=overwrite)
    rest = parts.skip_finished(lambda: iter(rows), can_reread=can_reread)
    progress = parts.progress
    writer: PredictionWriter = ParquetWriter({})
    if not name.endswith("parquet"):
        writer = TextWriter(name.partition(".")[2], progress.columns, progress.num_changed_cells)
    accelerator = Accelerator(cpu=True)
    chunks = predict_chunks(predict_rows, rest, accelerator, QUIET, first_row=progress.num_rows)
    assert parts.write(chunks, writer) == len(rows)
    return num_predicted, writer


def in_process(function: Callable[[], object], kill_at: int) -> int:
    """Call a function in a process that kills itself before its file operation `kill_at`; return its exit status."""
    if (child := os.fork()) == 0:
        num_events = 0

        def on_event(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal num_events
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
                num_events += 1
                if num_events == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(on_event)
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]


def visible() -> set[str]:
    return {path.name for path in Path().iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("name", NAMES)
def test_killed_before_any_file_operation_and_resumed_equals_undisturbed(name: str) -> None:
    _, writer = write(name)
    expected, warning = Path(name).read_bytes(), writer.warning
    assert visible() == {name}
    if name == "out.parquet":
        file = pyarrow.parquet.ParquetFile(name)
        assert file.num_row_groups == 4
        assert file.read().column("n").to_pylist() == list(range(38))
    else:
        assert expected.decode().count("\n") == 38 + (name == "out.csv")
    Path(name).unlink()
    kill_at, num_resumed = 1, 0
    while status := in_process(lambda: write(name), kill_at):
        assert status == signal.SIGKILL
        if Path(name).exists():  # only the parts were not removed yet
            assert Path(name).read_bytes() == expected
            with pytest.raises(UsageError, match="already exists"):
                write(name)
        num_predicted, writer = write(name, overwrite=Path(name).exists())
        assert Path(name).read_bytes() == expected
        assert writer.warning == warning
        assert visible() == {name}
        num_resumed += num_predicted < len(ROWS)
        Path(name).unlink()
        kill_at += 3
    assert num_resumed > 5


def test_predictions_that_fit_into_a_part_leave_no_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("a folder was created"))
    for number in (0, 10):
        write("out.jsonl", ROWS[:number], overwrite=True)
        assert {path.name for path in Path().iterdir()} == {"out.jsonl"}
        assert Path("out.jsonl").read_text().count("\n") == number


def test_rows_after_the_finished_parts_may_change_but_not_before() -> None:
    """So an input can be corrected at the row where predicting failed."""
    with pytest.raises(DataError, match="failed"):
        write("out.jsonl", fail_at=25)
    assert visible() == {"out.jsonl.parts"}
    before = sorted(Path("out.jsonl.parts").iterdir())
    for changed in (ROWS[1:], ROWS[:15], [ROWS[0] | {"note": "y"}, *ROWS[1:]]):
        with pytest.raises(UsageError, match=r"has the predictions for 20 rows, which are not the first rows of this"):
            write("out.jsonl", changed)
        with pytest.raises(UsageError, match=r"choose another --output, or remove .*out\.jsonl\.parts$"):
            write("out.jsonl", changed, overwrite=True, can_reread=False)
    assert sorted(Path("out.jsonl.parts").iterdir()) == before
    rows = [*ROWS[:25], ROWS[25] | {"text": "corrected"}]
    assert write("out.jsonl", rows)[0] == 6
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line["n"] for line in lines] == list(range(26))
    assert lines[25]["text"] == "corrected"


def test_parts_of_other_rows_or_options_are_replaced_only_if_asked() -> None:
    for rows, options in ((ROWS[:30], {"model": "b"}), ([row | {"note": "y"} for row in ROWS], {})):
        with pytest.raises(DataError, match="failed"):
            write("out.csv", fail_at=25)
        if options:
            with pytest.raises(UsageError, match=r"has parts of a prediction with another model; re-run that command"):
                write("out.csv", rows, **options)
        assert write("out.csv", rows, overwrite=True, **options)[0] == len(rows)
        assert visible() == {"out.csv"}
        assert Path("out.csv").read_text().splitlines()[1].startswith(str(rows[0]["n"]))
        Path("out.csv").unlink()


def test_existing_output_is_replaced_only_when_all_parts_are_finished() -> None:
    Path("out.csv").write_text("old")
    with pytest.raises(DataError, match="failed"):
        write("out.csv", fail_at=25, overwrite=True)
    assert Path("out.csv").read_text() == "old"
    assert write("out.csv", overwrite=True)[0] == 18
    assert Path("out.csv").read_text().count("\n") == 39


def test_folder_that_is_not_bertclis_is_never_removed() -> None:
    Path("out.csv.parts").mkdir()
    Path("out.csv.parts/mine").touch()
    with pytest.raises(UsageError, match=r"out\.csv\.parts has no readable manifest of bertcli; move it away"):
        write("out.csv", overwrite=True)
    assert Path("out.csv.parts/mine").is_file()


def test_output_that_another_process_is_writing_is_refused() -> None:
    with pytest.raises(DataError, match="failed"):
        write("out.csv", fail_at=25)

    def write_again() -> None:
        with pytest.raises(UsageError, match=r"out\.csv is being written by process \d+ on .*; wait for it"):
            write("out.csv")

    with file_lock(Path("out.csv.parts/lock"), pytest.fail):
        assert in_process(write_again, 0) == 0
    assert write("out.csv")[0] == 18


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("part", "num_predicted"), [("part-00000", 38), ("part-00001", 28)])
@pytest.mark.parametrize("damage", ["removed", "truncated", "edited"])
def test_damaged_part_and_those_after_it_are_predicted_again(
    name: str, part: str, num_predicted: int, damage: str
) -> None:
    undisturbed = f"expected{Path(name).suffix}"
    write(undisturbed)
    with pytest.raises(DataError, match="failed"):
        write(name, fail_at=25)
    path = Path(f"{name}.parts", part)
    content = path.read_bytes()
    path.unlink()
    if damage != "removed":
        path.write_bytes(content[:-5] if damage == "truncated" else content.replace(b"film", b"filn"))
    assert write(name)[0] == num_predicted
    assert Path(name).read_bytes() == Path(undisturbed).read_bytes()


def test_parts_that_another_process_finishes_in_the_meantime_are_not_joined() -> None:
    with pytest.raises(DataError, match="failed"):
        write("out.csv", fail_at=25)
    late = PredictionParts(Path("out.csv"), lambda: OPTIONS, overwrite=True)
    write("out.csv")
    expected = Path("out.csv").read_bytes()
    with pytest.raises(
        UsageError, match=r"out\.csv\.parts was changed by another process in the meantime; run the same"
    ):
        late.write(iter([]), TextWriter("csv"))
    assert visible() == {"out.csv"}
    assert Path("out.csv").read_bytes() == expected
