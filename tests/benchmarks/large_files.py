"""Rows per second of `bertcli predict` from a large Parquet file to another, in one process and in two."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import transformers
from transformers import PreTrainedTokenizerBase

from bertcli.models.from_pretrained import save_model
from tests.benchmarks.finetuning import sst2_lengths
from tests.benchmarks.measure import Contender, compare, run_in_process

NUM_ROWS = 200_000
HIDDEN_SIZE, NUM_LAYERS = 64, 2  # so small that everything but the forward pass counts, too


def bench(tokenizer: PreTrainedTokenizerBase, rounds: int) -> None:
    """Sentences with SST-2's lengths, with all columns of the input and including the start of the processes."""
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(words, size=length - 2)) for length in sst2_lengths(20_000)]
    with tempfile.TemporaryDirectory() as folder:
        table = pyarrow.table({"id": range(NUM_ROWS), "text": [texts[row % len(texts)] for row in range(NUM_ROWS)]})
        pyarrow.parquet.write_table(table, Path(folder, "in.parquet"))
        run_in_process(lambda: _save_model(tokenizer, Path(folder, "model")))
        contenders = [Contender(f"--processes {number}", _predict(folder, number)) for number in (1, 2)]
        compare("prediction, Parquet to Parquet, a tiny model", "rows/s", contenders, rounds)


def _save_model(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=2,
        intermediate_size=4 * HIDDEN_SIZE,
    )
    save_model(transformers.BertForSequenceClassification(config), tokenizer, folder)


def _predict(folder: str, num_processes: int) -> Callable[[], float]:
    def measure() -> float:
        names = ("model", "--input", "in.parquet", "--output", "out.parquet", "--overwrite", "--keep-columns")
        command = [sys.executable, "-m", "bertcli", "predict", *names, "--device", "cpu", "--quiet"]
        start = time.perf_counter()
        subprocess.run([*command, "--processes", str(num_processes)], cwd=folder, check=True)
        assert pyarrow.parquet.read_metadata(Path(folder, "out.parquet")).num_rows == NUM_ROWS
        return NUM_ROWS / (time.perf_counter() - start)

    return measure
