"""The loop against transformers' `Trainer`: same seed, same batches, no dropout, fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import Trainer, TrainerCallback, TrainingArguments

from bertcli.data.batching import training_batches
from bertcli.data.encoding import encode_texts
from bertcli.finetuning.loss import loss_of
from bertcli.heads.text_classification import TextClassification
from bertcli.models.from_pretrained import load_model, load_tokenizer
from bertcli.models.seen_embeddings import learn_met_rows
from bertcli.training.loop import train_steps
from bertcli.training.optimizer import build_optimizer
from bertcli.training.schedule import rate_factor

STEPS, BATCH, RATE, WARMUP = 20, 8, 1e-3, 5


class InGivenOrder(Trainer):
    """A `Trainer` that takes the rows in the order they come."""

    def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Losses(TrainerCallback):
    """Keeps the logged loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, args: object, state: object, control: object, logs: dict[str, float], **_: object) -> None:
        if "loss" in logs:
            self.values.append(logs["loss"])


def test_twenty_losses_agree_with_the_trainer_to_1e_5(encoder: Path, tmp_path: Path) -> None:
    head = TextClassification("single_label", ("a", "b"))
    words = ["film", "soup", "fine", "dull", "lovely", "train", "awful", "day"]
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(words, size=random.integers(2, 9))) for _ in range(STEPS * BATCH)]
    encoded = encode_texts(load_tokenizer(str(encoder), None), texts, None, 64, random.integers(0, 2, len(texts)))

    def build() -> torch.nn.Module:
        torch.manual_seed(0)
        return load_model(str(encoder), None, "AutoModelForSequenceClassification", head.config_fields, dropout=0.0)

    accelerator, model = Accelerator(cpu=True), build()
    learn_met_rows(model, np.unique(encoded.input_ids))
    optimizer = build_optimizer(model, learning_rate=RATE, weight_decay=0.01, betas=(0.9, 0.999), epsilon=1e-8)
    batches = list(
        training_batches(encoded, global_batch_size=BATCH, micro_batch_size=3, seed=1, start_step=0, total_steps=STEPS)
    )
    rows = [{name: tensor[at][micro["attention_mask"][at] == 1] if name != "labels" else tensor[at]
             for name, tensor in micro.items()}
            for batch in batches for micro in batch.micro_batches for at in range(len(micro["labels"]))]  # fmt: skip
    steps = train_steps(
        accelerator,
        *accelerator.prepare(model, optimizer),
        lambda step: RATE * rate_factor("linear", step, WARMUP, STEPS),
        batches,
        loss_of(head),
        max_grad_norm=1.0,
    )
    ours = [record.loss.item() for record in steps]

    losses = Losses()
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        learning_rate=RATE,
        warmup_steps=WARMUP,
        weight_decay=0.01,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
    )
    InGivenOrder(
        model=build(),
        args=arguments,
        train_dataset=rows,
        processing_class=load_tokenizer(str(encoder), None),
        callbacks=[losses],
    ).train()
    assert len(losses.values) == STEPS
    assert ours == pytest.approx(losses.values, abs=1e-5)
    assert ours[-1] != pytest.approx(ours[0], abs=1e-3)  # they learned something
