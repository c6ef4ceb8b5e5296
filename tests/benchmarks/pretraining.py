"""Pretraining tokens a second: `bertcli pretrain` against the masked-language recipe of the example script."""

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

from bertcli.cli.main import ENVIRONMENT
from bertcli.console import Console
from bertcli.models.from_scratch import SIZES, build_from_config
from bertcli.pretraining.batches import texts_of
from bertcli.pretraining.job import PretrainJob
from bertcli.pretraining.setup import plan_stages, prepare
from bertcli.recipe.load import load_pretrain_recipe
from bertcli.training.devices import cpu_computes_bf16
from bertcli.training.meters import Clock
from tests.benchmarks.finetuning import our_rate, trainer_rate
from tests.benchmarks.measure import Contender, apart, race, training_flops

LENGTH, BATCH, STEPS, WARM_STEPS = 128, 32, 10, 4


def bench(mirror: Path | None, rounds: int) -> None:
    """A mini BERT on WikiText-2 of the mirror, or on the sample documents, batch 32 of 128 tokens."""
    source = "{dataset: Salesforce/wikitext, config: wikitext-2-v1, split: train}" if mirror else "{dataset: sample}"
    recipe = load_pretrain_recipe("pretrain/tiny", [
        f"corpus.sources=[{source}]", "model.size=mini", "model.dropout=0.1", "tokenizer.vocabulary_size=8192",
        f"phases=[{{max_length: {LENGTH}}}]", f"training.global_batch_size={BATCH}", "packing=true",
    ])  # fmt: skip

    def job() -> PretrainJob:
        prepared = prepare(recipe, mirror, Console(mute=True))
        return PretrainJob(prepared, *plan_stages(recipe, prepared))

    def model(made: PretrainJob) -> Any:
        torch.manual_seed(0)
        return build_from_config(copy.deepcopy(made.prepared.config), "AutoModelForMaskedLM")

    def ours() -> float:
        made = job()

        def batches(accelerator: Accelerator) -> Iterator[Any]:
            return made.batches(accelerator, 0, Clock(accelerator, made.plan.total_steps, None, 0.0))

        return (
            our_rate(made.prepared.objective.build(model(made)), batches, made.loss, STEPS, warm_steps=WARM_STEPS)
            * LENGTH
        )

    def trainer(**flags: Any) -> float:
        made = job()
        collator = DataCollatorForLanguageModeling(made.prepared.tokenizer, mlm_probability=0.15)
        rate = trainer_rate(
            model(made), _blocks(made), STEPS, collator, flags=flags, warm_steps=WARM_STEPS, batch=BATCH
        )
        return rate * LENGTH

    best = {"optim": "adamw_torch_fused", "bf16": cpu_computes_bf16()}
    precision = " and bf16" if best["bf16"] else ""
    layers, width, _ = SIZES["mini"]
    corpus = "WikiText-2" if mirror else "the sample documents"
    apart(lambda: job() and None)  # learns the vocabulary and fills the cache
    race(f"pretraining a mini BERT on {corpus}, vocabulary 8,192, batch 32 x 128", "tokens/s", [
        Contender("Trainer as run_mlm, its defaults", trainer),
        Contender(f"the same with fused AdamW{precision}", lambda: trainer(**best)),
        Contender("the same, torch set as bertcli does", lambda: trainer(**best), ENVIRONMENT),
        Contender("bertcli, packed", ours, ENVIRONMENT),
    ], rounds, training_flops(layers, width, 1, LENGTH))  # fmt: skip


def _blocks(job: PretrainJob) -> Dataset:
    """The corpus as the example script makes it: everything joined and cut into full blocks."""
    prepared = job.prepared
    ranges = np.arange(min(len(prepared.held_out), 4000))
    texts = texts_of(prepared.corpus, prepared.held_out, ranges)
    flat = np.concatenate([text.first for text in texts])
    flat = np.tile(flat, -(-LENGTH * BATCH * (STEPS + 10) // len(flat)))
    blocks = flat[: len(flat) // LENGTH * LENGTH].reshape(-1, LENGTH)
    return Dataset.from_dict({"input_ids": blocks.tolist()})
