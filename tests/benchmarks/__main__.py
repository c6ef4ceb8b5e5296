"""`python -m tests.benchmarks [--rounds N] [finetuning …]`: what `make bench` runs."""

from __future__ import annotations

import argparse
import os
import platform
import warnings
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers

from bertcli.cli.options import checked_mirror
from bertcli.data.sample import sample_documents
from bertcli.models.tokenizer_training import train_tokenizer
from tests.benchmarks import curves, finetuning, prediction, preparing, pretraining, scaling
from tests.benchmarks.measure import apart

TOPICS = ("finetuning", "pretraining", "prediction", "preparing", "curves", "scaling")


def main() -> None:
    """Run the chosen benchmarks, all by default."""
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("topics", nargs="*", choices=TOPICS, default=TOPICS)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, "
          f"{torch.get_num_threads()} threads, {versions}")  # fmt: skip
    tokenizer = apart(lambda: train_tokenizer(lambda: sample_documents(200), 1024))
    if "finetuning" in given.topics:
        finetuning.bench(tokenizer, given.rounds)
    if "pretraining" in given.topics:
        mirror = os.environ.get("BERTCLI_MIRROR")
        pretraining.bench(checked_mirror(Path(mirror)) if mirror else None, given.rounds)
    if "prediction" in given.topics:
        prediction.bench(tokenizer, given.rounds)
    if "preparing" in given.topics:
        preparing.bench(tokenizer, given.rounds)
    if "curves" in given.topics:
        curves.bench(given.rounds)
    if "scaling" in given.topics:
        scaling.bench(given.rounds)


if __name__ == "__main__":
    main()
