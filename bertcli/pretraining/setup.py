"""Set up a pretraining run before its first step: tokenizer, corpus, model configuration, held-out text and plan."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertcli.cache import cache_folder, get_or_create
from bertcli.console import Console
from bertcli.data.corpus_reading import read_documents, single_file_layout
from bertcli.data.corpus_sequences import (
    IS_NEXT,
    SequenceSpans,
    build_sentence_pairs,
    document_weights,
    split_train_held_out,
)
from bertcli.data.corpus_tokens import SENTENCE_START, Corpus, corpus_key, load_corpus
from bertcli.errors import DataError, ModelError, RecipeError, did_you_mean
from bertcli.models.added_tokens import AddedTokens, add_tokens
from bertcli.models.from_pretrained import ModelSource, check_model_class, check_trainable
from bertcli.models.from_scratch import build_config, has_pair_head, padded_vocab_size
from bertcli.models.tokenizer_matching import (
    PADDING_WARNING,
    first_position_id,
    match_tokenizer,
    max_input_length,
    mixes_padding,
)
from bertcli.models.tokenizer_training import train_tokenizer
from bertcli.pretraining.batches import ResolvedPhase, build_sequences
from bertcli.pretraining.objective import Objective
from bertcli.recipe.plan import Plan, complete_plan
from bertcli.recipe.pretrain_schema import Phase, PretrainRecipe, Source
from bertcli.recipe.schema import parse_seconds
from bertcli.runs.members import best_seed
from bertcli.training.memory import Workload

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

EVAL_SEED = 3  # makes held-out pairs, sample and masks the same in every run
MAX_UNKNOWN_SHARE = 0.01  # of the corpus tokens; warn above it
PLACEHOLDER_VOCAB_SIZE = 500  # of a stand-in with the right special tokens, until the real tokenizer is trained
MAX_DOCUMENTS_TO_CHECK = 10_000  # for a second sentence
MIN_PAIRS_TO_CHECK, MIN_POSITIVE_FRACTION = 20, 0.25  # warn below this fraction of positive pairs, expected to be 0.5
PLAN_SEED, PLAN_SAMPLE_TOKENS = 5, 200_000  # the sample of documents for estimating the number of pairs
TOKENIZER_VERSION = 4  # increase when training produces a different tokenizer, to invalidate cached ones
LOG_INTERVAL_TOKENS = 10_000_000


@dataclass(frozen=True)
class PretrainSetup:
    """Everything a recipe names, loaded and checked."""

    recipe: PretrainRecipe
    tokenizer: PreTrainedTokenizerBase
    objective: Objective
    config: PretrainedConfig
    corpus: Corpus
    train: np.ndarray  # indices of the training documents
    held_out: SequenceSpans
    first_position_id: int | None  # position id of a sequence's first token if sequences are packed; None: not packed
    source: ModelSource | None  # the model to continue from; None: randomly initialized
    added_tokens: AddedTokens  # to the vocabulary of the tokenizer (`tokenizer.add_tokens`)


def set_up(recipe: PretrainRecipe, mirror: Path | None, console: Console) -> PretrainSetup:
    """Load or create the tokenizer, the tokenized corpus, the model configuration and the held-out text of a recipe.

    Raises:
        RecipeError: if `evaluation.best_by` is not a score of the objective, or a key has no effect.
        DataError: if the corpus cannot be read or is too small.
        ModelError: if a model or tokenizer cannot be loaded, or is incompatible with the rest of the recipe.
    """
    _reject_unused_keys(recipe)
    source = _model_source(recipe, mirror)
    tokenizer = _load_tokenizer(recipe, source, mirror) or _train_tokenizer(recipe, mirror, console)
    objective, config, added_tokens = _build_objective(recipe, source, tokenizer)
    max_length = max(phase.max_length for phase in recipe.phases)
    if mixes_padding(config, max_length):
        console.warn(PADDING_WARNING.format(config.model_type))
    with console.waiting("tokenizing the corpus"):
        corpus = load_corpus(recipe.corpus, tokenizer, mirror, _token_logger(console), console.warn)
    _report_corpus(recipe, corpus, tokenizer, console)
    if recipe.objective.pairs == "next_sentence":
        _check_sentences(corpus)
    min_documents = 2 if recipe.objective.pairs == "next_sentence" else 1  # negatives come from another document
    train_documents, held_out_documents = split_train_held_out(corpus, recipe.corpus.held_out_fraction, min_documents)
    random = np.random.default_rng(EVAL_SEED)
    held_out = build_sequences(recipe, corpus, held_out_documents, objective, max_length, random)
    _warn_about_few_positive_pairs(held_out, console)
    first_id = first_position_id(config) if recipe.packing else None
    if recipe.packing:
        from bertcli.models.padding_free import FAMILIES

        if config.model_type not in FAMILIES:
            console.warn(f"{config.model_type} does not support packing; each row holds one sequence")
            first_id = None
    held_out = _sample_held_out(held_out, recipe.corpus.max_held_out_tokens)
    return PretrainSetup(
        recipe, tokenizer, objective, config, corpus, train_documents, held_out, first_id, source, added_tokens
    )


def check_recipe(
    recipe: PretrainRecipe, mirror: Path | None
) -> tuple[PretrainedConfig, Objective, int | None, AddedTokens]:
    """Check what can be checked without training a tokenizer or tokenizing the corpus, and without writing anything.

    Returns:
        The model configuration, the objective, the vocabulary size (None if the tokenizer is yet to be trained), and
        the added tokens.

    Raises:
        RecipeError, DataError, ModelError: if `set_up` would raise them.
    """
    _reject_unused_keys(recipe)
    source = _model_source(recipe, mirror)
    tokenizer = _load_tokenizer(recipe, source, mirror)
    num_documents = sum(1 for corpus in recipe.corpus.sources for _ in islice(read_documents(corpus, mirror), 2))
    if num_documents < 2:
        raise DataError(f"expected two or more non-empty documents in the corpus, found {num_documents}; add some")
    if tokenizer is not None:
        objective, config, added_tokens = _build_objective(recipe, source, tokenizer)
        return config, objective, len(tokenizer), added_tokens
    sentinels = recipe.objective.objective_class.needs_sentinels
    placeholder = train_tokenizer(lambda: ["a b"], PLACEHOLDER_VOCAB_SIZE, recipe.tokenizer.kind, sentinels=sentinels)
    objective, config, added_tokens = _build_objective(recipe, source, placeholder)
    config.vocab_size = padded_vocab_size(_trained_vocab_size(recipe) + len(added_tokens.pieces))
    return config, objective, None, added_tokens


def _reject_unused_keys(recipe: PretrainRecipe) -> None:
    """Reject keys of a new model or a new tokenizer where an existing one is named.

    Only values other than the default count as set, as a recipe in a run folder has every key. `model.size: null`
    asks for no size.

    Raises:
        RecipeError: if there are such keys; the error lists them all.
    """
    named = {key: name for key, name in (("model", recipe.model.name), ("tokenizer", recipe.tokenizer.name)) if name}
    problems: list[str] = []
    for section, keys, causes in (
        ("model", ("family", "size", "config_overrides"), ("model",)),
        ("tokenizer", ("kind", "vocab_size", "lowercase", "sample_megabytes"), ("tokenizer", "model")),
    ):
        cause = next((cause for cause in causes if cause in named), None)
        values = getattr(recipe, section)
        for key in keys if cause is not None else ():
            default = type(values).model_fields[key].default
            if getattr(values, key) not in (default, None):
                # A mapping is merged with the inherited one, so it cannot be reset.
                reset = "" if isinstance(default, dict) else f", or set {section}.{key}={default} where it is inherited"
                problems.append(f"{section}.{key} has no effect, because {cause}.name is set; remove it{reset}")
    if problems:
        raise RecipeError(problems)


def _model_source(recipe: PretrainRecipe, mirror: Path | None) -> ModelSource | None:
    return None if recipe.model.name is None else ModelSource(best_seed(recipe.model.name), mirror)


def _build_objective(
    recipe: PretrainRecipe, source: ModelSource | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[Objective, PretrainedConfig, AddedTokens]:
    """Build the objective and the model configuration, check that they match the recipe, and add its tokens."""
    max_length = max(phase.max_length for phase in recipe.phases)
    config, added_tokens = _build_config(recipe, source, tokenizer, max_length)
    objective: Objective = recipe.objective.objective_class(recipe.objective, tokenizer)
    for field, value in objective.config_fields().items():
        setattr(config, field, value)
    name = source.name if source else f"model.family {config.model_type}"
    check_model_class(config, objective.model_class, name)
    check_trainable(config, name)
    best_by, score_names = recipe.evaluation.best_by, objective.score_names
    if best_by is not None and best_by not in score_names:
        cure = did_you_mean(best_by, score_names)
        raise RecipeError([f"found evaluation.best_by {best_by!r}, expected one of {', '.join(score_names)}.{cure}"])
    return objective, config, added_tokens


def _load_tokenizer(
    recipe: PretrainRecipe, source: ModelSource | None, mirror: Path | None
) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer named in the recipe, else the model's; return None if one is to be trained on the corpus."""
    if recipe.tokenizer.name is not None:
        source = ModelSource(best_seed(recipe.tokenizer.name), mirror)
    return None if source is None else source.load_tokenizer()


