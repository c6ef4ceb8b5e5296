"""Tell which tokens a small generator has replaced (ELECTRA, Clark et al. 2020, https://arxiv.org/abs/2003.10555)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from bertcli.errors import ModelError
from bertcli.models.sparse_prediction import AskedPositions
from bertcli.pretraining.masked_lm import MaskedLM
from bertcli.pretraining.objective import AskedTokens, Text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TOKENS = "tokens"  # what the discriminator's loss is a mean over: it judges every token


class ReplaceableTokens(AskedTokens):
    """Masked sequences beside what they were."""

    @cached_property
    def counts(self) -> dict[str, int]:
        """Masked tokens for the generator, all tokens for the discriminator."""
        return super().counts | {TOKENS: int(self.sizes.sum())}

    def batch(self, items: np.ndarray, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """Masked inputs, labels and the original ids. [B, S]"""
        tensors = super().batch(items, multiple_of)
        return tensors | {"original_ids": tensors["labels"].where(tensors["asked"], tensors["input_ids"])}


class ReplacedTokens(MaskedLM):
    """A generator fills masked tokens, the discriminator looks at every token. Only the discriminator is kept."""

    model_class = "AutoModelForPreTraining"
    loss_is_of_tokens = False

    def build(self, model: PreTrainedModel) -> torch.nn.Module:
        """Discriminator and a narrower generator that share their embeddings.

        Raises:
            ModelError: the model is no ELECTRA.
        """

        if model.config.model_type != "electra":
            raise ModelError(f"found model.family {model.config.model_type}, expected electra for replaced_tokens")
        config: Any = copy.deepcopy(model.config)
        return build_generator_and_discriminator(model, config, self.section.generator_size)

    def saved(self, module: torch.nn.Module) -> PreTrainedModel:
        """The discriminator."""
        model: Any = module.discriminator
        return model

    def ask(self, texts: Sequence[Text], random: np.random.Generator) -> ReplaceableTokens:
        """Masked texts for the generator, the texts themselves to judge by."""
        return ReplaceableTokens(self.mask(texts, random))

    def loss(self, outputs: Any, targets: dict[str, torch.Tensor], counts: dict[str, int]) -> torch.Tensor:
        """The generator's cross-entropy and the discriminator's, weighted."""
        generator = super().loss(outputs, targets, counts)
        judged = (self._judged(outputs) * outputs.attention_mask.bool()).sum() / counts[TOKENS]
        return generator + self.section.discriminator_weight * judged

    @property
    def score_names(self) -> tuple[str, ...]:
        """The discriminator's, and the generator's beside them."""
        return (*super().score_names, "generator_loss", "generator_accuracy")

    def measure(self, outputs: Any, targets: dict[str, torch.Tensor]) -> dict[str, tuple[float, int]]:
        """Loss and accuracy of the discriminator, and the generator's beside them."""
        real = outputs.attention_mask.bool()
        losses = self._judged(outputs)[real]
        hits = ((outputs.discriminator_logits > 0) == outputs.replaced)[real]
        generator = super().measure(outputs, targets)
        return {
            "loss": (float(losses.sum()), len(losses)),
            "accuracy": (float(hits.sum()), len(hits)),
            **{f"generator_{name}": pair for name, pair in generator.items()},
        }

    def _judged(self, outputs: Any) -> torch.Tensor:
        """The discriminator's loss at each place, padding included. [B, S]"""
        from torch.nn import functional

        logits, replaced = outputs.discriminator_logits.float(), outputs.replaced.float()
        return functional.binary_cross_entropy_with_logits(logits, replaced, reduction="none")


@dataclass
class JointOutput:
    """What generator and discriminator say; knows its names by `in`, as outputs of transformers do."""

    logits: torch.Tensor  # [M, V] the generator's, of the M asked tokens
    discriminator_logits: torch.Tensor  # [B, S]
    replaced: torch.Tensor  # [B, S] whether a token is not what it was
    attention_mask: torch.Tensor  # [B, S]

    def __contains__(self, name: str) -> bool:
        return name in vars(self)


class GeneratorAndDiscriminator(torch.nn.Module):
    """The generator guesses masked tokens; drawn guesses stand in for them; the discriminator judges every token.

    No gradient goes from the discriminator to the generator.
    """

    def __init__(self, discriminator: PreTrainedModel, generator: PreTrainedModel):
        super().__init__()
        generator.base_model.embeddings = discriminator.base_model.embeddings
        generator.tie_weights()
        self.discriminator, self.generator = discriminator, AskedPositions(generator)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        original_ids: torch.Tensor,
        asked: torch.Tensor,
        **inputs: torch.Tensor,
    ) -> JointOutput:
        """Fill the `asked` places [M] of the flattened `input_ids` [B, S], judge the result against `original_ids`."""
        logits = self.generator(asked=asked, input_ids=input_ids, attention_mask=attention_mask, **inputs).logits
        filled = original_ids.flatten()
        if len(logits):  # of short texts none may be asked
            drawn = torch.distributions.Categorical(logits=logits.detach().float(), validate_args=False).sample()
            filled = filled.index_copy(0, asked, drawn)
        filled = filled.view_as(original_ids)
        judged = self.discriminator(input_ids=filled, attention_mask=attention_mask, **inputs).logits
        return JointOutput(logits, judged, filled != original_ids, attention_mask)


def build_generator_and_discriminator(
    discriminator: PreTrainedModel, config: transformers.ElectraConfig, generator_size: float
) -> GeneratorAndDiscriminator:
    """Put a generator beside the discriminator.

    Args:
        config: a copy of the discriminator's, to be narrowed.
        generator_size: the generator's width as a share of the discriminator's; heads keep theirs.
    """
    heads = max(1, round(config.num_attention_heads * generator_size))
    width = config.hidden_size // config.num_attention_heads * heads
    config.num_attention_heads, config.hidden_size = heads, width
    config.intermediate_size = 4 * width
    generator = transformers.ElectraForMaskedLM(config)
    return GeneratorAndDiscriminator(discriminator, generator)
