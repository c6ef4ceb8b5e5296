"""Set up a fine-tuning run: check the recipe; load the rows, tokenizer and head; build the model."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.console import Console
from bertcli.data.batching import num_balanced_items
from bertcli.data.encoding import Encoded, split_at_spaces
from bertcli.data.formats import join_words
from bertcli.data.sources import (
    ROW_COLUMN,
    hash_texts,
    hold_out_rows,
    load_split,
    load_training_rows,
    locate_rows,
    source_fingerprint,
    with_row_numbers,
)
from bertcli.data.spans import word_spans
from bertcli.errors import DataError, ModelError, RecipeError, did_you_mean, quoted
from bertcli.finetuning.encoding_cache import encode_rows
from bertcli.heads.base import Head
from bertcli.heads.labels import OPTIONAL_CONFIG_FIELDS, check_labels, labelled_rows, labels_from_config
from bertcli.heads.word_alignment import row_words
from bertcli.metrics.scores import METRICS, check_metric, check_metrics, check_references, score_names
from bertcli.models.added_tokens import NO_ADDED_TOKENS, AddedTokens, add_tokens
from bertcli.models.from_pretrained import (
    ModelSource,
    check_model_class,
    check_trainable,
    has_head,
    invalid_config_errors,
    set_config_fields,
)
from bertcli.models.from_scratch import build_bert, build_bert_config
from bertcli.models.missing_weights import MissingWeights
from bertcli.models.split_words import find_different_words, is_kept_when_saved
from bertcli.models.tokenizer_matching import (
    PADDING_WARNING,
    check_end_of_text,
    match_tokenizer,
    max_input_length,
    mixes_padding,
)
from bertcli.models.tokenizer_training import train_tokenizer
from bertcli.recipe.load import recipe_task
from bertcli.recipe.plan import Plan
from bertcli.recipe.schema import Recipe
from bertcli.runs.members import best_seed, hash_start_models
from bertcli.tasks.task import Section, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from bertcli.training.memory import Workload

HEAD_KEYS = {  # recipe keys that only some heads support, and the tasks that have them; see `Head.supported_keys`
    "training.label_smoothing": "tasks with one correct label per prediction",
    "training.class_weights": "text and token classification",
    "training.loss": "text and token classification",
    "training.balance": "text classification with one label per row",
    "training.teacher": "tasks with one correct label per text",
    "training.token_cutoff": "tasks with one prediction per text",
    "answers.thresholds": "text classification",
    "answers.calibrated": "classification of texts and multiple choice",
    "data.long_inputs": "classification or regression of single texts",
    "data.context_tokens": "token classification",
    "data.casing_feature": "token classification",
}
PART_CHARACTERS = 100_000  # per piece of text in tokenizer training, which takes 150 bytes per character
WORD_ROWS = 100  # training rows in which the tokens of words are compared with those of running text
SUBSET_SEED = 13  # subsets of rows are the same for every training seed


@dataclass(frozen=True)
class FinetuneSetup:
    """The task, head, tokenizer and rows of a fine-tuning recipe; shared by all its seeds."""

    recipe: Recipe
    task: Task
    head: Head
    tokenizer: PreTrainedTokenizerBase
    rows: dict[str, Dataset]  # by split: train, validation and the task's extra validation splits
    references: dict[str, Any]  # gold values of the rows, by split
    source: ModelSource | None  # of the encoder; None: randomly initialized
    mirror: Path | None
    source_fingerprint: str | None = None  # of the files with the rows
    start_models: Mapping[str, str] = field(default_factory=dict)  # hashes of the models of runs that it starts from
    num_skipped: int = 0  # number of rows without a label, in all splits (`data.skip_unlabelled`)
    added_tokens: AddedTokens = NO_ADDED_TOKENS  # to the vocabulary of the tokenizer (`model.add_tokens`)
    warn: Callable[[str], None] = warnings.warn  # prints the warnings of the cache of encoded rows
    _encoded: dict[str, Encoded] = field(default_factory=dict)

    def encode(self, split: str) -> Encoded:
        """Return a split as token IDs with labels; it is tokenized only once."""
        if split not in self._encoded:
            self._encoded[split] = encode_rows(
                self.head, self.task, self.rows[split], self.tokenizer, self.recipe.data, self.warn
            )
        return self._encoded[split]

    @cached_property
    def data_fingerprint(self) -> str:
        """The hashes of the encoded rows of all splits, the added tokens, and the gold values of the validation splits.

        The encoded labels do not determine the gold values: not further answers to a question, nor tags of words that
        were truncated.
        """
        validation = {split: gold for split, gold in self.references.items() if split != "train"}
        gold = {split: gold.tolist() if isinstance(gold, np.ndarray) else gold for split, gold in validation.items()}
        hashes = [self.encode(split).fingerprint for split in self.rows]
        hashes += [self.added_tokens.fingerprint] if self.added_tokens else []
        return "-".join([*hashes, hashlib.blake2b(json.dumps(gold).encode(), digest_size=16).hexdigest()])

    @property
    def examples_per_epoch(self) -> int:
        """The number of training items in an epoch; rows of rare labels count repeatedly if they are over-sampled."""
        encoded = self.encode("train")
        if self.recipe.training.balance is None:
            return len(encoded)
        assert encoded.labels is not None
        return num_balanced_items(encoded.labels)

    @property
    def balance_note(self) -> str:
        """The plan's note on over-sampling; empty if rows are not over-sampled."""
        if self.recipe.training.balance is None:
            return ""
        return f"{self.examples_per_epoch} training examples an epoch, equally many of each label"

    @property
    def target_scale(self) -> tuple[float, float] | None:
        """Mean and standard deviation by which targets are standardized in training; None: not standardized."""
        return self.head.target_scale(self.references["train"])

    @property
    def target_note(self) -> str:
        """The plan's note on the scale of the targets; empty if they are not standardized."""
        if self.target_scale is None:
            return ""
        mean, std = self.target_scale
        return f"targets standardized (mean {mean:,.6g}, standard deviation {std:,.6g})"

    def row_warnings(self, split: str) -> list[tuple[int, str]]:
        """Return the warnings about rows of a split, each with the row's index in its file."""
        rows, warnings = self.rows[split], self.encode(split).row_warnings
        if not warnings or ROW_COLUMN not in rows.column_names:
            return list(warnings)
        numbers = rows[ROW_COLUMN][:]
        return [(numbers[row] - 1, message) for row, message in warnings]

    def duplicate_notes(self) -> Iterator[str]:
        """Yield notes on splits that share texts with the training rows, and on training texts with two labels."""
        train_hashes = hash_texts(self.task, self.rows["train"])
        for split in self.rows:
            if split != "train":
                yield from self._shared_text_notes(split, train_hashes)
        if self.head.answer_kind == "single_label":
            yield from self._two_label_notes(train_hashes)

    def _shared_text_notes(self, split: str, train_hashes: np.ndarray) -> Iterator[str]:
        task, rows = self.task, self.rows[split]
        hashes = hash_texts(task, rows)
        shared = np.flatnonzero(np.isin(hashes, train_hashes)).tolist()
        if shared:
            twin = int((train_hashes == hashes[shared[0]]).argmax())
            example, training_row = locate_rows(task, rows, shared[:1]), locate_rows(task, self.rows["train"], [twin])
            is_held_out = split == "validation" and task.holds_out_rows
            yield (
                f"{len(shared)} of {len(rows)} {split} rows ({len(shared) / len(rows):.1%}) have the same text as a "
                f"training row, so their scores say little about unseen texts; for example {example} ({split}) and "
                f"{training_row} (train)"
                + (f". task.group_by={task.text_columns[0]} keeps equal texts in one split" if is_held_out else "")
            )

    def _two_label_notes(self, train_hashes: np.ndarray) -> Iterator[str]:
        order = np.argsort(train_hashes, kind="stable")
        hashes, gold = train_hashes[order], self.references["train"][order]
        twins = np.flatnonzero((hashes[1:] == hashes[:-1]) & (gold[1:] != gold[:-1]))
        if len(twins):
            example = locate_rows(self.task, self.rows["train"], order[twins[0] : twins[0] + 2].tolist())
            number = len(np.unique(hashes[twins]))
            yield f"{number} training text{'s have' if number > 1 else ' has'} two labels, for example {example}"

    def word_notes(self) -> Iterator[str]:
        """Yield a warning if words get other tokens than in running text, in the first training rows or once saved.

        Yield another one if added tokens are not words of texts with annotated spans.
        """
        name = self.recipe.model.tokenizer or self.recipe.model.name
        if self.task.span_column is not None:
            added: Any = self.tokenizer.convert_ids_to_tokens([*self.added_tokens.pieces])
            divided = [token for token in added if len(word_spans(token)) > 1]
            if divided:
                yield (
                    f"{len(divided)} of the tokens in model.add_tokens, such as {quoted(divided[0])}, are never found: "
                    "texts with spans are divided into words at punctuation. Remove them, or give lists of words and "
                    "tags instead of task.span_column"
                )
        if not self.head.reads_words or name is None:
            return
        num_rows = min(WORD_ROWS, len(self.rows["train"]))
        different = find_different_words(
            self.tokenizer, row_words(self.task, self.rows["train"].select(range(num_rows)))
        )
        if different is not None:
            count, as_words, as_text = different
            yield (
                f"the tokenizer of {name} reads the words of {count} of the first {num_rows} training rows otherwise "
                f"than in running text, for example as {quoted(as_words)} instead of {quoted(as_text)}; if these are "
                "many, a model with another tokenizer will score higher"
            )
        if self.source is not None and not is_kept_when_saved(self.tokenizer, self.source.config):
            yield (
                f"bertcli adds a space before each word for the tokenizer of {name}, but plain transformers builds the "
                f"tokenizers of {self.source.config.model_type} models itself and will not; use bertcli to predict"
            )

    def with_seed(self, seed: int) -> FinetuneSetup:
        """Return this setup for one seed of the recipe."""
        return replace(self, recipe=self.recipe.with_seed(seed))

    def build_model(self, console: Console) -> PreTrainedModel:
        """Build the model to fine-tune; new weights come from torch's global generator, so seed that first.

        Args:
            console: used to report which weights of a pretrained model are newly initialized.

        Raises:
            ModelError: if weights of the encoder are missing, which LoRA would neither train nor save.
        """
        model, is_new_head = self._build_unscaled_model(console)
        if self.target_scale is not None:
            from bertcli.models.regression_output import standardize_targets

            mean, std = self.target_scale
            standardize_targets(model, mean, std, is_new_head=is_new_head)
        return model

    def _build_unscaled_model(self, console: Console) -> tuple[PreTrainedModel, bool]:
        """Build the model; also return whether its head is new."""
        section = self.recipe.model
        model_class, fields = self.head.model_class, self.head.config_fields
        if self.source is None:
            return build_bert(section, self.tokenizer, model_class, fields), True
        source, training = self.source, self.recipe.training
        new_weights: list[str] = []
        if mixes_padding(source.config, self.recipe.data.max_length):
            console.warn(PADDING_WARNING.format(source.config.model_type))
        keeps_head = not section.new_head and has_head(source.config, model_class)
        if keeps_head and (problem := self.head.scale_problem(source.config)):
            console.warn(
                f"{source.name} starts far from the targets and may not reach them, since {problem}; set "
                "model.new_head=true to train a new output layer"
            )

        def report(weights: MissingWeights) -> None:
            new_weights.append(weights.head)
            if weights.encoder and training.strategy == "lora" and not training.lora_merge:
                raise ModelError(
                    f"{source.name} lacks weights of its encoder ({weights.encoder}); they would be initialized at "
                    f"random, and a LoRA adapter does not save them. Restore the files of {source.name}, or set "
                    "training.lora_merge=true to start from random weights and save the whole model"
                )
            weights.report(console, source.name)

        model = source.load_model(
            model_class, fields, dropout=section.dropout, new_head=section.new_head, on_missing=report
        )
        self.added_tokens.extend_model(model)
        for name in OPTIONAL_CONFIG_FIELDS:
            if name not in fields:
                vars(model.config).pop(name, None)  # left over from an earlier task
        return model, any(new_weights)

    def _model_without_weights(self) -> PreTrainedModel:
        """Build the model, or the encoder of a pretrained one, without allocating memory for its weights."""
        import torch
        import transformers

        with torch.device("meta"):
            if self.source is None:
                return self.build_model(Console(mute=True))
            with invalid_config_errors(self.source.name):
                model: PreTrainedModel = transformers.AutoModel.from_config(self.source.config)
        return model

    def workload(self, plan: Plan) -> Workload:
        """Return what a process computes at a time in training, for an estimate of its memory.

        Raises:
            ModelError: if the configuration of the model cannot be used.
        """
        from bertcli.models.freezing import encoder_layers, lowest_trainable_depth, parameter_depths
        from bertcli.training.memory import Workload

        model, encoded, section = self._model_without_weights(), self.encode("train"), self.recipe.training
        config = copy.deepcopy(model.config)
        set_config_fields(config, {}, self.recipe.model.dropout)
        num_parameters = num_trainable = model.num_parameters()
        num_layers = None
        if section.strategy == "features":  # also of families whose layers cannot be identified
            encoder: Any = model.base_model
            num_trainable = num_parameters - encoder.num_parameters()
            num_layers = 0
        elif section.strategy != "full" or section.freeze_layers or section.freeze_embeddings:
            layers = len(encoder_layers(model))
            lowest = lowest_trainable_depth(section, layers, plan, plan.total_steps - 1)
            depths = parameter_depths(model)
            num_trainable = sum(part.numel() for name, part in model.named_parameters() if depths[name] >= lowest)
            num_layers = layers + 1 - max(1, lowest)
        if section.strategy == "lora":  # adapters are small, but the gradient reaches each layer
            num_trainable, num_layers = 0, None
        longest = np.sort(encoded.lengths)[-plan.micro_batch_size :]
        num_sequences = len(longest) * encoded.num_choices
        return Workload(config, num_parameters, num_trainable, num_sequences, int(np.ceil(longest.mean())), num_layers)