def _trained_vocab_size(recipe: PretrainRecipe) -> int:
    return padded_vocab_size(recipe.tokenizer.vocab_size)


def _train_tokenizer(recipe: PretrainRecipe, mirror: Path | None, console: Console) -> PreTrainedTokenizerBase:
    """Train a tokenizer on the corpus, or load it from the cache."""
    from transformers import AutoTokenizer

    section, sentinels = recipe.tokenizer, recipe.objective.objective_class.needs_sentinels

    def train(folder: Path) -> None:
        vocab_size = _trained_vocab_size(recipe)
        console.say(f"tokenizer training on the corpus: {vocab_size} entries")
        texts = partial(_tokenizer_texts, recipe, mirror)
        tokenizer = train_tokenizer(texts, vocab_size, section.kind, lowercase=section.lowercase, sentinels=sentinels)
        if len(tokenizer) < vocab_size:
            console.warn(
                f"the corpus is too small for {vocab_size} vocabulary entries; the tokenizer has {len(tokenizer)}"
            )
        tokenizer.save_pretrained(folder)

    options = json.dumps([TOKENIZER_VERSION, section.model_dump(), sentinels], sort_keys=True)
    contents = f"{options} {corpus_key(recipe.corpus, None, mirror)}"
    key = hashlib.blake2b(contents.encode(), digest_size=16).hexdigest()
    return AutoTokenizer.from_pretrained(get_or_create(cache_folder() / "tokenizers" / key, train, console.warn))


