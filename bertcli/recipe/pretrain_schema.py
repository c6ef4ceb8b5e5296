"""The typed recipe of `bertcli pretrain`: corpus, tokenizer, model, objective, phases. Frozen; no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, field_validator, model_validator

from bertcli.recipe.schema import EvaluationSection, HardwareSection, OptimizationSection, Size
from bertcli.tasks.task import Paths, Section

MaskingUnit = Literal["tokens", "words", "spans"]
ObjectiveKind = Literal["masked_lm", "replaced_tokens", "causal_lm", "span_corruption"]
Pairs = Literal["next_sentence", "sentence_order"]
READ_BY: dict[str, tuple[ObjectiveKind, ...]] = {  # keys of the objective that only some kinds read
    "mlm_probability": ("masked_lm", "replaced_tokens", "span_corruption"),
    "unit": ("masked_lm", "replaced_tokens"),
    "mask_share": ("masked_lm", "replaced_tokens"),
    "random_share": ("masked_lm", "replaced_tokens"),
    "generator_size": ("replaced_tokens",),
    "discriminator_weight": ("replaced_tokens",),
    "mean_span_length": ("span_corruption",),
}
TokenizerKind = Literal["wordpiece", "bpe", "unigram"]


class Source(Section):
    """One source of documents: files, or a data set."""

    files: Paths = Field((), description="text, JSON Lines or Parquet files, also .gz, .zst, .bz2; `*` and `**` match")
    dataset: str | None = Field(None, description="hub name or folder in its layout, or `sample` (embedded)")
    config: str | None = Field(None, description="configuration (subset) of the data set")
    split: str = Field("train", description="split of the data set")
    column: str = Field("text", description="column of the text in JSON Lines, Parquet and data sets")
    documents: Literal["blocks", "lines", "files"] = Field(
        "blocks", description="a document of a text file: what stands between empty lines, a line, or the file"
    )
    weight: float = Field(1.0, gt=0, description="how many times an epoch passes over this source")

    @field_validator("files", mode="before")
    @classmethod
    def _one_path_is_a_list_of_one(cls, given: object) -> object:
        return (given,) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if bool(self.files) == (self.dataset is not None):
            raise ValueError("a source needs either `files` or `dataset`")
        return self


class CorpusSection(Section):
    """The text to learn from."""

    sources: Annotated[tuple[Source, ...], Strict(False)] = Field(min_length=1, description="where documents come from")
    held_out_share: float = Field(0.01, gt=0, lt=1, description="share of the documents kept for validation")
    max_documents: int | None = Field(None, ge=2, description="use the first documents of each source only")
    max_held_out_tokens: int = Field(500_000, ge=100, description="held-out text to score at most")


class TokenizerSection(Section):
    """The vocabulary: an existing one, or one learned from the corpus."""

    name: str | None = Field(None, description="hub name, model folder or run folder; null: learn one")
    kind: TokenizerKind = Field("wordpiece", description="how a learned one cuts words (bpe: of bytes)")
    vocabulary_size: int = Field(30522, ge=300, description="entries of a learned one, rounded up to a multiple of 64")
    lowercase: bool = Field(True, description="whether a learned one ignores case and accents (not bpe)")
    sample_megabytes: float = Field(200.0, gt=0, description="text to learn it from, from the beginning of each source")


class ArchitectureSection(Section):
    """The model: fresh weights of a given architecture, or a trained model to go on with."""

    name: str | None = Field(None, description="hub name, model folder or run folder to go on with; null: fresh")
    family: str = Field(
        "bert", description="model type of transformers: bert, roberta, electra, modernbert, gpt2, t5 …"
    )
    size: Size | None = Field("base", description="BERT's preset of this size; null: as the family's defaults are")
    fields: dict[str, int | float | bool | str] = Field({}, description="further fields of the configuration")
    dropout: float | None = Field(None, ge=0, lt=1, description="all dropout rates of the model; null: as it comes")


class ObjectiveSection(Section):
    """What is to be guessed."""

    kind: ObjectiveKind = Field("masked_lm", description="masked tokens, replaced ones, the next one, or lost spans")
    mlm_probability: float = Field(0.15, gt=0, lt=1, description="share of the tokens to guess")
    unit: MaskingUnit = Field("tokens", description="what is chosen: single tokens, whole words, or spans of words")
    mask_share: float = Field(0.8, ge=0, le=1, description="share of the chosen tokens that are masked")
    random_share: float = Field(0.1, ge=0, le=1, description="share that a random token replaces; the rest stays")
    pairs: Pairs | None = Field(None, description="also tell whether two texts follow each other, or in which order")
    short_sequence_probability: float = Field(0.1, ge=0, le=1, description="share of pairs that are shorter by chance")

    generator_size: float = Field(0.25, gt=0, le=1, description="width of the generator (replaced_tokens)")
    discriminator_weight: float = Field(50.0, gt=0, description="weight of the discriminator's loss (replaced_tokens)")
    mean_span_length: float = Field(3.0, ge=1, description="tokens of a lost span on average (span_corruption)")

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if self.mask_share + self.random_share > 1:
            raise ValueError(
                f"mask_share {self.mask_share} and random_share {self.random_share} are more than the whole"
            )
        if self.pairs is not None and self.kind != "masked_lm":
            raise ValueError(f"`pairs` go with the objective masked_lm, not with {self.kind}")
        return self

    @model_validator(mode="after")
    def _check_idle_keys(self) -> Self:
        """What an objective does not read must not look as if it mattered."""
        idle = [key for key, kinds in READ_BY.items() if self.kind not in kinds and self._differs(key)]
        if idle:
            raise ValueError(f"the objective {self.kind} does not read {', '.join(idle)}; leave that out")
        if self.pairs is None and self._differs("short_sequence_probability"):
            raise ValueError("short_sequence_probability is for `pairs`, of which there are none; leave it out")
        return self

    def _differs(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)


class Phase(Section):
    """A part of the training with sequences of one length."""

    max_length: int = Field(ge=16, description="tokens of the longest sequence")
    share: float = Field(1.0, gt=0, le=1, description="share of all steps")
    global_batch_size: int | None = Field(None, ge=1, description="sequences a step; null: training.global_batch_size")


class PretrainingSection(OptimizationSection):
    """Everything that changes what is learned. The run has `max_steps`, else `max_tokens`, else `epochs`."""

    epochs: float = Field(1.0, gt=0, description="passes over the corpus")
    max_tokens: int | None = Field(None, ge=1, description="tokens to read; overrides `epochs`")
    budget: str | None = Field(
        None,
        pattern=r"^(0*[1-9]\d*(\.\d+)?|0+\.\d*[1-9]\d*)[smh]$",
        description="time, such as 30m or 2h: if it runs out before the steps do, the schedule ends with it",
    )
    global_batch_size: int = Field(256, ge=1, description="sequences an optimiser step, over all processes")
    learning_rate: float = Field(1e-4, gt=0, description="peak rate")
    warmup_ratio: float = Field(0.01, ge=0, lt=1, description="share of the steps with a rising rate")


class PretrainRecipe(Section):
    """Everything a person wants of one pretraining run."""

    corpus: CorpusSection = Field(description="the text")
    tokenizer: TokenizerSection = Field(TokenizerSection(), description="the vocabulary")
    model: ArchitectureSection = Field(ArchitectureSection(), description="the architecture")
    objective: ObjectiveSection = Field(ObjectiveSection(), description="what is to be guessed")
    phases: Annotated[tuple[Phase, ...], Strict(False)] = Field(
        (Phase(max_length=128),), min_length=1, description="lengths of the sequences, one phase after the other"
    )
    packing: bool = Field(False, description="several short sequences in a row, none of which sees another")
    training: PretrainingSection = Field(PretrainingSection(), description="what changes the result")
    evaluation: EvaluationSection = Field(EvaluationSection(), description="when to look")
    hardware: HardwareSection = Field(HardwareSection(), description="what changes only the speed")

    @model_validator(mode="after")
    def _check_phases(self) -> Self:
        total = sum(phase.share for phase in self.phases)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of the phases add up to {total:g}, expected 1")
        if self.packing and self.objective.kind != "masked_lm":
            raise ValueError(f"`packing` goes with the objective masked_lm, not with {self.objective.kind}")
        if self.packing and self.objective.pairs is not None:
            raise ValueError("`packing` is for single texts and objective.pairs for pairs; leave one of them out")
        if len(self.training.seed) > 1:
            raise ValueError("pretraining takes one seed; run it once for each")
        return self
