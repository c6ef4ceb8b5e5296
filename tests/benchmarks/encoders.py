"""Fine-tuning examples per second of newer encoders: bertcli against the `Trainer` with its best flags.

The models have the width of their family's base model and fewer layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from datasets import Dataset
from transformers import DataCollatorWithPadding, PretrainedConfig, PreTrainedTokenizerBase

from bertcli.cli.main import DEFAULT_ENVIRONMENT
from bertcli.data.batching import training_batches
from bertcli.data.encoding import Encoded
from bertcli.models.from_scratch import build_config
from bertcli.recipe.pretrain_schema import ArchitectureSection
from bertcli.training.devices import cpu_computes_bf16
from tests.benchmarks.finetuning import BEST_FLAGS, bertcli_rate, label_loss, sst2_lengths, trainer_rate
from tests.benchmarks.measure import Contender, compare

FAMILIES = {"modernbert": 50_368, "roberta": 50_265, "eurobert": 128_256, "deberta-v2": 128_100}  # vocabulary sizes
NUM_LAYERS, SHARE_OF_SEEN_IDS = 6, 0.25
WORKLOADS = {  # lengths in tokens, batch size
    "SST-2 lengths": (sst2_lengths(24 * 32), 32),
    "1,024 tokens": (np.random.default_rng(3).integers(700, 1025, 6 * 4).tolist(), 4),
}


def bench(tokenizer: PreTrainedTokenizerBase, rounds: int, families: list[str] | None = None) -> None:
    """Classification by six layers of each family's base width."""
    for family in families or FAMILIES:
        config = build_config(
            ArchitectureSection(family=family, size="base", config_overrides={"num_hidden_layers": NUM_LAYERS}),
            tokenizer,
            1024,
        )
        config.vocab_size = FAMILIES[family]
        for title, (lengths, batch_size) in WORKLOADS.items():
            _compare(tokenizer, config, title, lengths, batch_size, rounds)


def _compare(
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    title: str,
    lengths: list[int],
    batch_size: int,
    rounds: int,
) -> None:
    random, epoch = np.random.default_rng(1), len(lengths) // batch_size
    num_seen = int(SHARE_OF_SEEN_IDS * config.vocab_size)
    seen_ids = random.choice(np.arange(1000, config.vocab_size), num_seen, replace=False)
    ids = [random.choice(seen_ids, length).astype(np.int32) for length in lengths]
    labels = np.arange(len(ids)) % 2
    rows = Dataset.from_dict({"input_ids": [part.tolist() for part in ids], "labels": labels})
    encoded = Encoded(
        np.concatenate(ids), None, np.concatenate(([0], np.cumsum(lengths))), np.arange(len(ids)), labels, 0
    )

    def build_model() -> Any:
        torch.manual_seed(0)
        return transformers.AutoModelForSequenceClassification.from_config(config)

    def batches(_: Accelerator) -> Iterator[Any]:
        return training_batches(
            encoded, global_batch_size=batch_size, micro_batch_size=batch_size, seed=0, start_step=0, total_steps=10_000
        )

    def trainer() -> float:
        collator = DataCollatorWithPadding(tokenizer)
        rate = partial(trainer_rate, build_model(), rows, epoch, collator, flags=BEST_FLAGS, warmup_steps=epoch)
        return rate(batch_size=batch_size, tokenizer=tokenizer)

    def bertcli() -> float:
        return bertcli_rate(build_model(), batches, label_loss, epoch, warmup_steps=epoch, seen_ids=seen_ids)

    precision = ", bf16" if cpu_computes_bf16() else ""
    compare(f"fine-tuning {config.model_type}, {NUM_LAYERS} x {config.hidden_size}, {title}", "examples/s", [
        Contender(f"Trainer, best flags: grouped by length, SDPA, fused AdamW{precision}", trainer),
        Contender("bertcli", bertcli, DEFAULT_ENVIRONMENT),
    ], rounds)  # fmt: skip
