"""Fine-tuning as in transformers' example scripts, with the `Trainer`'s best flags: the peer of whole commands.

`python -m tests.benchmarks.trainer_script TASK MODEL TRAIN VALIDATION OUTPUT EPOCHS [MAX_ROWS]`: loads Parquet files,
tokenizes, trains, evaluates and saves, as `run_glue.py`, `run_ner.py` and `run_qa.py` do. TASK is `classification`,
`tags` or `questions`.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

MAX_LENGTH, MAX_QUESTION_LENGTH, STRIDE = 128, 384, 128
IGNORED_LABEL = -100


def classification(tokenizer: Any, model: str, splits: dict[str, Dataset]) -> tuple[Any, ...]:
    """Texts with a label, padded to the longest of a batch."""
    names = [name for name in ("sentence", "sentence1", "sentence2") if name in splits["train"].column_names]

    def encode(rows: dict[str, Any]) -> Any:
        return tokenizer(*(rows[name] for name in names), truncation=True, max_length=MAX_LENGTH)

    def accuracy(output: Any) -> dict[str, float]:
        return {"accuracy": float((output.predictions.argmax(-1) == output.label_ids).mean())}

    encoded = {name: rows.map(encode, batched=True, remove_columns=[*names, "idx"]) for name, rows in splits.items()}
    classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    return classifier, encoded, DataCollatorWithPadding(tokenizer), accuracy


def tags(tokenizer: Any, model: str, splits: dict[str, Dataset]) -> tuple[Any, ...]:
    """Words with tags; the label of a word belongs to its first token."""
    from seqeval.metrics import f1_score

    names = splits["train"].features["ner_tags"].feature.names

    def encode(rows: dict[str, Any]) -> Any:
        output = tokenizer(rows["tokens"], truncation=True, max_length=MAX_LENGTH, is_split_into_words=True)
        output["labels"] = []
        for index, labels in enumerate(rows["ner_tags"]):
            words, previous, aligned = output.word_ids(index), None, []
            for word in words:
                aligned.append(IGNORED_LABEL if word is None or word == previous else labels[word])
                previous = word
            output["labels"].append(aligned)
        return output

    def entity_f1(output: Any) -> dict[str, float]:
        kept = output.label_ids != IGNORED_LABEL
        both = [
            [[names[label] for label in row[mask]] for row, mask in zip(rows, kept, strict=True)]
            for rows in (output.label_ids, output.predictions.argmax(-1))
        ]
        return {"f1": float(f1_score(*both))}

    encoded = {name: rows.map(encode, batched=True, remove_columns=rows.column_names) for name, rows in splits.items()}
    tagger = AutoModelForTokenClassification.from_pretrained(model, num_labels=len(names))
    return tagger, encoded, DataCollatorForTokenClassification(tokenizer), entity_f1


def questions(tokenizer: Any, model: str, splits: dict[str, Dataset]) -> tuple[Any, ...]:
    """Questions with a passage in overlapping windows; the share of windows whose start and end are found."""

    def encode(rows: dict[str, Any]) -> Any:
        output = tokenizer(
            [question.lstrip() for question in rows["question"]], rows["context"], truncation="only_second",
            max_length=MAX_QUESTION_LENGTH, stride=STRIDE, return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        output["start_positions"], output["end_positions"] = [], []
        for index, row in enumerate(output.pop("overflow_to_sample_mapping")):
            answer, sequences = rows["answers"][row], output.sequence_ids(index)
            start = answer["answer_start"][0]
            end = start + len(answer["text"][0])
            offsets = output["offset_mapping"][index]
            inside = [
                token
                for token, (first, last) in enumerate(offsets)
                if sequences[token] == 1 and first < end and last > start
            ]
            output["start_positions"].append(inside[0] if inside else 0)
            output["end_positions"].append(inside[-1] if inside else 0)
        output.pop("offset_mapping")
        return output

    def exact(output: Any) -> dict[str, float]:
        both = zip(output.predictions, output.label_ids, strict=True)
        return {"exact": float(np.logical_and.reduce([logits.argmax(-1) == gold for logits, gold in both]).mean())}

    encoded = {name: rows.map(encode, batched=True, remove_columns=rows.column_names) for name, rows in splits.items()}
    return AutoModelForQuestionAnswering.from_pretrained(model), encoded, DataCollatorWithPadding(tokenizer), exact


TASKS = {"classification": (classification, 32), "tags": (tags, 32), "questions": (questions, 8)}


def main(task: str, model: str, train: str, validation: str, output: str, epochs: str, max_rows: str = "") -> None:
    """Fine-tune, evaluate after each epoch, save."""
    from bertcli.training.devices import cpu_computes_bf16

    files = {"train": train, "validation": validation}
    splits = {name: load_dataset("parquet", data_files=file, split="train") for name, file in files.items()}
    if max_rows:
        splits["train"] = splits["train"].shuffle(seed=1).select(range(int(max_rows)))
    prepare, batch_size = TASKS[task]
    tokenizer = AutoTokenizer.from_pretrained(model)
    built, encoded, collator, metrics = prepare(tokenizer, model, splits)
    arguments = TrainingArguments(
        output, num_train_epochs=float(epochs), per_device_train_batch_size=batch_size, per_device_eval_batch_size=64,
        learning_rate=5e-5, warmup_steps=0.1, weight_decay=0.01, eval_strategy="epoch", save_strategy="epoch",
        save_total_limit=2, train_sampling_strategy="group_by_length", optim="adamw_torch_fused",
        bf16=cpu_computes_bf16(), use_cpu=True, report_to=[], disable_tqdm=True, seed=1,
    )  # fmt: skip
    trainer = Trainer(
        built, arguments, train_dataset=encoded["train"], eval_dataset=encoded["validation"], data_collator=collator,
        processing_class=tokenizer, compute_metrics=metrics,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    print(trainer.evaluate())


if __name__ == "__main__":
    main(*sys.argv[1:])
