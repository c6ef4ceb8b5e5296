"""`python -m tests.benchmarks.gpu`: the program of `make bench-gpu`, bertcli beside the `Trainer` on one GPU.

Pretraining and fine-tuning of BERT base and large: sequences and tokens per second, share of the bf16 matrix rate that
the card reaches in the same run, peak memory, and how often the host waited for the device within bertcli's steps.
`--device cpu --small` runs the same program on a CPU with a tiny model, to see that it works.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding, PreTrainedTokenizerBase

from bertcli.cli.main import DEFAULT_ENVIRONMENT
from bertcli.data.batching import training_batches
from bertcli.data.encoding import IGNORED_LABEL, Encoded
from bertcli.data.sample import sample_documents
from bertcli.models.from_scratch import SIZES
from bertcli.models.sparse_prediction import SparsePrediction
from bertcli.models.tokenizer_training import train_tokenizer
from tests.benchmarks.finetuning import (
    VOCAB_SIZE,
    Device,
    bert_config,
    bertcli_rate,
    label_loss,
    span_loss,
    squad_lengths,
    sst2_lengths,
    trainer_rate,
)
from tests.benchmarks.measure import run_in_process, training_flops

MASKED_SHARE = 0.15


@dataclass(frozen=True)
class Workload:
    """What a model is trained on."""

    title: str
    size: str  # of the model
    head: str  # of `BertFor…`
    lengths: list[int]  # of the sequences, in tokens
    batch_size: int
    trainer_compiles: bool = False  # whether the `Trainer` is also measured with torch.compile


def mnli_lengths(num_pairs: int, seed: int = 0) -> list[int]:
    """Lengths in tokens distributed as in MNLI: 40 on average, truncated to 128."""
    return np.random.default_rng(seed).gamma(4.0, 10.0, num_pairs).clip(8, 128).astype(int).tolist()


WORKLOADS = (
    Workload("pretraining, 128 tokens", "base", "MaskedLM", [128] * 256 * 24, 256, trainer_compiles=True),
    Workload("pretraining, 512 tokens", "base", "MaskedLM", [512] * 64 * 24, 64),
    Workload("pretraining, 128 tokens", "large", "MaskedLM", [128] * 128 * 24, 128),
    Workload("pretraining, 512 tokens", "large", "MaskedLM", [512] * 32 * 24, 32),
    Workload("fine-tuning, SST-2 lengths", "base", "SequenceClassification", sst2_lengths(32 * 200), 32),
    Workload("fine-tuning, MNLI lengths", "base", "SequenceClassification", mnli_lengths(32 * 200), 32, True),
    Workload("fine-tuning, SQuAD lengths", "base", "QuestionAnswering", squad_lengths(16 * 100), 16),
)
SMALL_WORKLOADS = (
    Workload("pretraining, 32 tokens", "tiny", "MaskedLM", [32] * 8 * 4, 8),
    Workload("fine-tuning, SST-2 lengths", "tiny", "SequenceClassification", sst2_lengths(8 * 4), 8),
    Workload("fine-tuning, SQuAD lengths", "tiny", "QuestionAnswering", squad_lengths(4 * 4), 4),
)


def masked_lm_loss(outputs: Any, targets: dict[str, torch.Tensor], counts: dict[str, int]) -> torch.Tensor:
    """The loss of the target tokens, as the training loop calls it."""
    return torch.nn.functional.cross_entropy(outputs.logits, targets["labels"], reduction="sum") / counts["labels"]


def matrix_rate(device: Device, hidden_size: int, seconds: float = 1.0) -> float:
    """Measure the bf16 matrix products of the feed-forward part of such a model's layer, in FLOP/s."""
    rows = 16_384 if device == "cuda" else 256
    options: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    values = torch.randn(rows, hidden_size, **options)
    up, down = (
        torch.randn(hidden_size, 4 * hidden_size, **options),
        torch.randn(4 * hidden_size, hidden_size, **options),
    )
    synchronize: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        (values @ up) @ down
    synchronize()
    num_products, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(10):
            (values @ up) @ down
        synchronize()
        num_products += 20
    return num_products * 2 * rows * hidden_size * 4 * hidden_size / (time.perf_counter() - start)


def build_model(workload: Workload) -> Any:
    """Build the workload's model."""
    torch.manual_seed(0)
    layers, width, heads = SIZES[workload.size]
    config = bert_config(layers, width, heads)
    return getattr(transformers, f"BertFor{workload.head}")(config)


