"""Predictions written in parts, so that the same command resumes after it was stopped or killed.

The folder `out.csv.parts` has the finished parts of `out.csv` (`part-00000`, …), `PART_SIZE` rows each, and a manifest
that says which parts are finished, what they were computed with, and the hashes of their input rows and their content.
A part that was damaged since is predicted again. At the end, the parts are joined. Predictions that fit into one part
are written directly.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from bertcli.data.formats import Row
from bertcli.errors import UsageError
from bertcli.files import MANIFEST, atomic_folder, file_lock, fsync, hash_files, new_file, temporary_path, write_json
from bertcli.inference import prediction_stream
from bertcli.inference.prediction_formats import Chunk, PredictionWriter

LOCK, UNFINISHED = "lock", "unfinished"  # files in the folder


@dataclass(frozen=True)
class Part:
    """What the manifest says about a finished part.

    Attributes:
        rows_hash: of the input rows up to the end of this part.
        file_hash: of the part's file.
        num_changed_cells: as in `PredictionWriter`, up to the end of this part.
    """

    rows_hash: str
    file_hash: str
    num_changed_cells: int


@dataclass(frozen=True)
class Progress:
    """The finished parts, in order.

    Attributes:
        columns: as in `PredictionWriter`.
    """

    parts: tuple[Part, ...] = ()
    columns: list[str] | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows in the finished parts."""
        return len(self.parts) * prediction_stream.PART_SIZE

    @property
    def num_changed_cells(self) -> int:
        """As in `PredictionWriter`."""
        return self.parts[-1].num_changed_cells if self.parts else 0


NO_PROGRESS = Progress()


class RowHasher:
    """Hashes rows as they are read; the hash is available at each end of a part."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        self._num_rows = 0
        self._hashes: dict[int, str] = {}

    def hashed(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Yield the rows unchanged."""
        for row in rows:
            self._digest.update(repr(row).encode())
            self._num_rows += 1
            if self._num_rows % prediction_stream.PART_SIZE == 0:
                self._hashes[self._num_rows] = self._digest.hexdigest()
            yield row

    def hash_of(self, num_rows: int) -> str | None:
        """Return the hash of the first rows, a number of full parts; None if fewer have been read."""
        return self._hashes.get(num_rows)


