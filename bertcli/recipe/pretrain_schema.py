"""The typed recipe of `bertcli pretrain`: corpus, tokenizer, model, objective, phases. Frozen; no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, Strict, WithJsonSchema, field_validator, model_validator

from bertcli.recipe.schema import (
    AddedTokenList,
    BatchSize,
    Count,
    Duration,
    Epochs,
    EvaluationSection,
    HardwareSection,
    LearningRate,
    Length,
    OptimizationSection,
    Size,
    VocabSize,
)
from bertcli.tasks.task import Encoding, Paths, Section, known_name, load_class

MaskingUnit = Literal["token", "whole_word", "span"]
OBJECTIVES: dict[str, str | type] = {
    "masked_lm": "bertcli.pretraining.masked_lm:MaskedLM",
    "replaced_token_detection": "bertcli.pretraining.replaced_token_detection:ReplacedTokenDetection",
    "causal_lm": "bertcli.pretraining.causal_lm:CausalLM",
    "span_corruption": "bertcli.pretraining.span_corruption:SpanCorruption",
}
"""Each objective's class by name, or its import path, so recipes can be read without importing any objective."""
ObjectiveName = Annotated[str, known_name(OBJECTIVES), WithJsonSchema({"type": "string", "enum": list(OBJECTIVES)})]
Pairs = Literal["next_sentence", "sentence_order"]
SHARED_KEYS = ("kind", "pairs", "short_seq_prob")  # of the objective section; the other keys are objective-specific
MAX_LAYERS, MAX_CONFIG_SIZE = 1000, 10**7  # in `config_overrides`; catch typos before they exhaust memory
TokenizerKind = Literal["wordpiece", "bpe", "unigram"]