def set_up(recipe: Recipe, mirror: Path | None, warn: Callable[[str], None] = warnings.warn) -> FinetuneSetup:
    """Load and check everything the recipe names, without computing anything expensive or writing anything.

    Args:
        warn: prints the warnings of the cache of encoded rows.

    Raises:
        RecipeError: if a key is invalid for the task or strategy.
        DataError: if a split is missing, unlabeled or unusable.
        ModelError: if the model does not match the task or recipe.
        UsageError: if the model is that of a run that is not finished.
    """
    task = recipe_task(recipe)
    check_recipe(recipe, task)
    # Before they are read: if the files or models change in the meantime, the run is of the old ones.
    files = source_fingerprint(task, mirror)
    start_models = hash_start_models([recipe])
    training_rows = load_training_rows(task, mirror)
    rows = hold_out_rows(task, training_rows) if task.holds_out_rows else {"train": training_rows}
    for split in ("validation", *task.splits.extra_validation):
        rows[split] = rows.get(split) or load_split(task, split, mirror)
    # Labels are collected from all rows, because a subset, or the rows that are not held out, may lack some.
    task = task.model_copy(update={"labels": task.head_class.task_labels(task, training_rows)})
    check_metrics(task)
    if problems := list(_metric_problems(recipe, task)):  # the labels decide the default metrics of tags
        raise RecipeError(problems)
    num_rows = sum(map(len, rows.values()))
    if recipe.data.skip_unlabelled:
        rows = {split: labelled_rows(task, split_rows) for split, split_rows in rows.items()}
    num_skipped = num_rows - sum(map(len, rows.values()))
    rows = _select_subsets(recipe, rows)
    head = task.head_class.from_data(task, rows["train"], recipe)
    source = None if recipe.model.name is None else ModelSource(best_seed(recipe.model.name), mirror)
    tokenizer = _load_or_train_tokenizer(recipe, task, rows["train"], source, mirror)
    if source is None:
        _match_tokenizer_to_model(recipe, tokenizer, build_bert_config(recipe.model, tokenizer), "a new BERT")
    else:
        _match_tokenizer_to_model(recipe, tokenizer, source.config, source.name)
        check_end_of_text(tokenizer, source.config, head.model_class, source.name)
        head = _match_head_to_model(recipe, task, head, source)
    added_tokens = add_tokens(tokenizer, recipe.model.add_tokens, "model.add_tokens")
    references = {split: head.references(task, split_rows) for split, split_rows in rows.items()}
    for split, gold in references.items():
        if gold is None:
            raise DataError(f"{task.name}: split {split!r} has no labels; use a labeled split")
        if split != "train":
            check_references(task, split, gold, head.positive_label_id(task))
    return FinetuneSetup(
        recipe, task, head, tokenizer, rows, references, source, mirror, files, start_models, num_skipped, added_tokens,
        warn,
    )  # fmt: skip


