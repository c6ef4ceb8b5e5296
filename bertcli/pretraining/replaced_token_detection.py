"""Replaced token detection (ELECTRA, Clark et al. 2020, https://arxiv.org/abs/2003.10555).

A small generator fills in masked tokens; the discriminator classifies every token as original or replaced.
Shapes: B sequences of a batch, S length of its longest sequence.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.errors import ModelError
from bertcli.pretraining.masked_lm import MaskedLM
from bertcli.pretraining.objective import Text, TokenTargets

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from bertcli.models.generator_and_discriminator import GeneratorAndDiscriminatorOutput

ALL_TOKENS = "tokens"  # the discriminator's targets in `num_targets`: every token, not only the masked ones


class ReplacedTokenTargets(TokenTargets):
    """Masked sequences with their labels and original tokens."""

    @cached_property
    def num_targets(self) -> dict[str, int]:
        """Number of masked tokens (for the generator) and of all tokens (for the discriminator)."""
        return super().num_targets | {ALL_TOKENS: int(self.num_tokens.sum())}

    def batch(self, items: np.ndarray, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """Collate masked inputs, labels, original token ids and which tokens are masked. [B, S]"""
        tensors = super().batch(items, multiple_of)
        is_masked = tensors["target_positions"]
        original_ids = tensors["labels"].where(is_masked, tensors["input_ids"])
        return tensors | {"original_ids": original_ids, "is_masked": is_masked}


class ReplacedTokenDetection(MaskedLM):
    """Train a generator on masked tokens and a discriminator on every token. Only the discriminator is saved."""

    model_class = "AutoModelForPreTraining"
    pipeline_tag = "feature-extraction"
    has_pipeline = False
    supported_keys = MaskedLM.supported_keys | {"generator_size", "discriminator_weight"}
    supports_pairs = False
    supports_packing = False
    has_perplexity = False
    can_score_saved_model = False

    def build_module(self, model: PreTrainedModel) -> torch.nn.Module:
        """Combine the discriminator `model` with a new, narrower generator that shares its embeddings.

        Raises:
            ModelError: if `model` is not an ELECTRA model.
        """
        from bertcli.models.generator_and_discriminator import build_generator_and_discriminator

        if model.config.model_type != "electra":
            raise ModelError(
                f"found {model.config.model_type} for model.family, expected electra for replaced_token_detection"
            )
        config: Any = copy.deepcopy(model.config)
        return build_generator_and_discriminator(model, config, self.section.generator_size)

    def model_to_save(self, module: torch.nn.Module) -> PreTrainedModel:
        """Return the discriminator."""
        model: Any = module.discriminator
        return model

    def build_targets(self, texts: Sequence[Text], random: np.random.Generator) -> ReplacedTokenTargets:
        """Mask some tokens of each text, for the generator."""
        return ReplacedTokenTargets(self.mask(texts, random))

    def loss(self, outputs: Any, targets: dict[str, torch.Tensor], num_targets: dict[str, int]) -> torch.Tensor:
        """Compute the generator's cross-entropy plus the discriminator's, weighted by `discriminator_weight`."""
        generator_loss = super().loss(outputs, targets, num_targets)
        token_losses = _discriminator_losses(outputs) * outputs.attention_mask.bool()
        discriminator_loss = token_losses.sum() / num_targets[ALL_TOKENS]
        return generator_loss + self.section.discriminator_weight * discriminator_loss

    @property
    def num_models(self) -> float:
        """The discriminator and the narrower generator."""
        return 1 + self.section.generator_size

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the discriminator's and the generator's held-out scores."""
        return (*super().score_names, "generator_loss", "generator_accuracy")

    def score_batch(self, outputs: Any, targets: dict[str, torch.Tensor]) -> dict[str, tuple[float, int]]:
        """Return loss and accuracy of the discriminator, and of the generator (as `generator_…`)."""
        is_token = outputs.attention_mask.bool()
        losses = _discriminator_losses(outputs)[is_token]
        correct = ((outputs.discriminator_logits > 0) == outputs.is_replaced)[is_token]
        generator_scores = super().score_batch(outputs, targets)
        return {
            "loss": (float(losses.sum()), len(losses)),
            "accuracy": (float(correct.sum()), len(correct)),
            **{f"generator_{name}": score for name, score in generator_scores.items()},
        }


def _discriminator_losses(outputs: GeneratorAndDiscriminatorOutput) -> torch.Tensor:
    """Return the discriminator's loss at each position, padding included. [B, S]"""
    from torch.nn import functional

    logits, is_replaced = outputs.discriminator_logits.float(), outputs.is_replaced.float()
    return functional.binary_cross_entropy_with_logits(logits, is_replaced, reduction="none")
