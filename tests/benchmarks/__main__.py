"""`python -m tests.benchmarks [--rounds N] [topic …]`: the program of `make bench`."""

from __future__ import annotations

import argparse
import os
import platform
import warnings
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers

from bertcli.cli.options import check_mirror
from bertcli.data.sample import sample_documents
from bertcli.models.tokenizer_training import train_tokenizer
from tests.benchmarks import (
    curves,
    encoders,
    finetuning,
    large_files,
    long_inputs,
    prediction,
    preparing,
    pretraining,
    scaling,
    search,
)
from tests.benchmarks.measure import ALL, run_in_process

TOPICS = (
    "finetuning",
    "pretraining",
    "prediction",
    "large_files",
    "preparing",
    "curves",
    "scaling",
    "encoders",
    "long_inputs",
)


def main() -> None:
    """Run the selected benchmarks; all by default."""
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("topics", nargs="*", choices=(*TOPICS, "search", ALL), default=ALL)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=20, help="of `search`, which is not run by default")
    arguments = parser.parse_args()
    if ALL in arguments.topics:
        arguments.topics = [*TOPICS]
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, "
          f"{torch.get_num_threads()} threads, {versions}")  # fmt: skip
    mirror = os.environ.get("BERTCLI_MIRROR")
    if "search" in arguments.topics:
        assert mirror, "set BERTCLI_MIRROR to a mirror with nyu-mll/glue"
        search.bench(Path(mirror), arguments.trials)
        arguments.topics.remove("search")
    if not arguments.topics:
        return
    tokenizer = run_in_process(lambda: train_tokenizer(lambda: sample_documents(200), 1024))
    if "finetuning" in arguments.topics:
        finetuning.bench(tokenizer, arguments.rounds)
    if "pretraining" in arguments.topics:
        pretraining.bench(check_mirror(Path(mirror)) if mirror else None, arguments.rounds)
    if "prediction" in arguments.topics:
        prediction.bench(tokenizer, arguments.rounds)
    if "large_files" in arguments.topics:
        large_files.bench(tokenizer, arguments.rounds)
    if "preparing" in arguments.topics:
        preparing.bench(tokenizer, arguments.rounds)
    if "curves" in arguments.topics:
        curves.bench(arguments.rounds)
    if "scaling" in arguments.topics:
        scaling.bench(arguments.rounds)
    if "encoders" in arguments.topics:
        encoders.bench(tokenizer, arguments.rounds)
    if "long_inputs" in arguments.topics:
        long_inputs.bench()


if __name__ == "__main__":
    main()