def check_recipe(recipe: Recipe, task: Task) -> None:
    """Check the metrics and the keys that depend on the task or the strategy.

    Raises:
        RecipeError: if the recipe is invalid; the error lists every problem.
    """
    problems = [*_metric_problems(recipe, task), *_head_key_problems(recipe, task)]
    problems += [*_strategy_problems(recipe), *_imbalance_problems(recipe)]
    if task.files is None and task.splits.train is None:
        problems.append(f"{task.name} has no training split; use it only with `eval` and `predict`")
    if problems:
        raise RecipeError(problems)


def _metric_problems(recipe: Recipe, task: Task) -> Iterator[str]:
    """Yield a problem for each metric that is unknown, invalid for the task, or selects models but is not computed."""
    for name in task.metric_names:
        try:
            check_metric(name, task.answer_kind)
        except DataError as error:
            yield str(error)
            return  # `main_metric` and `best_by` may be right once the metric is corrected
    scores = score_names(task.metric_names)
    main_metric, best_by = task.main_metric, recipe.evaluation.best_by
    if main_metric is not None and main_metric not in scores:
        yield f"found task.main_metric {main_metric!r}, expected one of {scores}.{did_you_mean(main_metric, scores)}"
    if best_by is not None and best_by not in (*scores, "loss"):
        is_metric = best_by in METRICS and task.answer_kind in METRICS[best_by].answer_kinds
        cure = f" Add {best_by} to task.metrics." if is_metric else did_you_mean(best_by, [*scores, "loss"])
        yield f"found evaluation.best_by {best_by!r}, expected one of {[*scores, 'loss']}.{cure}"


