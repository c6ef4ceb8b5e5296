"""The training loop: a step does not depend on how its examples are split into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.nn.parallel import DistributedDataParallel

from bertcli.data.batching import training_batches
from bertcli.data.encoding import Encoded, encode_texts
from bertcli.finetuning.loss import build_loss
from bertcli.heads.text_classification import TextClassification
from bertcli.inference.forward import compute_logits
from bertcli.models.from_pretrained import ModelSource
from bertcli.training.loop import Loss, StepRecord, Targets, train_steps
from bertcli.training.meters import StepMeter
from bertcli.training.optimizer import build_optimizer, parameter_groups

from ..conftest import allow_missing

HEAD = TextClassification("single_label", ("a", "b"))


def build_model(encoder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    return ModelSource(str(encoder)).load_model(
        "AutoModelForSequenceClassification", HEAD.config_fields, dropout=0.0, on_missing=allow_missing
    )


def encode_rows(encoder: Path, num_rows: int = 29) -> Encoded:
    import numpy as np

    texts = ["film " * (1 + row % 7) + ("bad" if row % 2 else "good") for row in range(num_rows)]
    return encode_texts(ModelSource(str(encoder)).load_tokenizer(), texts, None, 64, np.arange(num_rows) % 2)


def start_training(
    encoder: Path,
    micro_batch_size: int,
    num_steps: int = 6,
    max_grad_norm: float | None = 1.0,
    loss: Loss | None = None,
    **options: Any,
) -> tuple[Iterator[StepRecord], torch.nn.Module, torch.optim.Optimizer]:
    accelerator = Accelerator(cpu=True)
    model = build_model(encoder)
    optimizer = build_optimizer(model, learning_rate=1e-3, weight_decay=0.01, betas=(0.9, 0.999), epsilon=1e-8)
    prepared = accelerator.prepare(model, optimizer)
    batches = training_batches(
        encode_rows(encoder),
        global_batch_size=13,
        micro_batch_size=micro_batch_size,
        seed=1,
        start_step=0,
        total_steps=num_steps,
    )
    steps = train_steps(
        accelerator,
        *prepared,
        lambda step: 1e-3,
        batches,
        loss or build_loss(HEAD),
        max_grad_norm=max_grad_norm,
        **options,
    )
    return steps, model, optimizer


def train_model(
    encoder: Path, micro_batch_size: int, num_steps: int = 6, max_grad_norm: float | None = 1.0
) -> tuple[list[StepRecord], torch.nn.Module]:
    steps, model, _ = start_training(encoder, micro_batch_size, num_steps, max_grad_norm)
    return list(steps), model


def assert_same_parameters(expected: torch.nn.Module, actual: torch.nn.Module) -> None:
    for name, parameter in expected.named_parameters():
        # Softmax is invariant to the key bias: its gradient is rounding noise, which Adam scales up to full steps.
        if not name.endswith("key.bias"):
            assert torch.allclose(parameter, actual.get_parameter(name), atol=2e-5), name


@pytest.mark.parametrize("micro_batch_size", [1, 5, 12])
def test_gradient_accumulation_equals_one_batch_with_uneven_micro_batches(encoder: Path, micro_batch_size: int) -> None:
    expected, model = train_model(encoder, 13)
    actual, accumulated = train_model(encoder, micro_batch_size)
    assert [record.num_examples for record in expected] == [record.num_examples for record in actual]
    assert {13, 29 % 13} == {record.num_examples for record in expected}
    for left, right in zip(expected, actual, strict=True):
        assert right.loss.item() == pytest.approx(left.loss.item(), abs=1e-6)
        assert right.grad_norm.item() == pytest.approx(left.grad_norm.item(), rel=1e-4)
    assert_same_parameters(model, accumulated)


def test_gradient_clipping_changes_the_step(encoder: Path) -> None:
    records, clipped = train_model(encoder, 13, num_steps=1, max_grad_norm=1e-6)
    _, unclipped = train_model(encoder, 13, num_steps=1, max_grad_norm=None)
    assert records[0].grad_norm > 1e-3
    assert not all(torch.equal(value, unclipped.get_parameter(name)) for name, value in clipped.named_parameters())


@pytest.mark.parametrize("wraps", [torch.nn.Sequential, DistributedDataParallel])
def test_every_part_of_the_model_is_in_training_mode_in_each_step(
    encoder: Path, wraps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The wrapper itself stays in training mode when the model in it was loaded or evaluated.
    monkeypatch.setattr(torch.nn.Sequential, "forward", lambda self, **inputs: self[0](**inputs))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = build_model(encoder)
        assert not model.training
        wrapper = wraps(model)
        accelerator = Accelerator(cpu=True)
        optimizer = accelerator.prepare_optimizer(
            build_optimizer(model, learning_rate=1e-3, weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8)
        )
        batches = training_batches(
            encode_rows(encoder), global_batch_size=13, micro_batch_size=13, seed=1, start_step=0, total_steps=4
        )
        modes: list[bool] = []
        model.register_forward_pre_hook(lambda *_: modes.extend(part.training for part in model.modules()))
        for record in train_steps(
            accelerator, wrapper, optimizer, lambda step: 1e-3, batches, build_loss(HEAD), max_grad_norm=1.0
        ):
            assert modes
            assert all(modes)
            (model if record.step % 2 else model.base_model).eval()
    finally:
        dist.destroy_process_group()


def test_weight_decay_excludes_biases_and_normalization(encoder: Path) -> None:
    model = build_model(encoder)
    decayed, undecayed = (group["params"] for group in parameter_groups(model, 0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in undecayed)
    assert not any("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in decayed)
    assert len(decayed) + len(undecayed) == len(names)


def test_logits_are_in_row_order(encoder: Path) -> None:
    model, encoded = build_model(encoder).eval(), encode_rows(encoder)
    import numpy as np

    logits, _ = compute_logits(Accelerator(cpu=True), model, encoded, HEAD.logits, max_tokens=23)
    for row in range(len(encoded)):
        batch = encoded.batch(np.array([row]))
        batch.pop("labels")
        with torch.inference_mode():
            assert np.allclose(logits[row], model(**batch).logits[0].numpy(), atol=1e-5)


def test_non_finite_gradient_skips_the_step(encoder: Path) -> None:
    nan_step = 4

    def loss(outputs: Any, targets: Targets, counts: dict[str, int]) -> torch.Tensor:
        value = build_loss(HEAD)(outputs, targets, counts)
        return value * float("nan") if len(weights) + 1 == nan_step else value

    weights: list[dict[str, torch.Tensor]] = []  # after each step
    optimizer_steps: list[float] = []
    steps, model, optimizer = start_training(encoder, 13, loss=loss)
    for record in steps:
        weights.append({name: value.detach().clone() for name, value in model.named_parameters()})
        optimizer_steps.append(float(next(iter(optimizer.state.values()))["step"]))
        assert bool(record.skipped) == (record.step == nan_step) == (not record.loss.isfinite())
    assert optimizer_steps == [1, 2, 3, 3, 4, 5]
    changed = [any(not torch.equal(old[name], new[name]) for name in old) for old, new in pairwise(weights)]
    assert changed == [True, True, False, True, True]
    assert all(value.isfinite().all() for value in weights[-1].values())


def test_step_meter_excludes_the_loss_of_skipped_steps() -> None:
    meter = StepMeter(torch.device("cpu"))
    for step, loss in ((1, 1.0), (2, float("nan"))):
        skipped = torch.tensor(float(loss != loss))
        meter.add(StepRecord(step, torch.tensor(loss), torch.tensor(loss), 1e-3, skipped, 4, 10, 12))
    summary = meter.summary(steps_per_epoch=4)
    assert (summary["train/loss"], summary["train/grad_norm"], summary["skipped_steps"]) == (1.0, None, 1)


def test_step_meter_counts_steps_that_overflow_in_fp16(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overflows = iter([False, True, True, False])
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda optimizer: next(overflows)))
    meter = StepMeter(torch.device("cpu"), {"num_overflowed": 1.0})
    for record in start_training(encoder, 13, num_steps=4)[0]:
        meter.add(record)
    summary = meter.summary(steps_per_epoch=4)
    assert (summary["overflowed_steps"], summary["skipped_steps"]) == (3, 0)
    assert meter.state()["num_overflowed"] == 3


def test_step_meter_averages_the_loss() -> None:
    meter = StepMeter(torch.device("cpu"))
    for step, loss in ((1, 1.0), (2, 3.0)):
        meter.add(StepRecord(step, torch.tensor(loss), torch.tensor(0.5), 1e-3, torch.tensor(0.0), 4, 10, 12))
    summary = meter.summary(steps_per_epoch=4)
    assert (summary["train/loss"], summary["step"], summary["epoch"]) == (2.0, 2, 0.5)
    assert (meter.num_examples, meter.num_tokens, meter.num_padded_tokens) == (8, 20, 24)


def test_out_of_memory_halves_micro_batches_and_learns_the_same(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, model = train_model(encoder, 13)
    batch_sizes: list[int] = []
    forward = torch.nn.Embedding.forward

    def small_memory(layer: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        batch_sizes.append(len(ids))
        if len(ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(layer, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", small_memory)
    steps, halved, _ = start_training(encoder, 13, halve_on_oom=True)
    actual = list(steps)
    assert [record.micro_batch_size for record in actual] == [None] + [3] * (len(actual) - 1)  # the first has 3 rows
    assert max(batch_sizes) == 13
    assert batch_sizes.count(13) == 1  # a size that did not fit is not tried again
    for left, right in zip(expected, actual, strict=True):
        assert right.loss.item() == pytest.approx(left.loss.item(), abs=1e-6)
    assert_same_parameters(model, halved)
    with pytest.raises(torch.OutOfMemoryError):
        list(start_training(encoder, 13)[0])
