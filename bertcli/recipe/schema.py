"""The typed recipe: every key with its type, default and meaning, in one place. Frozen; no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, WithJsonSchema, field_validator, model_validator

from bertcli.tasks.task import Section, Task

Size = Literal["tiny", "mini", "small", "medium", "base", "large"]
LongInputs = Literal["keep_head", "keep_tail", "keep_head_and_tail", "windows"]
ONE_OR_MORE = {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}, "minItems": 1}]}
Tracker = Literal[
    "tensorboard", "wandb", "mlflow", "trackio", "aim", "comet_ml", "clearml", "dvclive", "swanlab"
]  # of Accelerate
SPEED_ONLY = {"hardware"}  # sections in which a resumed run may differ
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # as far as NumPy's seeds go
Seeds = Annotated[tuple[Seed, ...], Strict(False), Field(min_length=1), WithJsonSchema(ONE_OR_MORE)]


class ModelSection(Section):
    """Which encoder to start from: a trained one (`name`) or fresh weights of a given `size`."""

    name: str | None = Field(None, description="hub name, model folder or run folder; null: fresh weights")
    size: Size = Field("base", description="BERT size when the weights are fresh")
    tokenizer: str | None = Field(
        None, description="tokenizer, if not the model's own; null with fresh weights: made from the training texts"
    )
    vocabulary_size: int = Field(8192, ge=64, description="entries of a tokenizer made from the training texts")
    dropout: float | None = Field(None, ge=0, lt=1, description="all dropout rates of the model; null: as it comes")
    new_head: bool = Field(False, description="discard the model's own classifier and make a new one")


class DataSection(Section):
    """How rows become model inputs."""

    max_length: int = Field(128, ge=8, description="tokens; longer inputs are cut, the longer text of a pair first")
    long_inputs: LongInputs = Field(
        "keep_head",
        description="what is read of a single text that is too long; `windows`: all of it, the answers averaged",
    )
    doc_stride: int | None = Field(
        None, ge=0, description="tokens that neighbouring windows of a long text share; null: a third of a window"
    )
    context_tokens: int = Field(
        0,
        ge=0,
        description="tokens of the rows around a row that are read along with it (token classification)",
    )
    mark_capitals: bool = Field(
        False,
        description="give words with a capital letter the second segment's embedding, which tells them apart where a "
        "vocabulary has small letters alone (token classification)",
    )
    max_question_length: int = Field(64, ge=1, description="tokens; longer questions are cut (question answering)")
    max_train_examples: int | None = Field(None, ge=1, description="use a random part of the training rows")
    max_eval_examples: int | None = Field(None, ge=1, description="use the first rows of each evaluation split")


class OptimizationSection(Section):
    """How a model learns, whatever it learns."""

    epochs: float = Field(3.0, gt=0, description="passes over the training rows")
    max_steps: int | None = Field(None, ge=1, description="optimiser steps; overrides `epochs`")
    global_batch_size: int = Field(32, ge=1, description="examples an optimiser step, over all processes")
    learning_rate: float = Field(2e-5, gt=0, description="peak rate")
    schedule: Literal["linear", "cosine", "constant", "inverse_sqrt"] = Field(
        "linear", description="shape after the warm-up"
    )
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of the steps with a rising rate")
    warmup_steps: int | None = Field(None, ge=0, description="steps; overrides `warmup_ratio`")
    weight_decay: float = Field(0.01, ge=0, description="AdamW decay; none on biases and LayerNorm")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW first-moment decay")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW second-moment decay")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW denominator term")
    max_grad_norm: float | None = Field(1.0, gt=0, description="gradient norm to clip at; null: no clipping")
    non_finite: Literal["stop", "skip"] = Field(
        "stop", description="what follows a loss or gradient that is no number: the end, or the next step"
    )
    seed: Seeds = Field((42,), description="one seed or a list; a list is a set of runs")

    @field_validator("seed", mode="before")
    @classmethod
    def _one_seed_is_a_list_of_one(cls, given: object) -> object:
        return (given,) if isinstance(given, int) else given


class StrategySection(Section):
    """Which weights of a trained encoder learn, when, and how fast."""

    strategy: Literal["full", "features", "gradual", "lora"] = Field(
        "full",
        description="what learns: all; only what follows the encoder; one layer more at a time, from the top; "
        "low-rank additions (LoRA)",
    )
    unfreeze_every_epochs: float | None = Field(
        None, gt=0, description="gradual: how long until the next layer joins; null: all have joined half-way"
    )
    unfreeze_every_steps: int | None = Field(None, ge=1, description="steps; overrides `unfreeze_every_epochs`")
    freeze_embeddings: bool = Field(False, description="the embeddings stay as they are")
    freeze_layers: int = Field(
        0, ge=0, description="so many of the lowest layers, and the embeddings, stay as they are"
    )
    reinitialise_layers: int = Field(
        0, ge=0, description="so many of the highest layers, and the pooling layer, begin with fresh weights"
    )
    layer_decay: float = Field(1.0, gt=0, le=1, description="rate of each layer, as a share of that of the one above")
    head_learning_rate: float | None = Field(
        None, gt=0, description="peak rate of what follows the encoder; null: `learning_rate`"
    )
    lora_rank: int = Field(8, ge=1, description="rank of the additions to each matrix of the encoder")
    lora_alpha: int = Field(16, ge=1, description="weight of the additions, times the rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the additions")
    lora_merge: bool = Field(
        False, description="save the whole model, additions merged, instead of the additions alone"
    )


class TrainingSection(OptimizationSection, StrategySection):
    """Everything that changes what is learned."""

    teacher: str | None = Field(
        None, description="run or model of the same task whose answers are learned beside the labels (distillation)"
    )
    teacher_weight: float = Field(0.5, gt=0, le=1, description="share of the loss that compares with the teacher")
    teacher_temperature: float = Field(2.0, gt=0, description="what the scores of both are divided by to compare them")
    teacher_hidden_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the distance from the teacher's hidden states of first tokens, added to the loss",
    )

    class_weights: Literal["auto"] | dict[str, float] | None = Field(
        None, description="weight of each label in the loss; auto: as rare as it is in the training rows"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the certainty given to all labels alike")
    token_cutoff: float = Field(
        0.0, ge=0, lt=1, description="share of the tokens hidden from attention at a step, other ones each time"
    )


class AnswersSection(Section):
    """How scores become answers."""

    thresholds: Literal["tuned"] | dict[str, float] | None = Field(
        None,
        description="probability a label must exceed to be the answer (several labels at once, or the second of two); "
        "tuned: those with the best F1 on the validation rows; null: one half",
    )

    consistent_tags: bool = Field(
        True,
        description="answer with the likeliest tags that can follow each other, so that no entity goes on that never "
        "began; false: with each word's likeliest tag",
    )
    n_best_size: int = Field(20, ge=1, description="starts and ends of spans looked at in a window, and answers listed")
    max_answer_length: int = Field(30, ge=1, description="tokens of the longest span")
    null_score_diff_threshold: float = Field(
        0.0, description="say `no answer` if its score is better than the best answer's by more than this"
    )


class EvaluationSection(Section):
    """When to look, and what counts as best."""

    every_epochs: float | None = Field(1.0, gt=0, description="evaluate and save a checkpoint so often")
    every_steps: int | None = Field(None, ge=1, description="steps; overrides `every_epochs`")
    keep_checkpoints: int = Field(2, ge=1, description="the newest ones that are kept; the best model is kept beside")
    best_by: str | None = Field(None, description="metric that chooses the best checkpoint; null: the task's main one")
    early_stopping_patience: int | None = Field(
        None, ge=1, description="stop after so many evaluations without a better one"
    )


class HardwareSection(Section):
    """Changes only the speed. A resumed run may differ here, and only here."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to compute")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="arithmetic of the model")
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="examples at once on one device; accumulation follows from it"
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="let torch.compile make few of a layer's many small operations, which needs a C++ compiler; auto: "
        "on a GPU, if a long run's own steps show that it is faster",
    )
    shard: bool = Field(
        False, description="divide weights, gradients and moments among the processes (FSDP); for large models"
    )
    eval_batch_tokens: int = Field(8192, ge=16, description="tokens at once when evaluating or predicting")
    log_every_steps: int = Field(20, ge=1, description="steps between two lines of train.jsonl")
    trackers: Annotated[tuple[Tracker, ...], Strict(False)] = Field(
        (), description="programs that are told the lines of train.jsonl and eval.jsonl as well; install them beside"
    )

    def with_asked(self, asked: Self | None) -> Self:
        """The same but for the keys that were set in another one, such as on the command line."""
        return self.model_copy(update=asked.model_dump(exclude_unset=True)) if asked else self


class Recipe(Section):
    """Everything a person wants of one run."""

    task: str | Task = Field(description="a row's name, or a row of your own")
    model: ModelSection = Field(ModelSection(), description="which encoder")
    data: DataSection = Field(DataSection(), description="how rows become inputs")
    training: TrainingSection = Field(TrainingSection(), description="what changes the result")
    answers: AnswersSection = Field(AnswersSection(), description="how scores become answers")
    evaluation: EvaluationSection = Field(EvaluationSection(), description="when to look, what is best")
    hardware: HardwareSection = Field(HardwareSection(), description="what changes only the speed")

    def with_seed(self, seed: int) -> Self:
        """The same with one seed alone."""
        return self.model_copy(update={"training": self.training.model_copy(update={"seed": (seed,)})})

    @model_validator(mode="after")
    def _check_batches(self) -> Self:
        micro = self.hardware.micro_batch_size
        if micro != "auto" and micro > self.training.global_batch_size:
            raise ValueError(
                f"hardware.micro_batch_size {micro} is larger than "
                f"training.global_batch_size {self.training.global_batch_size}"
            )
        return self