def _head_key_problems(recipe: Recipe, task: Task) -> Iterator[str]:
    """Yield a problem for each key that the head of the task does not support."""
    supported = task.head_class.supported_keys(task)
    for key, tasks in HEAD_KEYS.items():
        section, _, name = key.partition(".")
        if key not in supported and _non_default_keys(getattr(recipe, section), [name]):
            kind = f"{task.answer_kind} of pairs" if len(task.text_columns) > 1 else task.answer_kind
            yield f"{key} is only for {tasks}, but {task.name} is {kind}; remove it"


def _strategy_problems(recipe: Recipe) -> Iterator[str]:
    """Yield a problem for each key that the chosen strategy does not support."""
    training = recipe.training
    if training.teacher is None:
        teacher_keys = _non_default_keys(training, ("teacher_weight", "teacher_temperature", "teacher_hidden_weight"))
        yield from (f"training.{key} requires training.teacher" for key in teacher_keys)
    if training.strategy in ("features", "lora") and recipe.model.name is None:
        yield f"training.strategy={training.strategy} requires a pretrained encoder: set model.name"
    for strategy, keys in {
        "gradual": ("unfreeze_every_epochs", "unfreeze_every_steps"),
        "lora": ("lora_rank", "lora_alpha", "lora_dropout", "lora_merge"),
    }.items():
        if training.strategy != strategy:
            unused = _non_default_keys(training, keys)
            yield from (f"training.{key} requires training.strategy={strategy}" for key in unused)
    if recipe.hardware.shard and training.strategy != "full":
        yield f"hardware.shard requires training.strategy=full, found {training.strategy}"
    if training.strategy == "lora" and not training.lora_merge and recipe.model.add_tokens:
        yield (
            "model.add_tokens adds embeddings, which a LoRA adapter does not save; set training.lora_merge=true, or "
            "training.strategy=full"
        )
    if training.strategy == "lora" and not training.lora_merge and recipe.answers.calibrated:
        yield (
            "answers.calibrated=true changes the weights of the output layer, but training.lora_merge=false saves only "
            "an adapter; set training.lora_merge=true, or remove it"
        )
    if training.strategy == "lora" and training.reinit_layers:
        yield "training.reinit_layers reinitializes layers that training.strategy=lora does not train; remove it"
    if training.strategy == "features":
        unused = _non_default_keys(training, ("reinit_layers", "token_cutoff", "teacher_hidden_weight"))
        cause = "is not supported with training.strategy=features, which runs the frozen encoder only once; remove it"
        yield from (f"training.{key} {cause}" for key in unused)