class PredictionParts:
    """The parts of an output file.

    Args:
        output: the output file; its parts are in the folder `<output>.parts`.
        options: computes, once it is needed, what else than the input rows the predictions depend on.
        overwrite: whether parts that were computed with other options may be replaced.

    Attributes:
        progress: what to resume from.
        damaged_part: the first finished part that is missing or was changed since, and is predicted again; None: none.

    Raises:
        UsageError: on construction, if there are such parts and `overwrite` is not set, or the folder is not bertcli's.
    """

    def __init__(self, output: Path, options: Callable[[], dict[str, Any]], *, overwrite: bool):
        self.output = Path(os.path.realpath(output))  # replace the target of a symbolic link, not the link
        self.folder = self.output.with_name(f"{self.output.name}.parts")
        self.hasher = RowHasher()
        self._options, self._overwrite = options, overwrite
        self.damaged_part: Path | None = None
        self.progress = self._read_progress() if self.folder.exists() else NO_PROGRESS

    def _read_manifest(self) -> tuple[Progress, dict[str, Any]]:
        """Return the progress and the options of the existing parts."""
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text("utf-8"))
            parts = tuple(Part(**part) for part in manifest["parts"])
            return Progress(parts, manifest["columns"]), dict(manifest["options"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UsageError(
                f"{self.folder} has no readable manifest of bertcli; move it away, or choose another --output"
            ) from None

    def _read_progress(self) -> Progress:
        """Return the progress to resume from: none if existing parts are to be replaced."""
        progress, options = self._read_manifest()
        current = self._options()
        differing = [name for name in current if options.get(name) != current[name]]
        if differing and not self._overwrite:
            raise UsageError(
                f"{self.folder} has parts of a prediction with another {' and '.join(differing)}; re-run that command "
                "to finish it, choose another --output, or start again with --overwrite"
            )
        return NO_PROGRESS if differing else self._without_damaged_parts(progress)

    def _without_damaged_parts(self, progress: Progress) -> Progress:
        """Return the progress up to the first part whose file is missing or was changed."""
        for index, part in enumerate(progress.parts):
            path = self._part(index)
            if not path.is_file() or hash_files({"": path}) != part.file_hash:
                self.damaged_part = path
                return replace(progress, parts=progress.parts[:index]) if index else NO_PROGRESS
        return progress

    def skip_finished(self, read_rows: Callable[[], Iterator[Row]], *, can_reread: bool) -> Iterator[Row]:
        """Return the rows that follow the finished parts; all rows if these parts are to be replaced.

        Raises:
            UsageError: if the rows of the finished parts are not the same as before.
        """
        num_rows = self.progress.num_rows
        rows = self.hasher.hashed(read_rows())
        deque(islice(rows, num_rows), maxlen=0)
        if not num_rows or self.hasher.hash_of(num_rows) == self.progress.parts[-1].rows_hash:
            return rows
        if not self._overwrite or not can_reread:
            cure = "start again with --overwrite" if can_reread else f"remove {self.folder}"
            raise UsageError(
                f"{self.folder} has the predictions for {num_rows} rows, which are not the first rows of this input; "
                f"choose another --output, or {cure}"
            )
        self.progress, self.hasher = NO_PROGRESS, RowHasher()
        return self.hasher.hashed(read_rows())

    def write(self, chunks: Iterator[Chunk], writer: PredictionWriter) -> int:
        """Write the chunks after the finished parts, join all parts, and return the number of rows.

        Raises:
            UsageError: if the output exists and may not be replaced, or another process is writing its parts.
        """
        with new_file(self.output, overwrite=self._overwrite) as tmp, ExitStack() as stack:
            if not self.progress.parts:
                num_rows = writer.write_file(_next_part(chunks), tmp, 0)
                self._discard()  # not earlier: other processes read its manifest before they predict
                following = next(chunks, None)
                if following is None:
                    return num_rows
                self._create(tmp, writer)
                chunks = chain([following], chunks)
            self._check_unchanged()  # before the lock, too, which would create the folder
            stack.enter_context(self._lock())
            self._check_unchanged()
            num_rows = self._write_parts(chunks, writer)
            joined = self.folder / UNFINISHED
            num_parts = -(-num_rows // prediction_stream.PART_SIZE)
            writer.join([self._part(index) for index in range(num_parts)], joined)
            fsync(joined)
            joined.replace(tmp)
        self._discard()
        return num_rows

    def _write_parts(self, chunks: Iterator[Chunk], writer: PredictionWriter) -> int:
        num_rows = self.progress.num_rows
        for chunk in chunks:
            unfinished = self.folder / UNFINISHED
            num_rows += writer.write_file(_next_part(chain([chunk], chunks)), unfinished, num_rows)
            fsync(unfinished)
            part = self._part(len(self.progress.parts))
            unfinished.replace(part)
            if num_rows % prediction_stream.PART_SIZE == 0:  # otherwise it is the last part
                self._save_progress(self.folder, part, writer)
        return num_rows

    def _create(self, first_part: Path, writer: PredictionWriter) -> None:
        fsync(first_part)
        with atomic_folder(self.folder) as folder:
            part = folder / self._part(0).name
            first_part.replace(part)
            self._save_progress(folder, part, writer)

    def _save_progress(self, folder: Path, part: Path, writer: PredictionWriter) -> None:
        """Add a part to the manifest."""
        parts = self.progress.parts
        rows_hash = self.hasher.hash_of((len(parts) + 1) * prediction_stream.PART_SIZE)
        assert rows_hash is not None
        added = Part(rows_hash, hash_files({"": part}), writer.num_changed_cells)
        self.progress = Progress((*parts, added), writer.columns)
        write_json(folder / MANIFEST, {"options": self._options(), **asdict(self.progress)})

    def _part(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}"

    def _check_unchanged(self) -> None:
        """Check that the finished parts are still those from which this process resumed.

        Raises:
            UsageError: if another process has finished or replaced them.
        """
        num_parts = len(self.progress.parts)
        if not (self.folder / MANIFEST).is_file() or self._read_manifest()[0].parts[:num_parts] != self.progress.parts:
            raise UsageError(
                f"{self.folder} was changed by another process in the meantime; run the same command again"
            )

    def _lock(self) -> AbstractContextManager[None]:
        def refuse(owner: str) -> None:
            raise UsageError(f"{self.output} is being written by {owner}; wait for it, or choose another --output")

        return file_lock(self.folder / LOCK, refuse)

    def _discard(self) -> None:
        """Remove the folder, all at once."""
        if self.folder.exists():
            with self._lock():
                removed = temporary_path(self.folder)
                self.folder.rename(removed)
            shutil.rmtree(removed)


def _next_part(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Yield the chunks of one part."""
    num_rows = 0
    while num_rows < prediction_stream.PART_SIZE and (chunk := next(chunks, None)) is not None:
        num_rows += len(chunk)
        yield chunk