class Source(Section):
    """One source of documents: text files or a dataset."""

    files: Paths = Field(
        (),
        description="text or JSON Lines, also as .gz, .zst or .bz2, or Parquet; `*` and `**` are wildcards",
    )
    dataset: str | None = Field(None, description="Hub dataset ID, folder in the Hub's layout, or `sample` (built in)")
    config: str | None = Field(None, description="configuration (subset) of the dataset")
    split: str = Field("train", description="split of the dataset")
    encoding: Encoding | None = Field(
        None, description="encoding of text files without a byte order mark, such as windows-1252; null: UTF-8"
    )
    column: str = Field("text", description="text column of JSON Lines, Parquet files and datasets")
    documents: Literal["blocks", "lines", "files"] = Field(
        "blocks",
        description="document unit in a text file: a block between empty lines (a line, if a single file has no empty "
        "lines), a line, or the whole file",
    )
    weight: float = Field(
        1.0, gt=0, le=100_000, description="passes over this source per epoch; 0.5: a random half of its documents"
    )

    @field_validator("files", mode="before")
    @classmethod
    def _wrap_single_path(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if bool(self.files) == (self.dataset is not None):
            raise ValueError("a source needs either `files` or `dataset`")
        return self


class CorpusSection(Section):
    """The pretraining text."""

    sources: Annotated[tuple[Source, ...], Strict(False)] = Field(min_length=1, description="sources of documents")
    held_out_fraction: float = Field(0.01, gt=0, lt=1, description="fraction of the documents held out for validation")
    max_documents: Count | None = Field(None, ge=2, description="use only the first documents of each source")
    max_held_out_tokens: Count = Field(500_000, ge=100, description="maximum number of held-out tokens to evaluate")


class TokenizerSection(Section):
    """The tokenizer: an existing one, or one trained on the corpus."""

    name: str | None = Field(
        None, description="Hub model ID, model folder or run folder; null: train a tokenizer on the corpus"
    )
    kind: TokenizerKind = Field("wordpiece", description="algorithm of a trained tokenizer (bpe: byte-level)")
    vocab_size: VocabSize = Field(
        30522, ge=300, description="vocabulary size of a trained tokenizer; the model's is padded to a multiple of 64"
    )
    lowercase: bool = Field(
        True,
        description="whether a trained tokenizer lowercases (wordpiece, unigram) and strips accents (wordpiece); bpe "
        "does neither",
    )
    sample_megabytes: float = Field(
        200.0, gt=0, description="amount of text to train the tokenizer on, from the start of each source"
    )
    add_tokens: AddedTokenList = Field(
        (),
        description="words and markers such as [DRUG] to add to the vocabulary: a list, or a file with one per line; "
        "each new embedding of a pretrained model is the mean of those of the token's pieces",
    )


class ArchitectureSection(Section):
    """The model: randomly initialized, or a pretrained model to continue from."""

    name: str | None = Field(
        None, description="Hub model ID, model folder or run folder to continue from; null: randomly initialized"
    )
    family: str = Field(
        "bert", description="model type in transformers: bert, roberta, electra, modernbert, gpt2, t5 …"
    )
    size: Size | None = Field(
        "base",
        description="size of the family's published model, else of BERT; null: the family's default configuration",
    )
    config_overrides: dict[str, int | float | bool | str] = Field(
        {}, description="additional fields of the model's configuration"
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="all dropout rates; null: the model's")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        for name, value in self.config_overrides.items():
            limit = MAX_LAYERS if name.endswith(("layers", "n_layer")) else MAX_CONFIG_SIZE
            if isinstance(value, int) and value > limit:
                raise ValueError(f"found {value:.6g} for config_overrides.{name}, expected at most {limit}")
            if isinstance(value, int) and value < 0 and name.endswith(("layers", "n_layer", "heads", "n_head", "size")):
                raise ValueError(f"found {value} for config_overrides.{name}, expected at least 0")
        return self


class ObjectiveSection(Section):
    """The pretraining objective."""

    kind: ObjectiveName = Field(
        "masked_lm", description="masked_lm (BERT), replaced_token_detection (ELECTRA), causal_lm, span_corruption (T5)"
    )
    mlm_probability: float = Field(0.15, gt=0, lt=1, description="fraction of the tokens to predict")
    masking: MaskingUnit = Field(
        "token", description="unit of masking: single tokens, whole words, or spans of words (SpanBERT)"
    )
    mask_replace_prob: float = Field(
        0.8, ge=0, le=1, description="fraction of the selected tokens replaced by the mask token"
    )
    random_replace_prob: float = Field(
        0.1, ge=0, le=1, description="fraction of the selected tokens replaced by a random token; the rest is unchanged"
    )
    pairs: Pairs | None = Field(
        None, description="second objective on sentence pairs: next_sentence (BERT) or sentence_order (ALBERT)"
    )
    short_seq_prob: float = Field(0.1, ge=0, le=1, description="fraction of pairs with a random, shorter length")

    generator_size: float = Field(
        0.25, gt=0, le=1, description="generator width relative to the discriminator (replaced_token_detection)"
    )
    discriminator_weight: float = Field(
        50.0, gt=0, description="weight of the discriminator loss (replaced_token_detection)"
    )
    mean_span_length: float = Field(
        3.0, ge=1, le=1000, description="mean length in tokens of a masked span (span_corruption)"
    )

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.mask_replace_prob + self.random_replace_prob > 1:
            raise ValueError(
                f"mask_replace_prob {self.mask_replace_prob} and random_replace_prob {self.random_replace_prob} "
                "add up to more than 1"
            )
        if self.pairs is not None and not self.objective_class.supports_pairs:
            raise ValueError(f"`pairs` requires the objective masked_lm, found {self.kind}")
        return self

    @model_validator(mode="after")
    def _reject_unused_keys(self) -> Self:
        """Reject keys that have no effect on this objective."""
        changed = [key for key in type(self).model_fields if key not in SHARED_KEYS and self._is_changed(key)]
        unused = [key for key in changed if key not in self.objective_class.supported_keys]
        if unused:
            raise ValueError(f"the objective {self.kind} does not use {', '.join(unused)}; remove these keys")
        if self.pairs is None and self._is_changed("short_seq_prob"):
            raise ValueError("short_seq_prob requires `pairs`; remove it or set `pairs`")
        return self

    @property
    def objective_class(self) -> Any:
        """The class of the objective, a subclass of `bertcli.pretraining.objective.Objective`."""
        return load_class(OBJECTIVES, self.kind)

    def _is_changed(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)


class Phase(Section):
    """A phase of training with its own sequence length."""

    max_length: Length = Field(ge=16, description="maximum sequence length in tokens")
    fraction: float = Field(1.0, gt=0, le=1, description="fraction of all steps")
    global_batch_size: BatchSize | None = Field(
        None, ge=1, description="sequences per step; null: training.global_batch_size"
    )


class PretrainingSection(OptimizationSection):
    """Training hyperparameters. `max_steps` sets the length of training, else `max_tokens`, else `epochs`."""

    epochs: Epochs = Field(1.0, description="passes over the corpus")
    max_tokens: Count | None = Field(None, ge=1, description="number of training tokens; overrides `epochs`")
    budget: Duration | None = Field(
        None, description="time limit, such as 30m or 2h; schedule and phases are scaled to fit it"
    )
    global_batch_size: BatchSize = Field(256, ge=1, description="sequences per optimizer step, over all processes")
    learning_rate: LearningRate = Field(1e-4, description="peak learning rate")
    warmup_ratio: float = Field(0.01, ge=0, lt=1, description="fraction of the steps used for warmup")


class PretrainRecipe(Section):
    """Everything that defines one pretraining run."""

    corpus: CorpusSection = Field(description="the pretraining text")
    tokenizer: TokenizerSection = Field(
        TokenizerSection(), description="the tokenizer: an existing one, or one trained on the corpus"
    )
    model: ArchitectureSection = Field(
        ArchitectureSection(), description="the model: randomly initialized, or a pretrained model to continue from"
    )
    objective: ObjectiveSection = Field(ObjectiveSection(), description="the pretraining objective")
    phases: Annotated[tuple[Phase, ...], Strict(False)] = Field(
        (Phase(max_length=128),),
        min_length=1,
        description="phases of training, each with its own sequence length and batch size",
    )
    packing: bool = Field(
        False, description="pack several short documents into one row, without attention between them"
    )
    training: PretrainingSection = Field(PretrainingSection(), description="training hyperparameters")
    evaluation: EvaluationSection = Field(
        EvaluationSection(), description="when to evaluate, and which checkpoint is best"
    )
    hardware: HardwareSection = Field(HardwareSection(), description="how the run executes, not what it learns")

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        total = sum(phase.fraction for phase in self.phases)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the fractions of the phases must add up to 1, found {total:g}")
        if self.packing and not self.objective.objective_class.supports_packing:
            raise ValueError(f"`packing` requires the objective masked_lm, found {self.objective.kind}")
        if self.packing and self.objective.pairs is not None:
            raise ValueError("`packing` cannot be combined with objective.pairs; remove one of them")
        if len(self.training.seed) > 1:
            raise ValueError("pretraining takes a single seed; run it once per seed")
        return self
