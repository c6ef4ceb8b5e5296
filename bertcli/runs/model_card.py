"""The model card: README.md of a run, with Hub metadata, scores, usage and recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.console import format_seconds, format_table
from bertcli.metrics.scores import AVERAGES
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe
from bertcli.runs.environment import mask_text
from bertcli.runs.results import RunResults
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

MODEL_ARGUMENT = '"model")'  # last argument of the calls in the code: the folder next to the card; `push` replaces it
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
HUB_METRICS = {  # our metric name → the Hub's, where they differ
    **{f"{name}_{average}": name for name in ("f1", "precision", "recall") for average in AVERAGES},
    "brier": "brier_score",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "r2": "r_squared",
    "roc_auc_macro": "roc_auc",
    "roc_auc_micro": "roc_auc",
    "spearman": "spearmanr",
}
NO_METRICS = ("loss",)
LOCAL_FILES = "local files"
SAMPLE = "built-in sample"


def build_model_card(
    results: RunResults, recipe: Recipe, task: Task, environment: Mapping[str, Any], base: str | None = None
) -> str:
    """Return the card of a fine-tuned model: Hub metadata, scores, training summary, usage and recipe.

    Args:
        results: content of `results.json`.
        environment: content of `environment.json`.
        base: the base model of a saved LoRA adapter; None if the full model is saved.
    """
    head = task.head_class
    pipeline = head.pipeline_tag
    datasets = _hub_ids([task.dataset])
    source = datasets[0] if datasets else SAMPLE if task.dataset == "sample" else LOCAL_FILES
    evaluations: list[EvalResult] = []
    for split, scores in results.mean_metrics().items():
        dataset = {"dataset_type": source, "dataset_name": task.name, "dataset_config": task.config}
        evaluations += _eval_results(scores, task_type=pipeline, dataset_split=_split_name(task, split), **dataset)
    name = task.name.replace("/", "-")
    library = "transformers" if base is None else "peft"
    metadata = _metadata(name, pipeline, results.model, datasets, evaluations, library)
    start = _code(results.model) if results.model else f"randomly initialized weights (BERT {results.size})"
    examples = f"{results.num_train_examples:,} examples of {_code(source)}"
    best = f"Best of {results.num_evaluations} evaluations by {results.best_by}: step {results.best_step}"
    has_new_head = recipe.model.new_head
    usage = _usage(head) if base is None else _adapter_usage(head, base, has_new_head=has_new_head)
    return f"""---
{metadata}
---

# {task.name}

Fine-tuned with [bertcli](https://pypi.org/project/bertcli) from {start} on {examples}, seed {results.seed}.

{_table(results.mean_metrics(), results)}

{best} of {results.total_steps}. {_training_summary(results, environment)}

{usage}{_calibration_note(results.temperature)}{_thresholds_note(results.thresholds)}{_tags_note(results)}

{_recipe_section(recipe)}
"""


def build_pretraining_card(results: RunResults, recipe: PretrainRecipe, environment: Mapping[str, Any]) -> str:
    """Return the card of a pretrained model: Hub metadata, held-out scores, training summary, usage and recipe."""
    objective = recipe.objective.objective_class
    pipeline = objective.pipeline_tag
    datasets = _hub_ids([source.dataset for source in recipe.corpus.sources])
    source = datasets[0] if len(datasets) == len(recipe.corpus.sources) == 1 else "corpus of the recipe"
    dataset = {"dataset_type": source, "dataset_name": source, "dataset_split": "held out"}
    evaluations = _eval_results(results.mean_scores("validation"), task_type=pipeline, **dataset)
    name = f"{results.family}-pretrained"
    metadata = _metadata(name, pipeline, results.model, datasets, evaluations)
    architecture = f"{results.family} {results.size or ''}".strip()
    start = _code(results.model) if results.model else f"randomly initialized weights ({architecture})"
    unigram = {"unigram cross-entropy": results.unigram_cross_entropy or 0.0}
    return f"""---
{metadata}
---

# {results.family}, pretrained

Pretrained with [bertcli](https://pypi.org/project/bertcli) from {start} on {results.num_tokens:,} tokens of
{results.num_documents:,} documents, seed {results.seed}.

{_table({"held out": results.mean_scores("validation") | unigram}, results)}

Step {results.best_step} of {results.total_steps}. {_training_summary(results, environment)}

{_usage(objective)}

{_recipe_section(recipe)}
"""


def build_multitask_card(results: RunResults, recipes: Mapping[str, Recipe]) -> str:
    """Return the README of a multitask run: the folder of each model, scores and recipes.

    Args:
        results: content of `results.json`.
        recipes: the recipe of each model, by its folder.
    """
    models = "\n".join(f"* `model/{folder}`" for folder in recipes)
    texts = "\n".join(_recipe_section(recipe) for recipe in recipes.values())
    return f"# One encoder, several tasks\n\n{models}\n\n{_table(results.mean_metrics(), results)}\n\n{texts}\n"


def _metadata(
    name: str,
    pipeline: str,
    base_model: str | None,
    datasets: Sequence[str],
    evaluations: Sequence[EvalResult],
    library: str = "transformers",
) -> str:
    """Return the YAML front matter as `huggingface_hub` writes it; the author can add the license and language."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name=library,
        pipeline_tag=pipeline,
        base_model=next(iter(_hub_ids([base_model])), None),
        datasets=list(datasets) or None,
        metrics=list(dict.fromkeys(result.metric_type for result in evaluations)) or None,
        tags=["bertcli"],
        model_name=name,
        eval_results=list(evaluations) or None,
    )
    return data.to_yaml()


def _eval_results(scores: Mapping[str, float], **dataset: Any) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(metric_type=HUB_METRICS.get(name, name), metric_name=name, metric_value=round(value, 6), **dataset)
        for name, value in scores.items()
        if name not in NO_METRICS
    ]


