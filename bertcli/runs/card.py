"""The model card: README.md of a run, in the hub's metadata format, with the numbers of this run."""

from __future__ import annotations

import json
from typing import Any


def write_card(results: dict[str, Any], dataset: str, recipe_text: str) -> str:
    """The card's text: front matter for the hub, what the model is, how good, how it was made, how to use it."""
    scores = results["metrics"]["validation"]
    metric_lines = "".join(f"      - type: {name}\n        value: {value:.6g}\n" for name, value in scores.items())
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in scores.items())
    base = results["model"] or f"fresh weights, BERT {results['size']}"
    return f"""---
library_name: transformers
pipeline_tag: {results["head"].replace("_", "-")}
tags:
  - bertcli
model-index:
  - name: {json.dumps(results["task"].replace("/", "-"), ensure_ascii=False)}
    results:
      - task:
          type: {results["head"].replace("_", "-")}
        dataset:
          name: {json.dumps(dataset, ensure_ascii=False)}
          type: {json.dumps(dataset, ensure_ascii=False)}
        metrics:
{metric_lines}---

# {results["task"]}

Made by [bertcli](https://pypi.org/project/bertcli) from {base}, seed {results["seed"]}.

| validation metric | value |
| --- | --- |
{rows}

Best of {results["num_evaluations"]} evaluations (step {results["best_step"]} of {results["total_steps"]}), by
{results["best_by"]}. Learned from {results["num_train_examples"]} examples in {results["train_seconds"]:.0f} seconds,
{results["num_parameters"]:,} parameters, on {results["device"]} in {results["precision"]}.

```python
from transformers import pipeline

answer = pipeline("{results["head"].replace("_", "-")}", model="model")
```

## Recipe

```yaml
{recipe_text.rstrip()}
```
"""


def write_pretraining_card(results: dict[str, Any], recipe_text: str) -> str:
    """The card's text of a pretrained model: what it is, how good its guesses are, how it was made."""
    scores = results["metrics"]["validation"]
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in scores.items())
    pipeline = "fill-mask" if results["objective"] == "masked_lm" else "text-generation"
    start = results["model"] or f"fresh weights, {results['family']} {results['size'] or ''}".strip()
    return f"""---
library_name: transformers
pipeline_tag: {pipeline}
tags:
  - bertcli
---

# {results["family"]}, pretrained

Made by [bertcli](https://pypi.org/project/bertcli) from {start}, seed {results["seed"]}, on {results["num_tokens"]:,}
tokens of {results["num_documents"]:,} documents.

| held-out score | value |
| --- | --- |
{rows}
| entropy without context | {results["unigram_entropy"]:.4f} |

Step {results["best_step"]} of {results["total_steps"]}; {results["train_seconds"]:.0f} seconds,
{results["num_parameters"]:,} parameters, on {results["device"]} in {results["precision"]}.

## Recipe

```yaml
{recipe_text.rstrip()}
```
"""
