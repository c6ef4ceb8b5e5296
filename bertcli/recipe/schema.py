"""The typed fine-tuning recipe: every key with its type, default and meaning. Frozen; no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, Strict, WithJsonSchema, field_validator, model_validator

from bertcli.errors import quoted
from bertcli.recipe.member_names import fold_name
from bertcli.tasks.task import PATH_OR_LIST_SCHEMA, Section, Task

Size = Literal["tiny", "mini", "small", "medium", "base", "large"]
LongInputs = Literal["keep_head", "keep_tail", "keep_head_and_tail", "windows"]
INT_OR_LIST_SCHEMA = {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}, "minItems": 1}]}
Tracker = Literal[
    "tensorboard", "wandb", "mlflow", "trackio", "aim", "comet_ml", "clearml", "dvclive", "swanlab"
]  # supported by Accelerate
RESUME_MAY_CHANGE = {"hardware"}  # sections that may differ when a run is resumed
# Upper bounds catch typos before they exhaust memory or overflow.
Count = Annotated[int, Field(le=10**12)]
Length = Annotated[int, Field(le=10**6)]  # in tokens, of one sequence
BatchSize = Annotated[int, Field(le=10**6)]
VocabSize = Annotated[int, Field(le=2_000_000)]
Epochs = Annotated[float, Field(gt=0, le=100_000)]
LearningRate = Annotated[float, Field(gt=0, le=10)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # the range of NumPy's seeds
Duration = Annotated[str, Field(pattern=r"^(0*[1-9]\d*(\.\d+)?|0+\.\d*[1-9]\d*)[smh]$")]  # such as 90s, 30m or 2h


def parse_seconds(duration: str | None) -> float | None:
    """Parse a `Duration`: `30m` → 1800.0."""
    return None if duration is None else float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


def _check_distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"found {[*seeds]!s:.80}, expected distinct seeds: list each seed once")
    return seeds


Seeds = Annotated[
    tuple[Seed, ...],
    Strict(False),
    Field(min_length=1),
    AfterValidator(_check_distinct),
    WithJsonSchema(INT_OR_LIST_SCHEMA),
]


MAX_ADDED_TOKENS, MAX_TOKEN_CHARS = 10_000, 100


def added_token_problem(token: str) -> str | None:
    """Return why a text cannot be added to a vocabulary, as `expected …`; None if it can."""
    if not token or any(map(str.isspace, token)):
        return "expected a single word or marker without spaces"
    if not token.isprintable():
        return "expected printable characters"
    return None if len(token) <= MAX_TOKEN_CHARS else f"expected at most {MAX_TOKEN_CHARS} characters"


def _check_added_tokens(value: object) -> object:
    if isinstance(value, str) and value.strip():
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(token, str) for token in value):
        raise ValueError(
            f"found {quoted(value)}, expected a list of words and markers, or the path of a file with one per line"
        )
    for token in value:
        if (problem := added_token_problem(token)) is not None:
            raise ValueError(f"found {quoted(token)}, {problem}")
    if len(value) > MAX_ADDED_TOKENS:
        raise ValueError(
            f"found {len(value):,} tokens, expected at most {MAX_ADDED_TOKENS:,}; add only the most frequent words"
        )
    return tuple(value)


AddedTokenList = Annotated[
    str | tuple[str, ...], BeforeValidator(_check_added_tokens), WithJsonSchema(PATH_OR_LIST_SCHEMA)
]


class ModelSection(Section):
    """The encoder to fine-tune: a pretrained one (`name`), or a randomly initialized one of a given `size`."""

    name: str | None = Field(None, description="Hub model ID, model folder or run folder; null: randomly initialized")
    size: Size = Field("base", description="BERT size if randomly initialized")
    tokenizer: str | None = Field(
        None,
        description="tokenizer; null: the model's, or trained on the training texts if randomly initialized",
    )
    vocab_size: VocabSize = Field(
        8192, ge=64, description="vocabulary size of a tokenizer trained on the training texts"
    )
    add_tokens: AddedTokenList = Field(
        (),
        description="words and markers such as [DRUG] to add to the vocabulary: a list, or a file with one per line; "
        "each new embedding is the mean of those of the token's pieces",
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="all dropout rates; null: the model's")
    new_head: bool = Field(False, description="replace the model's classifier with a randomly initialized one")


class DataSection(Section):
    """How rows are converted to model inputs."""

    max_length: Length = Field(
        128, ge=8, description="maximum sequence length in tokens; in a pair, the longer text is truncated first"
    )
    long_inputs: LongInputs = Field(
        "keep_head",
        description="part of a single text to keep if it exceeds `max_length`; windows: all of it, averaging logits",
    )
    doc_stride: Length | None = Field(
        None, ge=0, description="overlap in tokens of neighboring windows of a long text; null: a third of a window"
    )
    context_tokens: Length = Field(
        0, ge=0, description="number of tokens from neighboring rows added as context (token classification)"
    )
    casing_feature: bool = Field(
        False,
        description="mark capitalized words with token type 1 for an uncased model (token classification)",
    )
    max_question_length: Length = Field(
        64, ge=1, description="maximum question length in tokens; longer ones are truncated (question answering)"
    )
    skip_unlabelled: bool = Field(False, description="skip rows without a label; false: they are an error")
    max_train_examples: Count | None = Field(None, ge=1, description="size of a random subset of the training rows")
    max_eval_examples: Count | None = Field(
        None,
        ge=1,
        description="size of a random subset of each evaluation split, the same for every seed, in the original order "
        "(with `context_tokens`: the first rows)",
    )
    folds: int | None = Field(
        None,
        ge=2,
        le=1000,
        description="cross-validation: number of parts of the training rows; a model for each is trained on the others",
    )
    fold: int | None = Field(
        None, ge=1, le=1000, description="the fold to hold out for validation, from 1; null: one run for each"
    )

    @model_validator(mode="after")
    def _check_fold(self) -> Self:
        if self.fold is not None and self.folds is None:
            raise ValueError("`fold` requires `folds`, the number of folds")
        if self.fold is not None and self.folds is not None and self.fold > self.folds:
            raise ValueError(f"found fold {self.fold}, expected at most {self.folds}, the number of `folds`")
        return self


class OptimizationSection(Section):
    """Optimization hyperparameters shared by fine-tuning and pretraining."""

    epochs: Epochs = Field(3.0, description="passes over the training rows")
    max_steps: Count | None = Field(None, ge=1, description="number of optimizer steps; overrides `epochs`")
    global_batch_size: BatchSize = Field(32, ge=1, description="examples per optimizer step, over all processes")
    learning_rate: LearningRate = Field(2e-5, description="peak learning rate")
    schedule: Literal["linear", "cosine", "constant", "inverse_sqrt", "warmup_stable_decay"] = Field(
        "linear", description="learning rate schedule after the warmup"
    )
    decay_ratio: float = Field(0.1, gt=0, le=1, description="warmup_stable_decay: fraction of the steps used for decay")
    decay_shape: Literal["1-sqrt", "linear", "cosine"] = Field(
        "1-sqrt", description="warmup_stable_decay: how the learning rate decays"
    )
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="fraction of the steps used for warmup")
    warmup_steps: Count | None = Field(None, ge=0, description="number of warmup steps; overrides `warmup_ratio`")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay; not applied to biases and LayerNorm")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta1")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW beta2")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW epsilon")
    max_grad_norm: float | None = Field(1.0, gt=0, description="clip gradients at this norm; null: no clipping")
    non_finite: Literal["stop", "skip"] = Field(
        "stop", description="on a non-finite loss or gradient: stop the run, or skip the step"
    )
    seed: Seeds = Field((42,), description="one seed, or a list: one run per seed, reported as mean ± sd")

    @field_validator("seed", mode="before")
    @classmethod
    def _wrap_single_seed(cls, value: object) -> object:
        return (value,) if isinstance(value, int) else value


class StrategySection(Section):
    """Which weights are trained, when, and at which learning rate."""

    strategy: Literal["full", "features", "gradual", "lora"] = Field(
        "full",
        description="full (all weights), features (only the head, on frozen encoder outputs), gradual (unfreeze layer "
        "by layer from the top) or lora (low-rank adapters)",
    )
    unfreeze_every_epochs: float | None = Field(
        None, gt=0, description="gradual: epochs between unfreezing layers; null: all unfrozen after half of the steps"
    )
    unfreeze_every_steps: Count | None = Field(
        None, ge=1, description="gradual: steps between unfreezing layers; overrides `unfreeze_every_epochs`"
    )
    freeze_embeddings: bool = Field(False, description="freeze the embeddings")
    freeze_layers: Count = Field(0, ge=0, description="freeze the embeddings and this many of the lowest layers")
    reinit_layers: Count = Field(
        0, ge=0, description="reinitialize the pooler and this many of the highest layers (Zhang et al. 2021)"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="ratio of each layer's learning rate to that of the layer above"
    )
    head_learning_rate: LearningRate | None = Field(
        None, description="peak learning rate of the head; null: `learning_rate`"
    )
    lora_rank: int = Field(8, ge=1, le=10_000, description="rank of the LoRA matrices")
    lora_alpha: Count = Field(16, ge=1, description="LoRA alpha: adapters are scaled by alpha / rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of the adapters")
    lora_merge: bool = Field(False, description="save the full model with merged adapters, not only the adapters")


class TrainingSection(OptimizationSection, StrategySection):
    """Training hyperparameters. Lists of values define a grid: one run per combination."""

    teacher: str | None = Field(
        None, description="run or model of the same task to distill from: its outputs are targets besides the labels"
    )
    teacher_weight: float = Field(
        0.5, gt=0, le=1, description="weight of the distillation loss; the loss on the labels gets the rest"
    )
    teacher_temperature: float = Field(2.0, gt=0, description="temperature of the distillation loss")
    teacher_hidden_weight: float = Field(
        0.0,
        ge=0,
        description="weight of an additional loss on the distance to the teacher's [CLS] hidden states",
    )

    loss: Literal["cross_entropy", "focal"] = Field(
        "cross_entropy",
        description="loss of labels and tags; focal: weighted less where the model is already right (Lin et al. 2017)",
    )
    focal_gamma: float = Field(
        2.0, ge=0, le=100, description="focal: exponent of the weight (1 - p), p the probability of the gold label"
    )
    balance: Literal["labels"] | None = Field(
        None,
        description="labels: over-sample rows of rare labels, so that all labels are equally frequent in an epoch",
    )
    class_weights: Literal["auto"] | dict[str, float] | None = Field(
        None, description="loss weight per label; auto: inversely proportional to its frequency"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing factor")
    token_cutoff: float = Field(
        0.0, ge=0, lt=1, description="fraction of tokens hidden from attention, sampled at each step"
    )


class AnswersSection(Section):
    """How logits are decoded into predictions."""

    thresholds: Literal["tuned"] | dict[str, float] | None = Field(
        None,
        description="probability threshold per label (multi-label, or the second of two labels); tuned: for the best "
        "F1 on the validation split; null: 0.5",
    )
    calibrated: bool = Field(
        False,
        description="divide the logits by the temperature that fits the validation split best, so that probabilities "
        "match how often predictions are right; it is merged into the saved weights",
    )
    constrained_decoding: bool = Field(
        True,
        description="decode the most probable valid tag sequence (IOB2, IOBES, BILOU); false: the best tag per word",
    )
    n_best_size: Count = Field(
        20, ge=1, description="number of start and end positions considered per window, and size of the n-best list"
    )
    max_answer_length: Length = Field(30, ge=1, description="maximum answer length in tokens")
    null_score_diff_threshold: float = Field(
        0.0, description="predict no answer if the null score exceeds the best answer's score by more than this"
    )


class EvaluationSection(Section):
    """When to evaluate and save checkpoints, and which checkpoint is best."""

    every_epochs: float | None = Field(1.0, gt=0, description="epochs between evaluations, each with a checkpoint")
    every_steps: Count | None = Field(None, ge=1, description="steps between evaluations; overrides `every_epochs`")
    keep_checkpoints: Count = Field(
        2, ge=1, description="number of recent checkpoints to keep; the best model is always kept"
    )
    best_by: str | None = Field(
        None,
        description="validation score that selects the best model, a metric or loss, and of equal scores the one with "
        "the lowest loss; null: the task's main metric",
    )
    early_stopping_patience: Count | None = Field(
        None, ge=1, description="stop after this many evaluations without improvement"
    )


class HardwareSection(Section):
    """How the run executes, not what it learns. These settings may differ when a run is resumed."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="device; auto: a GPU if available")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="mixed precision; auto: bf16 if the device supports it, else fp16 on a GPU, fp32 on a CPU"
    )
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="examples per forward pass and device; gradients are accumulated over the global batch"
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="use torch.compile (requires a C++ compiler); auto: in long runs on a GPU, if a trial is faster",
    )
    gradient_checkpointing: Literal["auto"] | bool = Field(
        "auto",
        description="recompute activations in the backward pass, which saves memory and costs about a third more "
        "computation; auto: if a step would not fit into memory otherwise",
    )
    shard: bool = Field(
        False, description="shard weights, gradients and optimizer states over processes (FSDP), for large models"
    )
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto", description="threads per process on a CPU; auto: as many as the model and its batches can use"
    )
    eval_batch_tokens: Count = Field(8192, ge=16, description="tokens per batch for evaluation and prediction")
    log_every_steps: Count = Field(20, ge=1, description="steps between lines in train.jsonl")
    trackers: Annotated[tuple[Tracker, ...], Strict(False)] = Field(
        (), description="experiment trackers that also receive the logged metrics; installed separately"
    )

    def with_overrides(self, overrides: Self | None) -> Self:
        """Return a copy with the keys that are explicitly set in `overrides`, such as on the command line."""
        return self.model_copy(update=overrides.model_dump(exclude_unset=True)) if overrides else self


