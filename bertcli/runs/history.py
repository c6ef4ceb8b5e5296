"""Histories: append-only JSON Lines files, one record per line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bertcli.errors import RunFolderError
from bertcli.files import write_json_lines

SCORE_PREFIX = "eval/validation/"  # of the validation scores in the record of an evaluation


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append one record to the history `path`."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())  # later checkpoints rely on this line, even after a power failure


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read all records of a history; an incomplete last line is ignored, and a missing file has no records.

    Raises:
        RunFolderError: if another line is corrupt.
    """
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            records.append({**json.loads(line)})
        except (ValueError, TypeError) as error:
            raise RunFolderError(
                f"{path}:{number} is corrupt ({error}); fix that line, or train again with --overwrite"
            ) from error
    return records


def validation_scores(record: dict[str, Any]) -> dict[str, float]:
    """Return the validation scores of an evaluation by metric."""
    return {key.removeprefix(SCORE_PREFIX): value for key, value in record.items() if key.startswith(SCORE_PREFIX)}


def truncate_after(path: Path, step: int) -> None:
    """Drop the records after `step`, which a resumed run will write again."""
    kept = [record for record in read_records(path) if record["step"] <= step]
    if path.is_file():
        write_json_lines(path, kept)
