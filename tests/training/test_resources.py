"""A message about a failed write names what ran out: space, inodes, a quota, a file size limit or permissions."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertcli.errors import DiskError
from bertcli.recipe.load import load_recipe
from bertcli.training import resources
from bertcli.training.resources import check_disk, report_full_disk

CASES = [
    (errno.ENOSPC, 9, r"the disk of .* is full: the run needs up to 1\.5 MB in total, .* free\. .*free some space"),
    (errno.ENOSPC, 0, r"has no free inodes \(see `df -i`\), though .* are free\. .*delete some files"),
    (errno.EDQUOT, 9, r"your disk quota for .* is used up .*needs up to 1\.5 MB"),
    (errno.EFBIG, 9, r"a file in .* larger than the limit of .*raise the limit \(`ulimit -f unlimited`\)"),
    (errno.EROFS, 9, r"cannot be written any longer \(Read-only file system\)\. .*make it writable"),
    (errno.EACCES, 9, r"cannot be written any longer \(Permission denied\)"),
]


@pytest.mark.parametrize(("number", "num_inodes", "message"), CASES)
@pytest.mark.parametrize("library", ["python", "safetensors"])
def test_failed_write_names_what_ran_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, num_inodes: int, message: str, library: str
) -> None:
    monkeypatch.setattr(resources, "free_inodes", lambda path: num_inodes)
    text = os.strerror(number)
    error = OSError(number, text, str(tmp_path / "model" / "weights"))
    if library == "safetensors":
        error = RuntimeError(f"Error while serializing: I/O error: {text} (os error {number})")  # type: ignore[assignment]
    expected = pytest.raises(DiskError, match=f"{message}.* re-run the same command to resume")
    with expected, report_full_disk(tmp_path, 1_500_000):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/elsewhere/data.csv"),
        OSError(errno.ENOSPC, "No space left on device", "/elsewhere/cache"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
        RuntimeError("size mismatch"),
        OSError("no number"),
    ],
)
def test_other_errors_pass_unchanged(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, report_full_disk(tmp_path, 1):
        raise error
    assert caught.value is error


def test_run_with_too_few_inodes_or_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("sample/sentiment")
    check_disk(tmp_path / "run", recipe, 1000)
    monkeypatch.setattr(resources, "free_inodes", lambda path: 14)
    with pytest.raises(DiskError, match=r"has 14 free inodes \(see `df -i`\), but the run needs about 50"):
        check_disk(tmp_path / "run", recipe, 1000)
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda path: SimpleNamespace(total=9e6, free=4e6))
    with pytest.raises(DiskError, match=r"has 4 MB free, but the run needs up to 44 MB"):
        check_disk(tmp_path / "run", recipe, 1_000_000)