def _imbalance_problems(recipe: Recipe) -> Iterator[str]:
    """Yield a problem for each pair of keys that does not combine: focal loss, class weights, over-sampling."""
    training = recipe.training
    if training.loss == "focal" and training.label_smoothing:
        yield "training.label_smoothing is not supported with training.loss=focal; remove one of them"
    if training.loss != "focal" and _non_default_keys(training, ("focal_gamma",)):
        yield "training.focal_gamma requires training.loss=focal"
    if training.balance is not None and training.class_weights == "auto":
        yield "training.balance and training.class_weights=auto both make rare labels count as much; remove one of them"


def _non_default_keys(section: Section, keys: Iterable[str]) -> list[str]:
    """Return the keys whose values differ from their defaults."""
    return [key for key in keys if getattr(section, key) != type(section).model_fields[key].default]


def _select_subsets(recipe: Recipe, rows: dict[str, Dataset]) -> dict[str, Dataset]:
    """Return each split with at most as many rows as `max_train_examples` or `max_eval_examples` allows.

    Rows are sampled at random, because files are often sorted by label. If rows serve as context for their neighbors,
    the first rows of an evaluation split are used instead, so that each row keeps its neighbors.
    """
    limits = dict.fromkeys(rows, recipe.data.max_eval_examples) | {"train": recipe.data.max_train_examples}
    subsets = {}
    for split, subset in rows.items():
        max_rows = limits[split]
        if max_rows is not None and max_rows < len(subset):
            subset = with_row_numbers(subset)
            if split == "train":
                subset = subset.shuffle(seed=SUBSET_SEED).select(range(max_rows))
            elif recipe.data.context_tokens:
                subset = subset.select(range(max_rows))
            else:
                subset = random_subset(subset, max_rows)
        subsets[split] = subset
    return subsets