def _split_name(task: Task, split: str) -> str:
    """Return the name of a split in the dataset."""
    if split == "validation" and task.holds_out_rows:
        return "held out from training rows"
    return str(getattr(task.splits, split, None) or split)


def _hub_ids(names: Sequence[str | None]) -> list[str]:
    """Return the names that are Hub repositories, not local folders or the built-in sample."""
    candidates = [name for name in names if name and HUB_ID.fullmatch(name) and name != "sample"]
    return list(dict.fromkeys(name for name in candidates if not Path(name).exists()))


def _table(metrics: Mapping[str, Mapping[str, float]], results: RunResults) -> str:
    header, num_columns = ("split", "score", "value", "95 % interval"), 4 if results.intervals else 3
    rows = [
        (split, name, f"{value:.4f}", results.interval_text(name, split))[:num_columns]
        for split, scores in metrics.items()
        for name, value in scores.items()
    ]
    return format_table(header[:num_columns], rows)


def _training_summary(results: RunResults, environment: Mapping[str, Any]) -> str:
    machine = ", ".join(environment["gpus"]) or f"{environment['cpus']} CPU cores ({environment['processor']})"
    packages = environment["packages"]
    return (
        f"{results.num_parameters:,} parameters, trained for {format_seconds(results.train_seconds)} in "
        f"{results.precision} on {machine}, with PyTorch {packages['torch']}, transformers "
        f"{packages['transformers']} and bertcli {packages['bertcli']}."
    )


def _usage(kind: Any) -> str:
    """Return code that loads the full model; `kind` is the class of its head or pretraining objective."""
    if kind.has_pipeline:
        lines = ["from transformers import pipeline", ""]
        lines.append(f'pipe = pipeline("{kind.pipeline_tag}", model={MODEL_ARGUMENT}')
    else:
        model_class = "AutoModel" if kind.pipeline_tag == "feature-extraction" else kind.model_class
        lines = [f"from transformers import {model_class}, AutoTokenizer", ""]
        lines.append(f"model = {model_class}.from_pretrained({MODEL_ARGUMENT}")
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained({MODEL_ARGUMENT}")
    return _block("python", "\n".join(lines))


def _adapter_usage(head: Any, base: str, *, has_new_head: bool) -> str:
    """Return code that merges a LoRA adapter into `base`, whose head was replaced if `has_new_head`."""
    names = ["AutoConfig", head.model_class, "AutoTokenizer", *["pipeline"] * head.has_pipeline]
    options = ", config=config" + (", ignore_mismatched_sizes=True" if has_new_head else "")
    lines = [
        "from peft import PeftModel",
        f"from transformers import {', '.join(names)}",
        "",
        f"config = AutoConfig.from_pretrained({MODEL_ARGUMENT}",
        f"base = {head.model_class}.from_pretrained({json.dumps(base, ensure_ascii=False)}{options})",
        f"model = PeftModel.from_pretrained(base, {MODEL_ARGUMENT}.merge_and_unload()",
        f"tokenizer = AutoTokenizer.from_pretrained({MODEL_ARGUMENT}",
    ]
    if head.has_pipeline:
        lines.append(f'pipe = pipeline("{head.pipeline_tag}", model=model, tokenizer=tokenizer)')
    return _block("python", "\n".join(lines))


def _calibration_note(temperature: float | None) -> str:
    """Return a note on how the model was calibrated; empty if it was not."""
    if temperature is None:
        return ""
    return (
        f"\n\nThe probabilities are calibrated: the logits are divided by {temperature:.4g}, the temperature that fits "
        "the validation split best. It is merged into the weights, so the code above returns calibrated probabilities. "
        "Scores of the validation split after the calibration are of the rows that the temperature was fitted to."
    )


def _thresholds_note(thresholds: Mapping[str, float] | None) -> str:
    """Return a note that plain transformers ignores the thresholds; empty if there are none."""
    if not thresholds:
        return ""
    listed = ", ".join(f"{_code(label)}: {value:.4g}" for label, value in thresholds.items())
    return (
        f"\n\n`bertcli` applies probability thresholds ({listed}), saved in `config.json`. Plain `transformers` "
        "ignores them: the code above returns the same probabilities, but its predictions can differ."
    )


def _tags_note(results: RunResults) -> str:
    """Return a note on what `bertcli` does beyond plain transformers when tagging; empty if nothing."""
    notes = []
    if scheme := getattr(results, "tag_scheme", None):
        notes.append(f"`bertcli` constrains decoding to valid {scheme} tag sequences; the code above does not.")
    if getattr(results, "casing_feature", None):
        notes.append("Words with capital letters have `token_type_ids` of 1, which the code above does not set.")
    return "\n\n" + " ".join([*notes, "Predictions can differ."]) if notes else ""


def _recipe_section(recipe: Recipe | PretrainRecipe) -> str:
    return f"## Recipe\n\n{_block('yaml', mask_text(dump_recipe(recipe).rstrip()))}"


def _block(kind: str, text: str) -> str:
    """Return a fenced code block whose fence does not occur in `text`."""
    fence = "`" * max(3, _longest_backtick_run(text) + 1)
    return f"{fence}{kind}\n{text}\n{fence}"


def _code(text: str) -> str:
    """Format `text` as inline code, whatever it contains."""
    line = " ".join(text.split())
    fence = "`" * (_longest_backtick_run(line) + 1)
    inside = f" {line} " if line.startswith("`") or line.endswith("`") else line
    return f"{fence}{inside}{fence}"


def _longest_backtick_run(text: str) -> int:
    """Return the length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