def measure_bertcli(workload: Workload, device: Device) -> tuple[float, float, int]:
    """Return sequences per second, peak memory in GiB, and how often the host waited for the device in a step."""
    random = np.random.default_rng(1)
    lengths, epoch = np.asarray(workload.lengths), len(workload.lengths) // workload.batch_size
    ids = random.integers(1000, VOCAB_SIZE, lengths.sum()).astype(np.int32)
    labels, per_token = np.arange(len(lengths)) % 2, workload.head == "MaskedLM"
    if per_token:
        labels = np.where(random.random(len(ids)) < MASKED_SHARE, ids, IGNORED_LABEL).astype(np.int64)
    elif workload.head == "QuestionAnswering":
        labels = np.stack((labels, labels), axis=1)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    encoded = Encoded(ids, None, offsets, np.arange(len(lengths)), labels, 0, labels_per_token=per_token)
    loss = {"MaskedLM": masked_lm_loss, "QuestionAnswering": span_loss}.get(workload.head, label_loss)

    def batches(_: Accelerator) -> Iterator[Any]:
        size = workload.batch_size
        found = training_batches(
            encoded, global_batch_size=size, micro_batch_size=size, seed=0, start_step=0, total_steps=10_000
        )
        for batch in found:
            for micro in batch.micro_batches if per_token else ():
                micro["target_positions"] = micro["labels"] != IGNORED_LABEL
            yield batch

    model = build_model(workload)
    module = SparsePrediction(model) if per_token else model
    first_steps = min(4, epoch // 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch = partial(torch.cuda.set_sync_debug_mode, "warn") if device == "cuda" else lambda: None
        rate = bertcli_rate(
            module, batches, loss, epoch - first_steps, warmup_steps=first_steps, device=device, before_timing=watch
        )
    waits = sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
    return rate, _peak_memory(device), round(waits / (epoch - first_steps))


def measure_trainer(
    workload: Workload, device: Device, tokenizer: PreTrainedTokenizerBase, *, compiled: bool
) -> tuple[float, float, int]:
    """Return the same of the `Trainer` with its best flags; how often the host waited is not counted."""
    random, epoch = np.random.default_rng(1), len(workload.lengths) // workload.batch_size
    columns: dict[str, Any] = {"input_ids": [random.integers(1000, VOCAB_SIZE, size) for size in workload.lengths]}
    labels = np.arange(len(workload.lengths)) % 2
    collator: Any = DataCollatorWithPadding(tokenizer)
    if workload.head == "MaskedLM":
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED_SHARE)
    elif workload.head == "QuestionAnswering":
        columns |= {"start_positions": labels, "end_positions": labels}
    else:
        columns["labels"] = labels
    first_steps = min(4, epoch // 2)
    flags: dict[str, Any] = {"optim": "adamw_torch_fused", "bf16": True, "torch_compile": compiled}
    if workload.head != "MaskedLM":
        flags["train_sampling_strategy"] = "group_by_length"
    rate = trainer_rate(
        build_model(workload), Dataset.from_dict(columns), epoch - first_steps, collator, flags=flags,
        warmup_steps=first_steps, batch_size=workload.batch_size, tokenizer=tokenizer, device=device,
    )  # fmt: skip
    return rate, _peak_memory(device), 0


def _peak_memory(device: Device) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0


def main() -> None:
    """Measure all workloads and print a table."""
    parser = argparse.ArgumentParser(prog="bench-gpu")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    device: Device = arguments.device
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    tokenizer = run_in_process(lambda: train_tokenizer(lambda: sample_documents(200), 1024))
    columns = (
        "model",
        "work",
        "contender",
        "sequences/s",
        "tokens/s",
        "share of the matrix rate",
        "GiB",
        "waits a step",
        "speedup",
    )
    table = Table(*columns, title=f"{device}, torch {torch.__version__}, transformers {transformers.__version__}")
    start = time.perf_counter()
    for workload in SMALL_WORKLOADS if arguments.small else WORKLOADS:
        layers, width, _ = SIZES[workload.size]
        peak = run_in_process(partial(matrix_rate, device, width))
        contenders = {"bertcli": partial(measure_bertcli, workload, device)}
        contenders["Trainer"] = partial(measure_trainer, workload, device, tokenizer, compiled=False)
        if workload.trainer_compiles:
            contenders["Trainer, compiled"] = partial(measure_trainer, workload, device, tokenizer, compiled=True)
        length = float(np.mean(workload.lengths))
        flops = training_flops(layers, width, length, length)
        own = 0.0
        for name, measure in contenders.items():
            rate, memory, waits = run_in_process(measure, DEFAULT_ENVIRONMENT if name == "bertcli" else None)
            own = own or rate
            table.add_row(
                f"{layers} x {width}", f"{workload.title}, batch {workload.batch_size}", name, f"{rate:,.0f}",
                f"{rate * length:,.0f}", f"{rate * flops / peak:.0%} of {peak / 1e12:.1f} TFLOP/s", f"{memory:.1f}",
                str(waits) if name == "bertcli" else "", f"{own / rate:.2f} x",
            )  # fmt: skip
    table.caption = f"{time.perf_counter() - start:.0f} seconds in all; the speedup is bertcli's"
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
