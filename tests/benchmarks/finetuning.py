"""Fine-tuning examples per second: the loop of `bertcli finetune` against the `Trainer` with default and best flags."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from bertcli.cli.main import DEFAULT_ENVIRONMENT
from bertcli.data.batching import training_batches
from bertcli.data.encoding import Encoded
from bertcli.models.compile import compile_layers
from bertcli.models.padding_free import optimize_forward
from bertcli.models.seen_embeddings import train_seen_rows_only
from bertcli.recipe.schema import HardwareSection
from bertcli.training.devices import build_accelerator, cpu_computes_bf16
from bertcli.training.loop import train_steps
from bertcli.training.optimizer import build_optimizer
from tests.benchmarks.measure import Contender, compare, training_flops

Device = Literal["cpu", "cuda"]
NUM_LAYERS, HIDDEN_SIZE, VOCAB_SIZE, BATCH_SIZE = 6, 384, 30_522, 32
NUM_SST2_IDS = 11_572  # distinct ids of BERT's uncased vocabulary in the training split of SST-2
BEST_FLAGS: dict[str, Any] = {
    "train_sampling_strategy": "group_by_length",
    "optim": "adamw_torch_fused",
    "bf16": cpu_computes_bf16(),
}


def bert_config(
    num_layers: int = NUM_LAYERS, hidden_size: int = HIDDEN_SIZE, num_heads: int = 12, vocab_size: int = VOCAB_SIZE
) -> transformers.BertConfig:
    """A BERT with its usual dropout; the default shape is that of MiniLM-L6-H384."""
    return transformers.BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=4 * hidden_size,
    )


def label_loss(outputs: Any, targets: dict[str, torch.Tensor], counts: dict[str, int]) -> torch.Tensor:
    """The loss of a classifier, as the training loop calls it."""
    return torch.nn.functional.cross_entropy(outputs.logits, targets["labels"], reduction="sum") / counts["labels"]


def span_loss(outputs: Any, targets: dict[str, torch.Tensor], counts: dict[str, int]) -> torch.Tensor:
    """The loss of start and end logits, as the training loop calls it."""
    pairs = zip((outputs.start_logits, outputs.end_logits), targets["labels"].unbind(1), strict=True)
    total = sum(torch.nn.functional.cross_entropy(logits, labels, reduction="sum") for logits, labels in pairs)
    return total / (2 * counts["labels"])


def sst2_lengths(num_texts: int, seed: int = 0) -> list[int]:
    """Lengths in tokens distributed as in SST-2's training phrases: 13 on average, with few long ones."""
    lengths = np.random.default_rng(seed).gamma(1.45, 7.6, num_texts).clip(1, 64).astype(int)
    return (lengths + 2).tolist()


def squad_lengths(num_pairs: int, seed: int = 0) -> list[int]:
    """Lengths in tokens distributed as in SQuAD's questions with passages: 170 on average, truncated to 384."""
    return np.random.default_rng(seed).gamma(6.0, 28.0, num_pairs).clip(40, 384).astype(int).tolist()


def random_token_ids(lengths: list[int], seen_ids: np.ndarray | None = None) -> list[list[int]]:
    """Sequences of random token ids, drawn from `seen_ids` (None: from the whole vocabulary)."""
    random = np.random.default_rng(1)
    choices = np.arange(1000, VOCAB_SIZE) if seen_ids is None else seen_ids
    return [random.choice(choices, length).tolist() for length in lengths]


class StepTimer(TrainerCallback):
    """Records when each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the `Trainer`."""
        self.times.append(now())


