"""The pretraining job: its model, batches and loss, held-out scores, results and model card."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from bertcli.console import Console
from bertcli.data.batching import GlobalBatch, token_budget_batches
from bertcli.data.corpus_sequences import SequenceSpans
from bertcli.data.corpus_tokens import Corpus
from bertcli.errors import DataError, ModelError
from bertcli.inference.forward import check_finite
from bertcli.models.from_pretrained import ModelSource
from bertcli.models.from_scratch import build_from_config
from bertcli.models.missing_weights import MissingWeights
from bertcli.models.padding_free import optimize_forward
from bertcli.models.tokenizer_matching import is_padding_sensitive
from bertcli.pretraining.batches import BatchStream, ResolvedPhase, read_texts
from bertcli.pretraining.objective import TargetSequences
from bertcli.pretraining.setup import EVAL_SEED, PretrainSetup, resolve_phases, set_up
from bertcli.recipe.plan import Plan
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import HardwareSection
from bertcli.runs.environment import describe_environment
from bertcli.runs.model_card import build_pretraining_card
from bertcli.runs.results import EvalResults, RunResults
from bertcli.training.devices import build_accelerator, compiles_each_size, pad_to_multiple_of, prepare_batch
from bertcli.training.fsdp import local_batches
from bertcli.training.job import Evaluation, Job, OnBatch
from bertcli.training.loop import Loss
from bertcli.training.meters import RunClock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_LOSS_FOR_PERPLEXITY = 100.0  # exp of larger losses would overflow
NUM_HASHED_TOKENS = 2**20
COUNT_CHUNK_TOKENS = 2**24  # number of tokens counted per call, to limit memory


class PretrainJob(Job):
    """Pretrain a model on plain text."""

    def __init__(self, setup: PretrainSetup, plan: Plan, phases: list[ResolvedPhase]):
        self.setup, self.plan, self.phases = setup, plan, phases
        self.recipe, self.tokenizer = setup.recipe, setup.tokenizer
        self.best_by = setup.recipe.evaluation.best_by or "loss"
        self._stream = BatchStream(
            setup.recipe, setup.corpus, setup.train, setup.objective, self.seed, setup.first_position_id
        )

    def build_model(self, console: Console) -> torch.nn.Module:
        """Build a new model or load the one to continue from, wrapped by the objective."""
        setup, objective = self.setup, self.setup.objective
        if setup.source is None:
            model = build_from_config(setup.config, objective.model_class)
        else:
            model = setup.source.load_model(
                objective.model_class,
                objective.config_fields(),
                dropout=setup.recipe.model.dropout,
                on_missing=partial(MissingWeights.report, console=console, name=setup.source.name),
            )
            setup.added_tokens.extend_model(model)
        return objective.build_module(model)

    def model_to_save(self, module: torch.nn.Module) -> PreTrainedModel:
        """Return the part of the trained module that the objective saves."""
        return self.setup.objective.model_to_save(module)

    @property
    def data_fingerprint(self) -> str:
        """A hash of the lengths of all documents, of a sample of their tokens, and of the added tokens."""
        corpus = self.setup.corpus
        digest = hashlib.blake2b(corpus.document_offsets.tobytes(), digest_size=16)
        digest.update(corpus.tokens[:: max(1, len(corpus.tokens) // NUM_HASHED_TOKENS)].tobytes())
        if self.setup.added_tokens:
            digest.update(self.setup.added_tokens.fingerprint.encode())
        return digest.hexdigest()

    @property
    def tokens_per_micro_batch(self) -> float:
        """The number of tokens in a micro-batch of full-length sequences, in the first phase."""
        return self.phases[0].max_length * self.plan.micro_batch_size

    @property
    def loss(self) -> Loss:
        """The objective's loss function."""
        return self.setup.objective.loss

    def batches(self, accelerator: Accelerator, start_step: int, clock: RunClock) -> Iterator[GlobalBatch]:
        """Yield this process's batches of all phases from `start_step` on, updating `stream_position` (phase first)."""
        step, position = start_step, self.stream_position
        for index, phase in enumerate(self.phases):
            for batch in self._stream.batches(
                phase,
                step,
                clock,
                self.plan.micro_batch_size,
                accelerator.process_index,
                accelerator.num_processes,
                pad_to_multiple_of(accelerator),
                (position[1], position[2], position[3]) if position and position[0] == index else None,
            ):
                step += 1
                self.stream_position = [index, *self._stream.position]
                yield batch

    def evaluate(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        split: str = "validation",
        on_batch: OnBatch = lambda num_items: None,
    ) -> Evaluation:
        """Compute the objective's scores on the held-out text, with the same masks in every evaluation.

        Raises:
            TrainingError: if a score is not finite.
        """
        objective, held_out = self.setup.objective, self._held_out_targets
        sums: dict[str, np.ndarray] = {}  # for each score, its sum and number of targets
        model.eval()
        same_length = is_padding_sensitive(model, int(held_out.lengths.max(initial=0)))
        multiple_of = 1 if same_length else pad_to_multiple_of(accelerator)
        max_tokens = self.recipe.hardware.eval_batch_tokens
        batches = list(token_budget_batches(held_out.lengths, max_tokens, same_length=same_length))
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(EVAL_SEED)
            for items, counts in local_batches(batches, accelerator, model):
                batch = held_out.batch(items, multiple_of)
                inputs = prepare_batch(batch, model, accelerator.device, round_up=compiles_each_size(accelerator))
                targets = {name: inputs.pop(name) for name in held_out.num_targets if name in inputs}
                for name, sum_and_number in objective.score_batch(model(**inputs), targets).items():
                    sums[name] = sums.get(name, np.zeros(2)) + np.asarray(sum_and_number) * counts
                on_batch(len(items))
        all_sums = gather_object([sums])  # of all processes
        names = sorted({name for local in all_sums for name in local})
        totals = {name: np.sum([local[name] for local in all_sums if name in local], axis=0) for name in names}
        scores = {name: float(total / max(1.0, number)) for name, (total, number) in totals.items()}
        check_finite(list(scores.values()))
        if not objective.has_perplexity:
            return Evaluation(scores)
        return Evaluation(scores | {"perplexity": math.exp(min(scores["loss"], MAX_LOSS_FOR_PERPLEXITY))})

    @cached_property
    def _held_out_targets(self) -> TargetSequences:
        corpus, held_out = self.setup.corpus, self.setup.held_out
        texts = read_texts(corpus, held_out, np.arange(len(held_out)))
        return self.setup.objective.build_targets(texts, np.random.default_rng(EVAL_SEED))

    def describe(self) -> dict[str, Any]:
        """Describe objective, model and corpus, with the unigram cross-entropy of the held-out text."""
        section, corpus = self.setup.recipe.model, self.setup.corpus
        return {
            "objective": self.setup.recipe.objective.kind,
            "model": section.name,
            "family": section.family,
            "size": section.size,
            "vocab_size": len(self.tokenizer),
            "num_documents": len(corpus.document_offsets) - 1,
            "num_tokens": len(corpus.tokens),
            "unknown_token_share": corpus.unknown_share,
            "unigram_cross_entropy": unigram_cross_entropy(corpus, self.setup.held_out, len(self.tokenizer)),
        }

    def card(self, results: RunResults) -> str:
        """Build the text of the model card."""
        return build_pretraining_card(results, self.setup.recipe, describe_environment())


