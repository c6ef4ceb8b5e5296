"""The training loop matches transformers' `Trainer`: same seed, same batches, no dropout, fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import Trainer, TrainerCallback, TrainingArguments

from bertcli.data.batching import training_batches
from bertcli.data.encoding import encode_texts
from bertcli.finetuning.loss import build_loss
from bertcli.heads.text_classification import TextClassification
from bertcli.models.from_pretrained import ModelSource
from bertcli.models.seen_embeddings import train_seen_rows_only
from bertcli.training.loop import train_steps
from bertcli.training.optimizer import build_optimizer
from bertcli.training.schedule import lr_scale

from ..conftest import allow_missing

NUM_STEPS, BATCH_SIZE, LEARNING_RATE, WARMUP_STEPS = 20, 8, 1e-3, 5


class SequentialTrainer(Trainer):
    """A `Trainer` that does not shuffle."""

    def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class LossRecorder(TrainerCallback):
    """Records the logged loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, args: object, state: object, control: object, logs: dict[str, float], **_: object) -> None:
        if "loss" in logs:
            self.values.append(logs["loss"])


def test_loss_matches_the_hugging_face_trainer_over_20_steps(encoder: Path, tmp_path: Path) -> None:
    head = TextClassification("single_label", ("a", "b"))
    words = ["film", "soup", "fine", "dull", "lovely", "train", "awful", "day"]
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(words, size=random.integers(2, 9))) for _ in range(NUM_STEPS * BATCH_SIZE)]
    encoded = encode_texts(
        ModelSource(str(encoder)).load_tokenizer(), texts, None, 64, random.integers(0, 2, len(texts))
    )

    def build_model() -> torch.nn.Module:
        torch.manual_seed(0)
        return ModelSource(str(encoder)).load_model(
            "AutoModelForSequenceClassification", head.config_fields, dropout=0.0, on_missing=allow_missing
        )

    accelerator, model = Accelerator(cpu=True), build_model()
    train_seen_rows_only(model, np.unique(encoded.input_ids))
    optimizer = build_optimizer(model, learning_rate=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.999), epsilon=1e-8)
    batches = list(
        training_batches(
            encoded, global_batch_size=BATCH_SIZE, micro_batch_size=3, seed=1, start_step=0, total_steps=NUM_STEPS
        )
    )
    rows = [{name: tensor[row][micro["attention_mask"][row] == 1] if name != "labels" else tensor[row]
             for name, tensor in micro.items()}
            for batch in batches for micro in batch.micro_batches for row in range(len(micro["labels"]))]  # fmt: skip
    steps = train_steps(
        accelerator,
        *accelerator.prepare(model, optimizer),
        lambda step: LEARNING_RATE * lr_scale("linear", step, WARMUP_STEPS, NUM_STEPS),
        batches,
        build_loss(head),
        max_grad_norm=1.0,
    )
    actual = [record.loss.item() for record in steps]

    losses = LossRecorder()
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        per_device_train_batch_size=BATCH_SIZE,
        max_steps=NUM_STEPS,
        learning_rate=LEARNING_RATE,
        warmup_steps=WARMUP_STEPS,
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
    SequentialTrainer(
        model=build_model(),
        args=arguments,
        train_dataset=rows,
        processing_class=ModelSource(str(encoder)).load_tokenizer(),
        callbacks=[losses],
    ).train()
    assert len(losses.values) == NUM_STEPS
    assert actual == pytest.approx(losses.values, abs=1e-5)
    assert actual[-1] != pytest.approx(actual[0], abs=1e-3)  # the model learned