def now() -> float:
    """The time at which all work that was given to the device is done, in seconds."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def trainer_rate(
    model: torch.nn.Module,
    rows: Dataset,
    steps: int,
    collator: Any,
    *,
    flags: dict[str, Any],
    warmup_steps: int,
    batch_size: int = BATCH_SIZE,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str = "cpu",
) -> float:
    """Examples per second of the `Trainer` after its first steps."""
    timer = StepTimer()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=batch_size, max_steps=steps + warmup_steps,
            use_cpu=device == "cpu",
            save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no", **flags,
        )  # fmt: skip
        trainer = Trainer(
            model, arguments, train_dataset=rows, data_collator=collator, callbacks=[timer], processing_class=tokenizer
        )
        trainer.train()
    return steps * batch_size / (timer.times[-1] - timer.times[warmup_steps - 1])


def bertcli_rate(
    model: torch.nn.Module,
    batches: Callable[[Accelerator], Iterator[Any]],
    loss: Callable[..., torch.Tensor],
    steps: int,
    *,
    warmup_steps: int,
    compiled: bool = False,
    seen_ids: np.ndarray | None = None,
    device: Device = "cpu",
    before_timing: Callable[[], None] = lambda: None,
) -> float:
    """Examples per second of bertcli's training loop after its first steps.

    Args:
        seen_ids: the distinct token ids of the batches; None: any.
        before_timing: called when the first steps are done.
    """
    accelerator = build_accelerator(HardwareSection(device=device))
    if seen_ids is not None:
        train_seen_rows_only(model, seen_ids)
    optimize_forward(model, accelerator.device)
    if compiled:
        compile_layers(model)
    optimizer = build_optimizer(model, learning_rate=2e-5, weight_decay=0.01, betas=(0.9, 0.999), epsilon=1e-8)
    model, optimizer = accelerator.prepare(model, optimizer)
    start, num_examples = 0.0, 0
    for record in train_steps(
        accelerator, model, optimizer, lambda step: 2e-5, batches(accelerator), loss, max_grad_norm=1.0
    ):
        if record.step > warmup_steps:
            num_examples += record.num_examples
        if record.step == warmup_steps:
            start = now()
            before_timing()
        if record.step == steps + warmup_steps:
            break
    return num_examples / (now() - start)


def bench(tokenizer: PreTrainedTokenizerBase, rounds: int) -> None:
    """Classification with SST-2's lengths, question answering with SQuAD's."""
    sst2_ids = np.random.default_rng(2).choice(VOCAB_SIZE, NUM_SST2_IDS, replace=False)
    for title, lengths, seen_ids, head, max_length, batch_size in (
        ("fine-tuning, SST-2 lengths, batch 32", sst2_lengths(80 * BATCH_SIZE), sst2_ids,
         "SequenceClassification", 128, BATCH_SIZE),
        ("fine-tuning, SQuAD lengths, batch 8", squad_lengths(24 * 8), None, "QuestionAnswering", 384, 8),
    ):  # fmt: skip
        _compare(tokenizer, title, lengths, seen_ids, head, max_length, batch_size, rounds)


def _compare(
    tokenizer: PreTrainedTokenizerBase,
    title: str,
    lengths: list[int],
    seen_ids: np.ndarray | None,
    head: str,
    max_length: int,
    batch_size: int,
    rounds: int,
) -> None:
    """Length-grouped batches vary in cost, so they are timed over a full epoch, after another one."""
    epoch, few_steps = len(lengths) // batch_size, 2
    ids = random_token_ids(lengths, seen_ids)
    is_span = head == "QuestionAnswering"
    labels = np.arange(len(ids)) % 2
    label_columns = {"start_positions": labels, "end_positions": labels} if is_span else {"labels": labels}
    rows = Dataset.from_dict({"input_ids": ids, **label_columns})
    pad_to_longest = DataCollatorWithPadding(tokenizer)
    pad_to_max_length = DataCollatorWithPadding(tokenizer, padding="max_length", max_length=max_length)

    def build_model() -> torch.nn.Module:
        torch.manual_seed(0)
        model: torch.nn.Module = getattr(transformers, f"BertFor{head}")(bert_config())
        return model

    offsets = np.concatenate(([0], np.cumsum(lengths)))
    input_ids = np.concatenate([np.asarray(row, dtype=np.int32) for row in ids])
    targets = np.stack((labels, labels), axis=1) if is_span else labels
    encoded = Encoded(input_ids, None, offsets, np.arange(len(ids)), targets, 0)

    def batches(_: Accelerator) -> Iterator[Any]:
        return training_batches(
            encoded, global_batch_size=batch_size, micro_batch_size=batch_size, seed=0, start_step=0, total_steps=10_000
        )

    loss = span_loss if is_span else label_loss

    def trainer(steps: int, collator: Any, **flags: Any) -> Callable[[], float]:
        return lambda: trainer_rate(
            build_model(), rows, steps, collator, flags=flags, warmup_steps=steps, batch_size=batch_size,
            tokenizer=tokenizer,
        )  # fmt: skip

    def bertcli(*, compiled: bool = False) -> float:
        return bertcli_rate(
            build_model(), batches, loss, epoch, warmup_steps=epoch, compiled=compiled, seen_ids=seen_ids
        )

    precision = ", bf16" if BEST_FLAGS["bf16"] else ""
    best_flags = f"Trainer, best flags: grouped by length, fused AdamW{precision}"
    mean = float(np.mean(lengths))
    compare(title, "examples/s", [
        Contender(f"Trainer, padded to {max_length} (default of the example script)",
                  trainer(few_steps, pad_to_max_length)),
        Contender("Trainer, padded to the longest", trainer(epoch // 4, pad_to_longest)),
        Contender(best_flags, trainer(epoch, pad_to_longest, **BEST_FLAGS)),
        Contender("the same, with bertcli's torch settings", trainer(epoch, pad_to_longest, **BEST_FLAGS),
                  DEFAULT_ENVIRONMENT),
        Contender("bertcli, hardware.compile=true", lambda: bertcli(compiled=True), DEFAULT_ENVIRONMENT),
        Contender("bertcli", bertcli, DEFAULT_ENVIRONMENT),
    ], rounds, training_flops(NUM_LAYERS, HIDDEN_SIZE, mean, mean))  # fmt: skip