def _tokenizer_texts(recipe: PretrainRecipe, mirror: Path | None) -> Iterator[str]:
    """Yield the lines of about `sample_megabytes` of text, an equal part from the start of each source."""
    characters_per_source = recipe.tokenizer.sample_megabytes * 1e6 / len(recipe.corpus.sources)
    for source in recipe.corpus.sources:
        num_characters = 0
        for document in islice(read_documents(source, mirror), recipe.corpus.max_documents):
            yield from document.splitlines()
            num_characters += len(document)
            if num_characters >= characters_per_source:
                break


def _build_config(
    recipe: PretrainRecipe,
    source: ModelSource | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> tuple[PretrainedConfig, AddedTokens]:
    """Build the model configuration, or copy that of the model to continue from, and match the tokenizer to it.

    The recipe's tokens are added to the tokenizer.

    Raises:
        ModelError: if the model is too small for the sequences or the vocabulary, or has no head for sentence pairs.
    """
    new_tokens = recipe.tokenizer.add_tokens, "tokenizer.add_tokens"
    if source is None:
        added_tokens = add_tokens(tokenizer, *new_tokens)
        config = build_config(recipe.model, tokenizer, max_length)
        tokenizer.model_max_length = max(max_length, tokenizer.model_max_length)
        match_tokenizer(tokenizer, config, f"the new {config.model_type} model")
    else:
        match_tokenizer(tokenizer, source.config, source.name)
        config = copy.deepcopy(source.config)
        added_tokens = add_tokens(tokenizer, *new_tokens)
        if added_tokens:
            config.vocab_size = added_tokens.vocab_size(config.vocab_size)
        model_max_length = max_input_length(tokenizer, config)
        if max_length > model_max_length:
            raise ModelError(
                f"found {max_length} for the max_length of a phase, expected at most {model_max_length}, "
                f"the limit of {source.name}"
            )
    if recipe.objective.pairs is not None and not has_pair_head(config):
        raise ModelError(
            f"objective.pairs is set, but {config.model_type} models have no head for sentence pairs; remove it, or "
            "use bert or albert"
        )
    return config, added_tokens


def _token_logger(console: Console) -> Callable[[int], None]:
    """Return a callback that prints the number of tokens from time to time."""
    last_logged = 0

    def log(num_tokens: int) -> None:
        nonlocal last_logged
        if num_tokens >= last_logged + LOG_INTERVAL_TOKENS:
            last_logged = num_tokens
            console.say(f"corpus    {num_tokens:,} tokens so far")

    return log


def _report_corpus(
    recipe: PretrainRecipe, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, console: Console
) -> None:
    """Print how a file without empty lines is divided into documents, and warn if many tokens are unknown.

    Raises:
        DataError: if all tokens are unknown.
    """
    for source in recipe.corpus.sources:
        if (note := describe_layout(source)) is not None:
            console.say(f"corpus    {note}")
    if corpus.unknown_share > MAX_UNKNOWN_SHARE:
        is_trained = recipe.tokenizer.name is None and recipe.model.name is None
        cure = (
            "set tokenizer.kind=bpe, which covers every character, or increase tokenizer.vocab_size"
            if is_trained
            else "choose a model or tokenizer for this language, or train one with tokenizer.name=null"
        )
        message = f"{corpus.unknown_share:.1%} of the corpus tokens are unknown ({tokenizer.unk_token}); {cure}"
        if corpus.unknown_share == 1:
            raise DataError(message)
        console.warn(message)


def describe_layout(source: Source) -> str | None:
    """Describe how a source of one file without empty lines is divided into documents; None for any other source."""
    layout = single_file_layout(source)
    if layout is None:
        return None
    unit = "each line is a document" if layout == "lines" else "the file is one document, divided into pieces"
    return f"{', '.join(source.files)} has no empty lines: {unit}"


def _check_sentences(corpus: Corpus) -> None:
    """Check that one of the first documents has two or more sentences.

    Raises:
        DataError: if each of them is a single sentence.
    """
    num_documents = min(len(corpus.document_offsets) - 1, MAX_DOCUMENTS_TO_CHECK)
    flags = corpus.flags[: corpus.document_offsets[num_documents]]
    if np.count_nonzero(flags & SENTENCE_START) == num_documents:
        raise DataError(
            "every document has only one sentence, so no text has a next sentence; set `documents: blocks` to read "
            "consecutive lines as one document, or remove objective.pairs"
        )


def _warn_about_few_positive_pairs(held_out: SequenceSpans, console: Console) -> None:
    """Warn if positive pairs are rare: documents of a single sentence have no next sentence."""
    if held_out.pair_labels is None or len(held_out) < MIN_PAIRS_TO_CHECK:
        return
    fraction = float((held_out.pair_labels == IS_NEXT).mean())
    if fraction < MIN_POSITIVE_FRACTION:
        console.warn(
            f"only {fraction:.0%} of the sentence pairs are positive, because most documents have only one sentence; "
            "set `documents: blocks` to read consecutive lines as one document, or remove objective.pairs"
        )


def _sample_held_out(held_out: SequenceSpans, max_tokens: int) -> SequenceSpans:
    """Sample held-out sequences with at most `max_tokens` tokens in total, but at least one sequence."""
    order = np.random.default_rng(EVAL_SEED).permutation(len(held_out))
    fits = np.cumsum(held_out.lengths[order]) <= max_tokens
    sample = np.sort(order[fits]) if fits.any() else order[:1]
    labels = held_out.pair_labels
    return SequenceSpans(held_out.first[sample], held_out.second[sample], None if labels is None else labels[sample])


def resolve_phases(
    recipe: PretrainRecipe, setup: PretrainSetup, num_processes: int = 1
) -> tuple[Plan, list[ResolvedPhase]]:
    """Derive the plan of a run, and the first step and the end of each phase.

    Raises:
        RecipeError: if there are more warmup steps than training steps.
    """
    training, phases = recipe.training, recipe.phases
    batch_sizes = [phase.global_batch_size or training.global_batch_size for phase in phases]
    lengths = setup.corpus.document_lengths(setup.train)
    weights = document_weights(setup.corpus, setup.train, recipe.corpus.sources)
    num_tokens = float(weights @ lengths)  # per epoch
    max_tokens = [setup.objective.max_text_tokens(phase.max_length) for phase in phases]
    num_sequences = [  # per epoch, by phase
        math.ceil(weights @ -(-lengths // limit) * _sequences_per_chunk(setup, limit)) for limit in max_tokens
    ]
    if setup.first_position_id is not None:  # count rows of packed sequences, which have almost no padding
        num_special = [phase.max_length - limit for phase, limit in zip(phases, max_tokens, strict=True)]
        num_sequences = [
            math.ceil((num_tokens + number * special) / phase.max_length)
            for phase, number, special in zip(phases, num_sequences, num_special, strict=True)
        ]
    tokens_per_step = sum(
        phase.fraction * batch_size * num_tokens / number
        for phase, batch_size, number in zip(phases, batch_sizes, num_sequences, strict=True)
    )
    if training.max_steps is not None:
        total_steps = training.max_steps
    elif training.max_tokens is not None:
        total_steps = math.ceil(training.max_tokens / tokens_per_step)
    else:
        total_steps = max(1, round(training.epochs * num_tokens / tokens_per_step))
    plan = complete_plan(
        recipe,
        num_train_examples=num_sequences[0],
        steps_per_epoch=math.ceil(num_sequences[0] / batch_sizes[0]),
        total_steps=total_steps,
        global_batch_size=max(batch_sizes),
        num_processes=num_processes,
        budget_seconds=parse_seconds(training.budget),
    )
    ends = np.cumsum([phase.fraction for phase in phases]).tolist()
    ends[-1] = 1.0  # despite rounding errors
    starts = [0, *(math.ceil(end * total_steps - 1e-9) for end in ends[:-1])]
    return plan, [
        ResolvedPhase(start, end, phase.max_length, batch_size, has_time_budget=plan.budget_seconds is not None)
        for start, end, phase, batch_size in zip(starts, ends, phases, batch_sizes, strict=True)
    ]


def pretraining_workload(
    recipe: PretrainRecipe, config: PretrainedConfig, objective: Objective, num_parameters: int, num_processes: int = 1
) -> Workload:
    """Return what a process computes at a time in the largest phase, for an estimate of its memory."""
    micro_batch_size = recipe.hardware.micro_batch_size

    def num_sequences(phase: Phase) -> int:
        per_process = math.ceil((phase.global_batch_size or recipe.training.global_batch_size) / num_processes)
        return per_process if micro_batch_size == "auto" else min(micro_batch_size, per_process)

    largest = max(recipe.phases, key=lambda phase: num_sequences(phase) * phase.max_length)
    return Workload(
        config,
        num_parameters,
        num_parameters,
        num_sequences(largest),
        largest.max_length,
        math.ceil(config.num_hidden_layers * objective.num_models) if objective.num_models > 1 else None,
        objective.predicted_share,
    )


def _sequences_per_chunk(setup: PretrainSetup, max_tokens: int) -> float:
    """From a sample, estimate the number of sentence pairs per chunk of `max_tokens` tokens; for single texts, 1."""
    section, document_lengths = setup.recipe.objective, setup.corpus.document_lengths
    if section.pairs is None:
        return 1.0
    random = np.random.default_rng(PLAN_SEED)
    order = random.permutation(setup.train)
    sample = order[: max(2, int(np.searchsorted(np.cumsum(document_lengths(order)), PLAN_SAMPLE_TOKENS)))]
    pairs = build_sentence_pairs(setup.corpus, sample, max_tokens, section.pairs, section.short_seq_prob, random)
    return len(pairs) / int((-(-document_lengths(sample) // max_tokens)).sum())
