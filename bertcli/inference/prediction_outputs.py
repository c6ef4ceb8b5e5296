"""Output formats of `bertcli predict`, and checks of the output before a model is loaded. No heavy imports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bertcli.errors import UsageError, did_you_mean
from bertcli.files import check_output, is_device
from bertcli.runs.folder import check_not_run_output

FORMATS = ("jsonl", "csv", "tsv", "parquet", "glue", "squad")
FORMAT_OF_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
UNSUPPORTED_SUFFIX = re.compile(
    r"\.(arrow|avro|bz2|conll|feather|gz|html|np[yz]|ods|orc|pickle|pkl|xlsx?|xml|xz|ya?ml|zip|zst)"
)  # other names, such as `out` or `out.txt`, get JSON Lines
STDOUT_NAMES = ("-", "/dev/stdout", "/dev/fd/1")
SQUAD_FILES = ("predictions", "nbest_predictions")
NULL_ODDS_FILE = "null_odds"  # for SQuAD 2.0
POOLINGS = ("mean", "cls", "tokens")
FEATURE_SUFFIXES = (".parquet", ".npy")


def resolve_format(format_name: str | None, output: str) -> str:
    """Return the output format: the given one, or the one for the suffix of `output`.

    Raises:
        UsageError: if the format is unknown or contradicts the suffix.
    """
    if not output:
        raise UsageError("--output is empty, expected the name of a file, or - for standard output")
    suffix = Path(output).suffix.lower()
    if format_name is None:
        if UNSUPPORTED_SUFFIX.fullmatch(suffix):
            raise UsageError(f"found --output {output}, expected a name that ends in .jsonl, .csv, .tsv or .parquet")
        return FORMAT_OF_SUFFIX.get(suffix, "jsonl")
    if format_name not in FORMATS:
        hint = did_you_mean(format_name, FORMATS)
        raise UsageError(f"found format {format_name!r}, expected one of {', '.join(FORMATS)}.{hint}")
    if format_name in ("glue", "squad"):
        if output in STDOUT_NAMES:
            raise UsageError(f"--format {format_name} writes several files; set --output to a folder for them")
    elif format_name == "parquet" and output in STDOUT_NAMES:
        raise UsageError("--format parquet cannot be written to standard output; set --output to a file")
    elif UNSUPPORTED_SUFFIX.fullmatch(suffix) or FORMAT_OF_SUFFIX.get(suffix, format_name) != format_name:
        raise UsageError(f"found --format {format_name} for {output}; leave out --format, or choose another suffix")
    return format_name


def check_not_input(output: str, format_name: str | None, inputs: Sequence[str]) -> None:
    """Check that predictions or features do not replace a file that they are computed from, by any of its paths.

    Args:
        format_name: one of `FORMATS`; None for features.
        inputs: the paths of the files; `-` is standard input.

    Raises:
        UsageError: if an output file is the same as an input file.
    """
    if output in STDOUT_NAMES:
        return
    names = (*SQUAD_FILES, NULL_ODDS_FILE) if format_name == "squad" else ()
    files = [Path(output, f"{name}.json") for name in names] or [Path(output)]
    for path in inputs:
        with suppress(OSError):  # a missing file is reported when it is read
            same = [file for file in files if file.is_file() and file.samefile("/dev/stdin" if path == "-" else path)]
            if same:
                raise UsageError(f"{same[0]} is also an input file, which would be lost; choose another --output")


def check_outputs(format_name: str, output: str, inputs: Sequence[str], *, keep_columns: bool, overwrite: bool) -> None:
    """Check that the output can be written, before the model is loaded.

    Args:
        inputs: as for `check_not_input`.

    Raises:
        UsageError: if the output exists, cannot be created or is also the input, or an option has no effect on the
            format.
    """
    check_not_input(output, format_name, inputs)
    if format_name not in ("glue", "squad"):
        if output not in STDOUT_NAMES:
            check_not_run_output(Path(output))
            check_output(Path(output), overwrite=overwrite)
            if format_name == "parquet" and is_device(Path(output)):
                raise UsageError(f"{output} is a pipe or a device, expected a file for --format parquet")
        return
    if keep_columns:
        raise UsageError(
            f"--keep-columns has no effect on --format {format_name}, whose content is fixed; leave it out"
        )
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{output} is a file, expected a folder for the files of --format {format_name}")
    existing = [folder / f"{name}.json" for name in SQUAD_FILES] if format_name == "squad" and folder.is_dir() else []
    for file in existing:
        check_not_run_output(file)
        check_output(file, overwrite=overwrite)


def check_feature_output(output: Path, pooling: str, inputs: Sequence[str] = (), *, overwrite: bool) -> None:
    """Check that features with this pooling can be written to this file.

    Args:
        inputs: as for `check_not_input`.

    Raises:
        UsageError: if the pooling or suffix is unknown, `.npy` cannot store the features, or the file exists, cannot be
            created or is also the input.
    """
    check_not_input(str(output), None, inputs)
    if pooling not in POOLINGS:
        raise UsageError(
            f"found pooling {pooling!r}, expected one of {', '.join(POOLINGS)}.{did_you_mean(pooling, POOLINGS)}"
        )
    if output.suffix not in FEATURE_SUFFIXES:
        raise UsageError(f"found --output {output}, expected a file name that ends in {' or '.join(FEATURE_SUFFIXES)}")
    if output.suffix == ".npy" and pooling == "tokens":
        raise UsageError(".npy cannot store token features of texts of different lengths; use a .parquet file")
    check_not_run_output(output)
    check_output(output, overwrite=overwrite)
