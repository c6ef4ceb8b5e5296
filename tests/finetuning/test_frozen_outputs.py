"""The cache of a frozen model's outputs: what its key depends on, and that a full disk raises an error."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig

from bertcli.data.encoding import Encoded
from bertcli.finetuning.frozen_outputs import create_array, outputs_key

ENCODED = Encoded(np.array([1, 5, 2], np.int32), None, np.array([0, 3]), np.array([0]), None, pad_token_id=0)


@pytest.mark.parametrize(
    ("field", "value", "changes"),
    [
        ("num_attention_heads", 6, True),
        ("hidden_act", "relu", True),
        ("_name_or_path", "copy", False),
        ("id2label", {0: "no", 1: "yes"}, False),
    ],
)
def test_outputs_key_depends_on_what_the_model_computes(field: str, value: object, changes: bool) -> None:
    config, weights = BertConfig(), {"weight": torch.zeros(2)}
    other = copy.deepcopy(config)
    setattr(other, field, value)
    assert (outputs_key(config, weights, ENCODED) != outputs_key(other, weights, ENCODED)) is changes


def test_array_has_its_space_on_disk_so_that_writing_cannot_fail(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    array = create_array(path, np.float32, (1000, 10))
    assert path.stat().st_blocks * 512 >= array.nbytes
    array[:] = 2
    array.flush()
    assert np.load(path).sum() == 20_000
