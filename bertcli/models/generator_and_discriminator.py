"""ELECTRA pretraining: a generator and a discriminator with shared embeddings.

Shapes: B sequences in a batch, S length of its longest sequence, M tokens that the generator predicts, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers
from transformers import PreTrainedModel

from bertcli.models.sparse_prediction import SparsePrediction


@dataclass
class GeneratorAndDiscriminatorOutput:
    """The logits of both models; `in` looks up field names, as for model outputs of transformers."""

    logits: torch.Tensor  # [M, V] the generator's
    discriminator_logits: torch.Tensor  # [B, S]
    is_replaced: torch.Tensor  # [B, S] whether the generator's token differs from the original
    attention_mask: torch.Tensor  # [B, S]

    def __contains__(self, name: str) -> bool:
        return name in vars(self)


class GeneratorAndDiscriminator(torch.nn.Module):
    """A generator that predicts masked tokens, and a discriminator that detects tokens replaced by its samples.

    No gradient flows from the discriminator to the generator.
    """

    def __init__(self, discriminator: PreTrainedModel, generator: PreTrainedModel):
        super().__init__()
        generator.base_model.embeddings = discriminator.base_model.embeddings
        generator.tie_weights()
        self.discriminator, self.generator = discriminator, SparsePrediction(generator)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        original_ids: torch.Tensor,
        is_masked: torch.Tensor,
        target_positions: torch.Tensor,
        **inputs: torch.Tensor,
    ) -> GeneratorAndDiscriminatorOutput:
        """Replace the masked tokens with samples from the generator, and classify every token as original or replaced.

        Args:
            input_ids: [B, S] with masked tokens.
            original_ids: [B, S] before masking.
            is_masked: [B, S] whether a token is masked, so that the generator replaces it.
            target_positions: [M] positions in the flattened `input_ids` for which the generator computes logits: at
                least those of the masked tokens.
        """
        logits = self.generator(
            target_positions=target_positions, input_ids=input_ids, attention_mask=attention_mask, **inputs
        ).logits
        sampled_ids = original_ids.flatten()
        if len(logits):  # short texts may have no masked token
            samples = torch.distributions.Categorical(logits=logits.detach().float(), validate_args=False).sample()
            sampled_ids = sampled_ids.index_copy(0, target_positions, samples)
        sampled_ids = sampled_ids.view_as(original_ids).where(is_masked, original_ids)
        discriminator_logits = self.discriminator(input_ids=sampled_ids, attention_mask=attention_mask, **inputs).logits
        is_replaced = sampled_ids != original_ids
        return GeneratorAndDiscriminatorOutput(logits, discriminator_logits, is_replaced, attention_mask)


def build_generator_and_discriminator(
    discriminator: PreTrainedModel, config: transformers.ElectraConfig, generator_size: float
) -> GeneratorAndDiscriminator:
    """Combine the discriminator with a new generator.

    Args:
        config: a copy of the discriminator's configuration, changed in place to become the generator's.
        generator_size: width of the generator relative to the discriminator; both have the same attention head size.
    """
    num_heads = max(1, round(config.num_attention_heads * generator_size))
    head_size = config.hidden_size // config.num_attention_heads
    config.num_attention_heads, config.hidden_size = num_heads, num_heads * head_size
    config.intermediate_size = 4 * config.hidden_size
    generator = transformers.ElectraForMaskedLM(config)
    return GeneratorAndDiscriminator(discriminator, generator)