def random_subset(rows: Dataset, num_rows: int) -> Dataset:
    """Return a random sample of rows in their original order; it is always the same sample."""
    return rows.select(sorted(Random(SUBSET_SEED).sample(range(len(rows)), num_rows)))


def _load_or_train_tokenizer(
    recipe: Recipe, task: Task, train: Dataset, source: ModelSource | None, mirror: Path | None
) -> PreTrainedTokenizerBase:
    if recipe.model.tokenizer is not None:
        source = ModelSource(best_seed(recipe.model.tokenizer), mirror)
    if source is not None:
        return source.load_tokenizer(is_split_into_words=task.head_class.reads_words)
    return train_tokenizer(partial(_texts, task, train), recipe.model.vocab_size)


def _texts(task: Task, rows: Dataset) -> Iterator[str]:
    """Yield all texts of the rows; lists of words are joined, and long texts are divided between words."""
    for column in task.columns:
        for value in rows[column]:
            yield from split_at_spaces(join_words(value), PART_CHARACTERS)


def _match_tokenizer_to_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, name: str
) -> None:
    """Match the tokenizer to the model `name`, and check that the model supports the inputs of the recipe.

    Raises:
        ModelError: if the tokenizer is incompatible, or the inputs are too long or unsupported.
    """
    match_tokenizer(tokenizer, config, name)
    max_length = max_input_length(tokenizer, config)
    if recipe.data.max_length > max_length:
        raise ModelError(
            f"data.max_length is {recipe.data.max_length}, but {name} supports at most {max_length} tokens; lower it"
        )
    if recipe.data.casing_feature and getattr(config, "type_vocab_size", 1) < 2:
        raise ModelError(f"data.casing_feature is set, but {name} has no token type 1; remove it")


def _match_head_to_model(recipe: Recipe, task: Task, head: Head, source: ModelSource) -> Head:
    """Check the head against the pretrained model; return it with its labels in the order of a kept classifier.

    Raises:
        ModelError: if the model's family has no such head or cannot be trained, or its classifier has other labels.
    """
    name, config = source.name, source.config
    check_model_class(config, head.model_class, name)
    if recipe.training.strategy != "features":
        check_trainable(config, name)
    if recipe.model.new_head or not has_head(config, head.model_class):
        return head
    saved = labels_from_config(config)
    if head.answer_kind == "regression" and len(saved) != 1:
        raise ModelError(
            f"{name} has a classifier for {list(saved)}, but {task.name} is regression; set model.new_head=true"
        )
    if not head.labels:
        return head
    cure = "Make task.labels match, or set model.new_head=true to train a new classifier."
    check_labels(saved, head.labels, name, cure)
    return head.with_labels(saved)
