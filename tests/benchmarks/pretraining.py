"""Pretraining tokens per second: `bertcli pretrain` against the `Trainer` as in `run_mlm.py`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling

from bertcli.cli.main import DEFAULT_ENVIRONMENT
from bertcli.console import Console
from bertcli.models.from_scratch import SIZES, build_from_config
from bertcli.pretraining.batches import read_texts
from bertcli.pretraining.job import PretrainJob
from bertcli.pretraining.setup import resolve_phases, set_up
from bertcli.recipe.load import load_pretrain_recipe
from bertcli.training.devices import cpu_computes_bf16
from bertcli.training.meters import RunClock
from tests.benchmarks.finetuning import bertcli_rate, trainer_rate
from tests.benchmarks.measure import Contender, compare, run_in_process, training_flops

MAX_LENGTH, BATCH_SIZE, STEPS, WARMUP_STEPS = 128, 32, 10, 4


def bench(mirror: Path | None, rounds: int) -> None:
    """A mini BERT on WikiText-2 from the mirror, or on the sample documents; batches of 32 x 128 tokens."""
    source = "{dataset: Salesforce/wikitext, config: wikitext-2-v1, split: train}" if mirror else "{dataset: sample}"
    recipe = load_pretrain_recipe("pretrain/tiny", [
        f"corpus.sources=[{source}]", "model.size=mini", "model.dropout=0.1", "tokenizer.vocab_size=8192",
        f"phases=[{{max_length: {MAX_LENGTH}}}]", f"training.global_batch_size={BATCH_SIZE}", "packing=true",
    ])  # fmt: skip

    def build_job() -> PretrainJob:
        setup = set_up(recipe, mirror, Console(mute=True))
        return PretrainJob(setup, *resolve_phases(recipe, setup))

    def build_model(job: PretrainJob) -> Any:
        torch.manual_seed(0)
        return build_from_config(copy.deepcopy(job.setup.config), "AutoModelForMaskedLM")

    def bertcli() -> float:
        job = build_job()

        def batches(accelerator: Accelerator) -> Iterator[Any]:
            return job.batches(accelerator, 0, RunClock(accelerator, job.plan.total_steps, None, 0.0))

        module = job.setup.objective.build_module(build_model(job))
        return bertcli_rate(module, batches, job.loss, STEPS, warmup_steps=WARMUP_STEPS) * MAX_LENGTH

    def trainer(**flags: Any) -> float:
        job = build_job()
        collator = DataCollatorForLanguageModeling(job.setup.tokenizer, mlm_probability=0.15)
        rows = _full_blocks(job)
        rate = trainer_rate(
            build_model(job), rows, STEPS, collator, flags=flags, warmup_steps=WARMUP_STEPS, batch_size=BATCH_SIZE
        )
        return rate * MAX_LENGTH

    best_flags = {"optim": "adamw_torch_fused", "bf16": cpu_computes_bf16()}
    precision = " and bf16" if best_flags["bf16"] else ""
    num_layers, hidden_size, _ = SIZES["mini"]
    corpus = "WikiText-2" if mirror else "the sample documents"
    run_in_process(lambda: build_job() and None)  # train the tokenizer and fill the cache
    compare(f"pretraining a mini BERT on {corpus}, vocabulary 8,192, batch 32 x 128", "tokens/s", [
        Contender("Trainer as in run_mlm.py, default flags", trainer),
        Contender(f"the same with fused AdamW{precision}", lambda: trainer(**best_flags)),
        Contender("the same, with bertcli's torch settings", lambda: trainer(**best_flags), DEFAULT_ENVIRONMENT),
        Contender("bertcli, packed", bertcli, DEFAULT_ENVIRONMENT),
    ], rounds, training_flops(num_layers, hidden_size, 1, MAX_LENGTH))  # fmt: skip


def _full_blocks(job: PretrainJob) -> Dataset:
    """The corpus as the example script prepares it: concatenated and split into full blocks."""
    setup = job.setup
    texts = read_texts(setup.corpus, setup.held_out, np.arange(min(len(setup.held_out), 4000)))
    tokens = np.concatenate([text.first for text in texts])
    tokens = np.tile(tokens, -(-MAX_LENGTH * BATCH_SIZE * (STEPS + 10) // len(tokens)))
    blocks = tokens[: len(tokens) // MAX_LENGTH * MAX_LENGTH].reshape(-1, MAX_LENGTH)
    return Dataset.from_dict({"input_ids": blocks.tolist()})