def unigram_cross_entropy(corpus: Corpus, held_out: SequenceSpans, vocab_size: int) -> float:
    """Return the unigram cross-entropy of the held-out text, in nats per token, as a baseline for the loss.

    Raises:
        DataError: if the held-out text has no tokens.
    """
    counts = np.ones(vocab_size)  # add-one smoothing
    for start in range(0, len(corpus.tokens), COUNT_CHUNK_TOKENS):
        counts += np.bincount(corpus.tokens[start : start + COUNT_CHUNK_TOKENS], minlength=vocab_size)
    surprisal = -np.log(counts / counts.sum())
    held_out_counts = np.zeros(vocab_size)
    for start, end in held_out.first:
        held_out_counts += np.bincount(corpus.tokens[start:end], minlength=vocab_size)
    if held_out_counts.sum() == 0:
        raise DataError("the held-out text has no tokens; increase corpus.held_out_fraction")
    return float((surprisal * held_out_counts).sum() / held_out_counts.sum())


def score_held_out(
    recipe: PretrainRecipe, run: str, *, mirror: Path | None, hardware: HardwareSection | None, console: Console
) -> EvalResults:
    """Score the saved model of a pretraining run on its held-out text.

    Args:
        hardware: overrides of the recipe's hardware section.

    Raises:
        ModelError: if only part of the trained model was saved (ELECTRA's discriminator), or the file of
            `tokenizer.add_tokens` has changed.
    """
    recipe = recipe.model_copy(update={"hardware": recipe.hardware.with_overrides(hardware)})
    setup = set_up(recipe, mirror, console)
    if not setup.objective.can_score_saved_model:
        raise ModelError(f"{run} contains only the discriminator, which cannot be scored without its generator")
    source = ModelSource(run, mirror)
    if setup.added_tokens and source.load_tokenizer().get_vocab() != setup.tokenizer.get_vocab():
        raise ModelError(f"{run} was trained with other added tokens; restore the file of tokenizer.add_tokens")
    accelerator = build_accelerator(recipe.hardware)
    module = setup.objective.build_module(source.load_model(setup.objective.model_class))
    optimize_forward(module, accelerator.device)
    job, num_sequences = PretrainJob(setup, *resolve_phases(recipe, setup)), len(setup.held_out)
    with console.display("eval held-out text", num_sequences) as display:
        evaluation = job.evaluate(accelerator, accelerator.prepare_model(module), on_batch=display.advance)
    return EvalResults(
        objective=recipe.objective.kind,
        run=run,
        num_examples=num_sequences,
        metrics={"validation": {**evaluation.scores}},
    )
