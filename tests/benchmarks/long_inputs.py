"""Peak memory and time of one training step on long inputs, with and without gradient checkpointing."""

from __future__ import annotations

import resource
import time
from functools import partial

import torch
import transformers
from rich.console import Console
from rich.table import Table

from bertcli.malloc import retain_freed_memory
from bertcli.models.gradient_checkpointing import checkpoint_layers
from bertcli.models.padding_free import optimize_forward
from bertcli.training.devices import prepare_batch
from bertcli.training.memory import Workload, activation_bytes
from bertcli.training.optimizer import build_optimizer
from tests.benchmarks.measure import run_in_process

SIZES = {"num_hidden_layers": 4, "hidden_size": 384, "num_attention_heads": 6, "vocab_size": 8192, "pad_token_id": 0}
SHAPES = ((1, 2048), (4, 2048), (1, 8192), (4, 8192))  # sequences, tokens per sequence
CPU = torch.device("cpu")


def bench() -> None:
    """Print the peak memory and the seconds of a step of a token classifier, and the estimate of its memory."""
    columns = ("model", "batch", "checkpointing", "peak", "estimate", "ratio", "seconds")
    table = Table(*columns, title="long inputs: 4 layers, 384 wide, fp32, memory in GB")
    for name, (rows, length) in ((name, shape) for name in CONFIGS for shape in SHAPES):
        for checkpointing in (False, True):
            measure = partial(_measure, name, rows, length, checkpointing)
            peak, estimate, seconds = run_in_process(measure)
            sizes = (f"{peak / 1e9:.2f}", f"{estimate / 1e9:.2f}", f"{peak / estimate:.2f}")
            table.add_row(name, f"{rows} x {length}", str(checkpointing).lower(), *sizes, f"{seconds:.2f}")
    Console(width=120).print(table)


def _bert() -> transformers.PretrainedConfig:
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0}  # attention with dropout is quadratic
    return transformers.BertConfig(**SIZES, **dropout, intermediate_size=1536, max_position_embeddings=8192)


def _modernbert() -> transformers.PretrainedConfig:
    return transformers.ModernBertConfig(**SIZES, intermediate_size=768)


CONFIGS = {"bert, no attention dropout": _bert, "modernbert": _modernbert}


def _measure(name: str, rows: int, length: int, checkpointing: bool) -> tuple[float, float, float]:
    """Return the peak memory of training in bytes, its estimate, and the seconds of a step."""
    retain_freed_memory()
    before = _peak_bytes()
    config = CONFIGS[name]()
    model = transformers.AutoModelForTokenClassification.from_config(config).train()
    optimize_forward(model, CPU)
    if checkpointing:
        checkpoint_layers(model)
    optimizer = build_optimizer(model, learning_rate=1e-4, weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8)
    ids = torch.randint(5, config.vocab_size, (rows, length))
    batch = prepare_batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, model, CPU)
    start = time.perf_counter()
    model(**batch).logits.square().mean().backward()
    optimizer.step()
    seconds = time.perf_counter() - start
    num_parameters = model.num_parameters()
    workload = Workload(config, num_parameters, num_parameters, rows, length)
    estimate = 16 * num_parameters + activation_bytes(workload, "fp32", on_cpu=True, checkpointing=checkpointing)
    return _peak_bytes() - before, estimate, seconds


def _peak_bytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
