"""Histories: JSON Lines files that only grow, one record a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bertcli.errors import RunFolderError
from bertcli.files import write_parts


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add one line to the history `path`."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())  # a checkpoint that counts on this line outlasts a loss of power, too


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a history; none if there is no such file. A last line that was cut off does not count.

    Raises:
        RunFolderError: another line is damaged.
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
                f"{path}:{number} is damaged ({error}); mend that line, or train anew with --overwrite"
            ) from error
    return records


def forget_after(path: Path, step: int) -> None:
    """Drop the records of steps after `step`: they will be made again by the resumed run."""
    kept = [record for record in read_records(path) if record["step"] <= step]
    if path.is_file():
        write_parts(path, (json.dumps(record) + "\n" for record in kept))


def is_better_lower(score: str) -> bool:
    """Whether less of a score is better."""
    return score.endswith(("loss", "perplexity"))
