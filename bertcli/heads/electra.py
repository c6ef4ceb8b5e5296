"""ELECTRA in training: a generator and a discriminator that share their embeddings. B rows, S tokens, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers
from transformers import PreTrainedModel

from bertcli.heads.asked_positions import AskedPositions


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
