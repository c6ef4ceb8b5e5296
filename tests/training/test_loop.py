"""The loop: what a step learns does not depend on how its examples are spread."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from bertcli.data.batching import training_batches
from bertcli.data.encoding import Encoded, encode_texts
from bertcli.finetuning.loss import loss_of
from bertcli.heads.text_classification import TextClassification
from bertcli.inference.forward import compute_logits
from bertcli.models.from_pretrained import load_model, load_tokenizer
from bertcli.training.loop import Loss, StepRecord, Targets, train_steps
from bertcli.training.meters import Window
from bertcli.training.optimizer import build_optimizer, parameter_groups

HEAD = TextClassification("single_label", ("a", "b"))


def build(encoder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    return load_model(str(encoder), None, "AutoModelForSequenceClassification", HEAD.config_fields, dropout=0.0)


def encode(encoder: Path, num_rows: int = 29) -> Encoded:
    import numpy as np

    texts = ["film " * (1 + row % 7) + ("bad" if row % 2 else "good") for row in range(num_rows)]
    return encode_texts(load_tokenizer(str(encoder), None), texts, None, 64, np.arange(num_rows) % 2)


def start(
    encoder: Path,
    micro_batch_size: int,
    steps: int = 6,
    clip: float | None = 1.0,
    loss: Loss | None = None,
    **options: Any,
) -> tuple[Iterator[StepRecord], torch.nn.Module, torch.optim.Optimizer]:
    accelerator = Accelerator(cpu=True)
    model = build(encoder)
    optimizer = build_optimizer(model, learning_rate=1e-3, weight_decay=0.01, betas=(0.9, 0.999), epsilon=1e-8)
    prepared = accelerator.prepare(model, optimizer)
    batches = training_batches(
        encode(encoder),
        global_batch_size=13,
        micro_batch_size=micro_batch_size,
        seed=1,
        start_step=0,
        total_steps=steps,
    )
    made = train_steps(
        accelerator, *prepared, lambda step: 1e-3, batches, loss or loss_of(HEAD), max_grad_norm=clip, **options
    )
    return made, model, optimizer


def run(
    encoder: Path, micro_batch_size: int, steps: int = 6, clip: float | None = 1.0
) -> tuple[list[StepRecord], torch.nn.Module]:
    made, model, _ = start(encoder, micro_batch_size, steps, clip)
    return list(made), model


@pytest.mark.parametrize("micro_batch_size", [1, 5, 12])
def test_accumulation_learns_what_one_batch_learns_also_with_uneven_parts(encoder: Path, micro_batch_size: int) -> None:
    whole, model = run(encoder, 13)
    parts, other = run(encoder, micro_batch_size)
    assert [record.num_examples for record in whole] == [record.num_examples for record in parts]
    assert {13, 29 % 13} == {record.num_examples for record in whole}
    for one, two in zip(whole, parts, strict=True):
        assert two.loss.item() == pytest.approx(one.loss.item(), abs=1e-6)
        assert two.grad_norm.item() == pytest.approx(one.grad_norm.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        # Softmax does not feel a key bias: its gradient is rounding noise, which Adam blows up to whole steps.
        if not name.endswith("key.bias"):
            assert torch.allclose(parameter, other.get_parameter(name), atol=2e-5), name


def test_clipping_bounds_the_gradient_and_none_leaves_it(encoder: Path) -> None:
    clipped, one = run(encoder, 13, steps=1, clip=1e-6)
    _, two = run(encoder, 13, steps=1, clip=None)
    assert clipped[0].grad_norm > 1e-3
    assert not all(torch.equal(parameter, two.get_parameter(name)) for name, parameter in one.named_parameters())


def test_biases_and_normalisation_do_not_decay(encoder: Path) -> None:
    model = build(encoder)
    decayed, plain = (group["params"] for group in parameter_groups(model, 0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in plain)
    assert not any("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in decayed)
    assert len(decayed) + len(plain) == len(names)


def test_evaluation_gives_each_row_its_own_logits_in_order(encoder: Path) -> None:
    model, encoded = build(encoder).eval(), encode(encoder)
    import numpy as np

    logits, _ = compute_logits(Accelerator(cpu=True), model, encoded, HEAD.logits, max_tokens=23)
    for row in range(len(encoded)):
        batch = encoded.batch(np.array([row]))
        batch.pop("labels")
        with torch.inference_mode():
            assert np.allclose(logits[row], model(**batch).logits[0].numpy(), atol=1e-5)


def test_a_step_without_a_number_changes_nothing_and_the_next_goes_on(encoder: Path) -> None:
    spoilt = 3

    def loss(outputs: Any, targets: Targets, counts: dict[str, int]) -> torch.Tensor:
        value = loss_of(HEAD)(outputs, targets, counts)
        return value * float("nan") if len(seen) == spoilt else value

    seen: list[dict[str, torch.Tensor]] = []
    moments: list[float] = []
    steps, model, optimizer = start(encoder, 13, loss=loss)
    for record in steps:
        seen.append({name: value.detach().clone() for name, value in model.named_parameters()})
        moments.append(float(next(iter(optimizer.state.values()))["step"]))
        assert bool(record.skipped) == (record.step == spoilt + 1) == (not record.loss.isfinite())
    assert moments == [1, 2, 3, 3, 4, 5]
    changed = [any(not torch.equal(one[name], two[name]) for name in one) for one, two in pairwise(seen)]
    assert changed == [True, True, False, True, True]
    assert all(value.isfinite().all() for value in seen[-1].values())


def test_a_window_counts_skipped_steps_and_leaves_their_loss_out() -> None:
    window = Window(torch.device("cpu"))
    for step, loss in ((1, 1.0), (2, float("nan"))):
        skipped = torch.tensor(float(loss != loss))
        window.add(StepRecord(step, torch.tensor(loss), torch.tensor(loss), 1e-3, skipped, 4, 10, 12))
    summary = window.summary(steps_per_epoch=4)
    assert (summary["train/loss"], summary["train/grad_norm"], summary["skipped_steps"]) == (1.0, None, 1)


def test_steps_that_the_scaler_of_fp16_leaves_out_are_counted(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, True, True, False])
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda optimizer: next(answers)))
    window = Window(torch.device("cpu"), {"num_overflowed": 1.0})
    for record in start(encoder, 13, steps=4)[0]:
        window.add(record)
    summary = window.summary(steps_per_epoch=4)
    assert (summary["overflowed_steps"], summary["skipped_steps"]) == (3, 0)
    assert window.state()["num_overflowed"] == 3


def test_a_window_averages_its_steps() -> None:
    window = Window(torch.device("cpu"))
    for step, loss in ((1, 1.0), (2, 3.0)):
        window.add(StepRecord(step, torch.tensor(loss), torch.tensor(0.5), 1e-3, torch.tensor(0.0), 4, 10, 12))
    summary = window.summary(steps_per_epoch=4)
    assert (summary["train/loss"], summary["step"], summary["epoch"]) == (2.0, 2, 0.5)
    assert (window.num_examples, window.num_tokens, window.num_padded_tokens) == (8, 20, 24)


def test_what_memory_does_not_hold_is_divided_and_learned_alike(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, model = run(encoder, 13)
    seen: list[int] = []
    forward = torch.nn.Embedding.forward

    def small_memory(layer: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        seen.append(len(ids))
        if len(ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(layer, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", small_memory)
    made, other, _ = start(encoder, 13, may_divide=True)
    parts = list(made)
    assert [record.micro_batch_size for record in parts] == [None] + [3] * (len(parts) - 1)  # the first has 3 rows
    assert max(seen) == 13
    assert seen.count(13) == 1  # what did not fit once is not tried again
    for one, two in zip(whole, parts, strict=True):
        assert two.loss.item() == pytest.approx(one.loss.item(), abs=1e-6)
    for name, parameter in model.named_parameters():
        if not name.endswith("key.bias"):
            assert torch.allclose(parameter, other.get_parameter(name), atol=2e-5), name
    with pytest.raises(torch.OutOfMemoryError):
        list(start(encoder, 13)[0])
