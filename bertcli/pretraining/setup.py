"""Everything a pretraining run needs before its first step: tokenizer, tokens, configuration, held-out text, plan."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.console import Console
from bertcli.data.cache import cache_folder, made_once
from bertcli.data.corpus_reading import read_documents
from bertcli.data.corpus_sequences import IN_ORDER, Ranges, divide_documents, pair_documents, weights_of
from bertcli.data.corpus_tokens import Corpus, corpus_key, open_corpus
from bertcli.errors import DataError, ModelError, RecipeError, did_you_mean
from bertcli.models.from_pretrained import first_position, load_config, load_tokenizer, longest_input
from bertcli.models.from_scratch import PACKABLE, VOCABULARY_MULTIPLE, build_config, tells_pairs
from bertcli.models.tokenizer_training import train_tokenizer
from bertcli.pretraining import OBJECTIVES
from bertcli.pretraining.batches import Stage, ranges_of
from bertcli.pretraining.objective import Objective
from bertcli.recipe.plan import Plan, complete_plan
from bertcli.recipe.pretrain_schema import PretrainRecipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

HELD_OUT_SALT = 3  # of the choices made once, for the held-out text
FEWEST_PAIRS, LEAST_IN_ORDER = 20, 0.25  # to judge by, and what half of them should be
PLAN_SALT = 5  # of the documents that are looked at for the plan
TOKENS_TO_PLAN_BY = 200_000
LEARNED_AS = 3  # to be raised when vocabularies are learned in another way: those in the cache are then not taken
TOKENS_BETWEEN_LINES = 10_000_000


@dataclass(frozen=True)
class Pretraining:
    """What a recipe names, read and checked."""

    recipe: PretrainRecipe
    tokenizer: PreTrainedTokenizerBase
    objective: Objective
    config: PretrainedConfig
    corpus: Corpus
    train: np.ndarray  # numbers of the documents to learn from
    held_out: Ranges
    first_position: int | None  # where positions start if sequences are packed; None: one a row
    mirror: Path | None


def prepare(recipe: PretrainRecipe, mirror: Path | None, console: Console) -> Pretraining:
    """Tokenizer, tokens, model configuration and held-out text of a recipe.

    Raises:
        RecipeError, DataError, ModelError: what the recipe asks for does not fit together.
    """
    tokenizer = _tokenizer(recipe, mirror, console)
    objective = OBJECTIVES[recipe.objective.kind](recipe.objective, tokenizer)
    best_by, known = recipe.evaluation.best_by, objective.score_names
    if best_by is not None and best_by not in known:
        cure = did_you_mean(best_by, known)
        raise RecipeError([f"found evaluation.best_by {best_by!r}, expected one of {', '.join(known)}.{cure}"])
    longest = max(phase.max_length for phase in recipe.phases)
    if recipe.model.name is None:
        config = build_config(recipe.model, tokenizer, longest)
        tokenizer.model_max_length = max(longest, tokenizer.model_max_length)
    else:
        config = load_config(recipe.model.name, mirror)
        most = longest_input(tokenizer, config)
        if longest > most:
            raise ModelError(f"found a phase of {longest} tokens, but {recipe.model.name} reads {most} at most")
        if config.vocab_size < len(tokenizer):
            model = f"{recipe.model.name} knows {config.vocab_size}"
            raise ModelError(f"the tokenizer has {len(tokenizer)} entries, but {model}")
    if recipe.objective.pairs is not None and not tells_pairs(config):
        raise ModelError(
            f"found objective.pairs, but models of the family {config.model_type} have no head for pairs; leave it "
            "out, or take bert or albert"
        )
    for field, value in objective.config_fields().items():
        setattr(config, field, value)
    with console.waiting("tokenising the corpus"):
        corpus = open_corpus(recipe.corpus, tokenizer, mirror, _teller(console), console.warn)
    least = 2 if recipe.objective.pairs == "next_sentence" else 1  # one that a text does not come from
    train_documents, held_out_documents = divide_documents(corpus, recipe.corpus.held_out_share, least)
    random = np.random.default_rng(HELD_OUT_SALT)
    held_out = ranges_of(recipe, corpus, held_out_documents, objective, longest, random)
    _tell_of_uneven_pairs(held_out, console)
    first = first_position(config) if recipe.packing else None
    if recipe.packing and config.model_type not in PACKABLE:
        console.warn(f"{config.model_type} cannot keep packed sequences apart; each has a row of its own")
        first = None
    kept = _limit(recipe, held_out)
    return Pretraining(recipe, tokenizer, objective, config, corpus, train_documents, kept, first, mirror)


def _tell_of_uneven_pairs(held_out: Ranges, console: Console) -> None:
    """Warn of documents that are single sentences, of which no two follow each other: nothing is to be told apart."""
    if held_out.pair_labels is None or len(held_out) < FEWEST_PAIRS:
        return
    share = float((held_out.pair_labels == IN_ORDER).mean())
    if share < LEAST_IN_ORDER:
        console.warn(
            f"only {share:.0%} of the pairs are in order, since most documents are one sentence: join those that "
            "belong together (documents: blocks), or leave out objective.pairs"
        )


def _teller(console: Console) -> Any:
    """Says now and then how many tokens are made."""
    said = [0]

    def tell(num_tokens: int) -> None:
        if num_tokens >= said[0] + TOKENS_BETWEEN_LINES:
            said[0] = num_tokens
            console.say(f"corpus    {num_tokens:,} tokens so far")

    return tell


def _limit(recipe: PretrainRecipe, held_out: Ranges) -> Ranges:
    """A random part of the held-out sequences, if they are more than the recipe wants to score."""
    order = np.random.default_rng(HELD_OUT_SALT).permutation(len(held_out))
    kept = np.cumsum(held_out.lengths[order]) <= recipe.corpus.max_held_out_tokens
    chosen = np.sort(order[kept]) if kept.any() else order[:1]
    labels = held_out.pair_labels
    return Ranges(held_out.first[chosen], held_out.second[chosen], None if labels is None else labels[chosen])


def _tokenizer(recipe: PretrainRecipe, mirror: Path | None, console: Console) -> PreTrainedTokenizerBase:
    """The named tokenizer, the model's own, or one learned from the corpus (kept in the cache)."""
    name = recipe.tokenizer.name or recipe.model.name
    if name is not None:
        return load_tokenizer(name, mirror)
    from transformers import AutoTokenizer

    def make(aside: Path) -> None:
        section = recipe.tokenizer
        wanted = -(-section.vocabulary_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        sentinels = recipe.objective.kind == "span_corruption"
        console.say(f"tokenizer is learned: {wanted} entries")
        tokenizer = train_tokenizer(
            partial(_sample, recipe, mirror), wanted, section.kind, lowercase=section.lowercase, sentinels=sentinels
        )
        if len(tokenizer) < wanted:
            console.warn(f"the corpus gave {len(tokenizer)} vocabulary entries, fewer than the {wanted} asked for")
        tokenizer.save_pretrained(aside)

    return AutoTokenizer.from_pretrained(
        made_once(cache_folder() / "tokenizers" / _tokenizer_key(recipe, mirror), make, console.warn)
    )


def _tokenizer_key(recipe: PretrainRecipe, mirror: Path | None) -> str:
    options = json.dumps(
        [LEARNED_AS, recipe.tokenizer.model_dump(), recipe.objective.kind == "span_corruption"], sort_keys=True
    )
    return hashlib.blake2b(f"{options} {corpus_key(recipe.corpus, None, mirror)}".encode(), digest_size=16).hexdigest()


def _sample(recipe: PretrainRecipe, mirror: Path | None) -> Iterator[str]:
    """About `sample_megabytes` of text, the same from each source."""
    share = recipe.tokenizer.sample_megabytes * 1e6 / len(recipe.corpus.sources)
    for source in recipe.corpus.sources:
        size = 0
        for document in islice(read_documents(source, mirror), recipe.corpus.max_documents):
            yield from document.splitlines()
            size += len(document)
            if size >= share:
                break


def plan_stages(recipe: PretrainRecipe, prepared: Pretraining, num_processes: int = 1) -> tuple[Plan, list[Stage]]:
    """The numbers of the run, and the steps of each phase.

    Raises:
        RecipeError: the warm-up is longer than the training.
    """
    training, phases = recipe.training, recipe.phases
    sizes = [phase.global_batch_size or training.global_batch_size for phase in phases]
    lengths = prepared.corpus.lengths_of(prepared.train)
    weights = weights_of(prepared.corpus, prepared.train, recipe.corpus.sources)
    num_tokens, rooms = float(weights @ lengths), [prepared.objective.room(phase.max_length) for phase in phases]
    pieces = [math.ceil(weights @ -(-lengths // room) * _sequences_a_piece(prepared, room)) for room in rooms]
    if prepared.first_position is not None:  # rows of several pieces, hardly a place empty
        special = [phase.max_length - room for phase, room in zip(phases, rooms, strict=True)]
        pieces = [
            math.ceil((num_tokens + count * more) / phase.max_length)
            for phase, count, more in zip(phases, pieces, special, strict=True)
        ]
    tokens_a_step = sum(
        phase.share * size * num_tokens / count for phase, size, count in zip(phases, sizes, pieces, strict=True)
    )
    sequences, per_epoch = pieces[0], math.ceil(pieces[0] / sizes[0])
    if training.max_steps is not None:
        total = training.max_steps
    elif training.max_tokens is not None:
        total = math.ceil(training.max_tokens / tokens_a_step)
    else:
        total = max(1, round(training.epochs * num_tokens / tokens_a_step))
    plan = complete_plan(
        recipe,
        num_train_examples=sequences,
        steps_per_epoch=per_epoch,
        total_steps=total,
        global_batch_size=max(sizes),
        num_processes=num_processes,
        budget_seconds=_seconds(training.budget),
    )
    ends = np.cumsum([phase.share for phase in phases]).tolist()
    ends[-1] = 1.0  # whatever rounding says
    starts = [0, *(math.ceil(end * total - 1e-9) for end in ends[:-1])]
    stages = [
        Stage(start, end, phase.max_length, size, by_the_clock=plan.budget_seconds is not None)
        for start, end, phase, size in zip(starts, ends, phases, sizes, strict=True)
    ]
    return plan, stages


def _sequences_a_piece(prepared: Pretraining, room: int) -> float:
    """Pairs that are made for each piece of `room` tokens, seen on some documents; 1 if texts stand alone."""
    section = prepared.recipe.objective
    if section.pairs is None:
        return 1.0
    random, lengths_of = np.random.default_rng(PLAN_SALT), prepared.corpus.lengths_of
    order = random.permutation(prepared.train)
    some = order[: max(2, int(np.searchsorted(np.cumsum(lengths_of(order)), TOKENS_TO_PLAN_BY)))]
    pairs = pair_documents(prepared.corpus, some, room, section.pairs, section.short_sequence_probability, random)
    return len(pairs) / int((-(-lengths_of(some) // room)).sum())


def _seconds(budget: str | None) -> float | None:
    """`30m` → 1800.0"""
    return None if budget is None else float(budget[:-1]) * {"s": 1, "m": 60, "h": 3600}[budget[-1]]


def unigram_entropy(corpus: Corpus, held_out: Ranges, vocabulary: int) -> float:
    """Nats a held-out token costs whoever knows how often each token occurs in the corpus, and nothing else."""
    counts = np.ones(vocabulary)  # none is impossible
    for start in range(0, len(corpus.tokens), 1 << 24):
        counts += np.bincount(corpus.tokens[start : start + (1 << 24)], minlength=vocabulary)
    costs = -np.log(counts / counts.sum())
    own = np.zeros(vocabulary)
    for start, end in held_out.first:
        own += np.bincount(corpus.tokens[start:end], minlength=vocabulary)
    if own.sum() == 0:
        raise DataError("the held-out text holds no tokens")
    return float((costs * own).sum() / own.sum())