class Recipe(Section):
    """Everything that defines one fine-tuning run."""

    task: str | Task = Field(description="name of a task definition, or an inline definition")
    model: ModelSection = Field(ModelSection(), description="the encoder to fine-tune")
    data: DataSection = Field(DataSection(), description="how rows are converted to model inputs")
    training: TrainingSection = Field(TrainingSection(), description="training hyperparameters")
    answers: AnswersSection = Field(AnswersSection(), description="how logits are decoded into predictions")
    evaluation: EvaluationSection = Field(
        EvaluationSection(), description="when to evaluate, and which checkpoint is best"
    )
    hardware: HardwareSection = Field(HardwareSection(), description="how the run executes, not what it learns")

    @property
    def is_cross_validation(self) -> bool:
        """Whether the recipe stands for a run per fold of the training rows."""
        return self.data.folds is not None and self.data.fold is None

    @property
    def representative(self) -> Self:
        """The recipe itself, as `Grid.representative` is one of its recipes."""
        return self

    @property
    def members(self) -> dict[str, Self]:
        """The recipe of each fold of a cross-validation, by the name of its run folder; empty for a single run."""
        if not self.is_cross_validation:
            return {}
        return {fold_name(fold): self.with_fold(fold) for fold in range(1, (self.data.folds or 0) + 1)}

    def with_fold(self, fold: int) -> Self:
        """Return a copy for one fold, from 1."""
        return self.model_copy(update={"data": self.data.model_copy(update={"fold": fold})})

    def with_seed(self, seed: int) -> Self:
        """Return a copy with a single seed."""
        return self.model_copy(update={"training": self.training.model_copy(update={"seed": (seed,)})})

    @model_validator(mode="after")
    def _check_micro_batch_size(self) -> Self:
        micro = self.hardware.micro_batch_size
        if micro != "auto" and micro > self.training.global_batch_size:
            raise ValueError(
                f"hardware.micro_batch_size {micro} is larger than "
                f"training.global_batch_size {self.training.global_batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _check_cross_validation(self) -> Self:
        if self.is_cross_validation and len(self.training.seed) > 1:
            raise ValueError(
                f"data.folds takes one training.seed, found {[*self.training.seed]!s:.80}; set one, and for others "
                "repeat the command with another --run"
            )
        if self.is_cross_validation and self.data.max_eval_examples is not None:
            raise ValueError("data.folds predicts every training row; remove data.max_eval_examples")
        if self.is_cross_validation and self.answers.thresholds == "tuned":
            raise ValueError(
                "answers.thresholds=tuned would tune thresholds on the fold that they are scored on; with data.folds, "
                "set them as numbers"
            )
        if self.is_cross_validation and self.answers.calibrated:
            raise ValueError(
                "answers.calibrated=true would fit the temperature to the fold that it is scored on; with data.folds, "
                "remove it"
            )
        return self
