"""Fine-tuning steps a second: the loop of `bertcli finetune` against the `Trainer`, at its defaults and at its best."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from bertcli.cli.main import ENVIRONMENT
from bertcli.data.batching import training_batches
from bertcli.data.encoding import Encoded
from bertcli.models.compile import compile_layers
from bertcli.models.padding_free import speed_up
from bertcli.models.seen_embeddings import learn_met_rows
from bertcli.recipe.schema import HardwareSection
from bertcli.training.devices import build_accelerator, cpu_computes_bf16
from bertcli.training.loop import train_steps
from bertcli.training.optimizer import build_optimizer
from tests.benchmarks.measure import Contender, race, training_flops

LAYERS, WIDTH, VOCABULARY, BATCH = 6, 384, 30_522, 32
IDS_OF_SST2 = 11_572  # different ones in its training set, of BERT's uncased vocabulary
BEST_FLAGS: dict[str, Any] = {
    "train_sampling_strategy": "group_by_length",
    "optim": "adamw_torch_fused",
    "bf16": cpu_computes_bf16(),
}


def config(
    layers: int = LAYERS, width: int = WIDTH, heads: int = 12, vocabulary: int = VOCABULARY
) -> transformers.BertConfig:
    """A BERT with its usual dropout, by default of the shape of MiniLM-L6-H384."""
    return transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )


def label_loss(outputs: Any, targets: dict[str, torch.Tensor], counts: dict[str, int]) -> torch.Tensor:
    """A classifier's, as the loop takes it."""
    return torch.nn.functional.cross_entropy(outputs.logits, targets["labels"], reduction="sum") / counts["labels"]


def span_loss(outputs: Any, targets: dict[str, torch.Tensor], counts: dict[str, int]) -> torch.Tensor:
    """That of starts and ends."""
    pairs = zip((outputs.start_logits, outputs.end_logits), targets["labels"].unbind(1), strict=True)
    total = sum(torch.nn.functional.cross_entropy(logits, at, reduction="sum") for logits, at in pairs)
    return total / (2 * counts["labels"])


def sentences(number: int, seed: int = 0) -> list[int]:
    """Lengths in tokens as SST-2's training phrases have them: 13 on average, long ones rare."""
    lengths = np.random.default_rng(seed).gamma(1.45, 7.6, number).clip(1, 64).astype(int)
    return (lengths + 2).tolist()


def passages(number: int, seed: int = 0) -> list[int]:
    """Lengths as SQuAD's questions with passages have them: 170 on average, cut at 384."""
    return np.random.default_rng(seed).gamma(6.0, 28.0, number).clip(40, 384).astype(int).tolist()


def ids_of(lengths: list[int], met: np.ndarray | None = None) -> list[list[int]]:
    """Token ids by chance, of those that are `met`."""
    random = np.random.default_rng(1)
    known = np.arange(1000, VOCABULARY) if met is None else met
    return [random.choice(known, length).tolist() for length in lengths]


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the `Trainer`."""
        self.times.append(time.perf_counter())


def trainer_rate(
    model: torch.nn.Module,
    rows: Dataset,
    steps: int,
    collator: Any,
    *,
    flags: dict[str, Any],
    warm_steps: int,
    batch: int = BATCH,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> float:
    """Examples a second of the whole `Trainer` after its first steps."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=batch, max_steps=steps + warm_steps, use_cpu=True, save_strategy="no",
            report_to=[], disable_tqdm=True, logging_strategy="no", **flags,
        )  # fmt: skip
        trainer = Trainer(
            model, arguments, train_dataset=rows, data_collator=collator, callbacks=[clock], processing_class=tokenizer
        )
        trainer.train()
    return steps * batch / (clock.times[-1] - clock.times[warm_steps - 1])


