"""Prediction inputs: files with a column twice are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertcli.data.prediction_inputs import read_inputs
from bertcli.errors import DataError


@pytest.mark.parametrize("input_format", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("name", ["text", "meta"])
def test_input_column_that_is_there_twice_is_refused_with_its_name(
    tmp_path: Path, input_format: str, name: str
) -> None:
    import pyarrow
    from pyarrow import parquet

    path, names = tmp_path / "rows", ["text", "meta", name]
    if input_format == "parquet":
        parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names), path)
    else:
        separator = "," if input_format == "csv" else "\t"
        path.write_text(separator.join(names) + "\n" + separator.join("abc") + "\n")
    with pytest.raises(DataError, match=f"has the column '{name}' twice"):
        list(read_inputs(str(path), input_format, ["text"]))