def our_rate(
    model: torch.nn.Module,
    batches: Callable[[Accelerator], Iterator[Any]],
    loss: Callable[..., torch.Tensor],
    steps: int,
    *,
    warm_steps: int,
    compiles: bool = False,
    met: np.ndarray | None = None,
) -> float:
    """Examples a second of our loop after its first steps, on texts of the ids that are `met`; None: of any."""
    accelerator = build_accelerator(HardwareSection(device="cpu"))
    if met is not None:
        learn_met_rows(model, met)
    speed_up(model, accelerator.device)
    if compiles:
        compile_layers(model)
    optimizer = build_optimizer(model, learning_rate=2e-5, weight_decay=0.01, betas=(0.9, 0.999), epsilon=1e-8)
    model, optimizer = accelerator.prepare(model, optimizer)
    start, examples = 0.0, 0
    for record in train_steps(
        accelerator, model, optimizer, lambda step: 2e-5, batches(accelerator), loss, max_grad_norm=1.0
    ):
        if record.step > warm_steps:
            examples += record.num_examples
        if record.step == warm_steps:
            start = time.perf_counter()
        if record.step == steps + warm_steps:
            break
    return examples / (time.perf_counter() - start)


def bench(tokenizer: PreTrainedTokenizerBase, rounds: int) -> None:
    """Classification at SST-2's lengths, question answering at SQuAD's."""
    met = np.random.default_rng(2).choice(VOCABULARY, IDS_OF_SST2, replace=False)
    for title, lengths, known, kind, padded_to, batch in (
        ("fine-tuning, SST-2 lengths, batch 32", sentences(80 * BATCH), met, "SequenceClassification", 128, BATCH),
        ("fine-tuning, SQuAD lengths, batch 8", passages(24 * 8), None, "QuestionAnswering", 384, 8),
    ):
        _race(tokenizer, title, lengths, known, kind, padded_to, batch, rounds)


def _race(
    tokenizer: PreTrainedTokenizerBase,
    title: str,
    lengths: list[int],
    met: np.ndarray | None,
    kind: str,
    padded_to: int,
    batch: int,
    rounds: int,
) -> None:
    """Batches of like length cost more or less by their length: of those, a whole epoch counts, after a whole one."""
    epoch, few = len(lengths) // batch, 2
    ids = ids_of(lengths, met)
    answers_spans = kind == "QuestionAnswering"
    labels = np.arange(len(ids)) % 2
    names = {"start_positions": labels, "end_positions": labels} if answers_spans else {"labels": labels}
    rows = Dataset.from_dict({"input_ids": ids, **names})
    to_longest = DataCollatorWithPadding(tokenizer)
    to_fixed = DataCollatorWithPadding(tokenizer, padding="max_length", max_length=padded_to)

    def fresh() -> torch.nn.Module:
        torch.manual_seed(0)
        model: torch.nn.Module = getattr(transformers, f"BertFor{kind}")(config())
        return model

    offsets = np.concatenate(([0], np.cumsum(lengths)))
    flat = np.concatenate([np.asarray(row, dtype=np.int32) for row in ids])
    given = np.stack((labels, labels), axis=1) if answers_spans else labels
    encoded = Encoded(flat, None, offsets, np.arange(len(ids)), given, 0)

    def batches(_: Accelerator) -> Iterator[Any]:
        return training_batches(
            encoded, global_batch_size=batch, micro_batch_size=batch, seed=0, start_step=0, total_steps=10_000
        )

    loss = span_loss if answers_spans else label_loss

    def trainer(steps: int, collator: Any, **flags: Any) -> Callable[[], float]:
        return lambda: trainer_rate(
            fresh(), rows, steps, collator, flags=flags, warm_steps=steps, batch=batch, tokenizer=tokenizer
        )

    def ours(*, compiles: bool = False) -> float:
        return our_rate(fresh(), batches, loss, epoch, warm_steps=epoch, compiles=compiles, met=met)

    precision = ", bf16" if BEST_FLAGS["bf16"] else ""
    mean = float(np.mean(lengths))
    race(title, "examples/s", [
        Contender(f"Trainer, padded to {padded_to} (the example script's default)", trainer(few, to_fixed)),
        Contender("Trainer, padded to the longest", trainer(epoch // 4, to_longest)),
        Contender(f"Trainer, best flags: by length, fused AdamW{precision}", trainer(epoch, to_longest, **BEST_FLAGS)),
        Contender("the same, torch set as bertcli does", trainer(epoch, to_longest, **BEST_FLAGS), ENVIRONMENT),
        Contender("bertcli, hardware.compile=true", lambda: ours(compiles=True), ENVIRONMENT),
        Contender("bertcli", ours, ENVIRONMENT),
    ], rounds, training_flops(LAYERS, WIDTH, mean, mean))  # fmt: skip
