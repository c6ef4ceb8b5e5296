"""The model card: README.md of a run, in the hub's metadata format, with the numbers of this run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.console import format_seconds, format_table
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe
from bertcli.tasks.task import HeadName, Task

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

MODEL_HERE = '"model")'  # in the card's program: the folder beside the card
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
HUB_METRICS = {  # ours → the hub's, where they differ
    "f1_macro": "f1",
    "f1_micro": "f1",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}
NO_METRICS = ("loss",)
OWN_FILES = "own files"
SAMPLE = "embedded sample"
PIPELINES = {"masked_lm": "fill-mask", "causal_lm": "text-generation", "span_corruption": "text2text-generation"}
PROGRAMS = {  # of the kinds of answer that are one call in transformers
    "text_classification": "text-classification",
    "token_classification": "token-classification",
    "masked_lm": "fill-mask",
    "causal_lm": "text-generation",
}
CLASSES: dict[HeadName | str, str] = {
    "text_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "multiple_choice": "AutoModelForMultipleChoice",
    "span_corruption": "AutoModelForSeq2SeqLM",
}


def write_card(
    results: dict[str, Any], recipe: Recipe, task: Task, environment: Mapping[str, Any], base: str | None = None
) -> str:
    """The card of a fine-tuned model: metadata for the hub, what it is, how good, how it was made, how to use it.

    Args:
        results: what `results.json` holds.
        environment: what `environment.json` holds.
        base: the model that what is saved are additions (LoRA) to; None: the whole model is saved.
    """
    pipeline = task.head.replace("_", "-")
    datasets = _hub_names([task.dataset])
    source = datasets[0] if datasets else SAMPLE if task.dataset == "sample" else OWN_FILES
    evaluations: list[EvalResult] = []
    for split, scores in results["metrics"].items():
        where = {"dataset_type": source, "dataset_name": task.name, "dataset_config": task.config}
        evaluations += _evaluations(scores, task_type=pipeline, dataset_split=_split_name(task, split), **where)
    name = task.name.replace("/", "-")
    library = "transformers" if base is None else "peft"
    metadata = _metadata(name, pipeline, results["model"], datasets, evaluations, library)
    start = _code(results["model"]) if results["model"] else f"fresh weights, BERT {results['size']}"
    examples = f"{results['num_train_examples']:,} examples of {_code(source)}"
    best = f"Best of {results['num_evaluations']} evaluations (step {results['best_step']} of {results['total_steps']})"
    is_new = recipe.model.new_head
    program = _program(task.head) if base is None else _program_of_additions(task.head, base, is_new=is_new)
    return f"""---
{metadata}
---

# {task.name}

Made by [bertcli](https://pypi.org/project/bertcli) from {start}, seed {results["seed"]}, with {examples}.

{_table(results["metrics"])}

{best}, by {results["best_by"]}. {_made_on(results, environment)}

{program}{_words_on_thresholds(results.get("thresholds"))}{_words_on_tags(results)}

{_recipe(recipe)}
"""


def write_pretraining_card(results: dict[str, Any], recipe: PretrainRecipe, environment: Mapping[str, Any]) -> str:
    """The card of a pretrained model: what it is, how good its guesses are, how it was made."""
    objective = recipe.objective.kind
    pipeline = PIPELINES.get(objective, "feature-extraction")
    datasets = _hub_names([source.dataset for source in recipe.corpus.sources])
    source = datasets[0] if len(datasets) == len(recipe.corpus.sources) == 1 else "the corpus of the recipe"
    where = {"dataset_type": source, "dataset_name": source, "dataset_split": "held out"}
    evaluations = _evaluations(results["metrics"]["validation"], task_type=pipeline, **where)
    name = f"{results['family']}-pretrained"
    metadata = _metadata(name, pipeline, results["model"], datasets, evaluations)
    fresh = f"fresh weights, {results['family']} {results['size'] or ''}".strip()
    start = _code(results["model"]) if results["model"] else fresh
    entropy = {"entropy without context": results["unigram_entropy"]}
    return f"""---
{metadata}
---

# {results["family"]}, pretrained

Made by [bertcli](https://pypi.org/project/bertcli) from {start}, seed {results["seed"]}, on {results["num_tokens"]:,}
tokens of {results["num_documents"]:,} documents.

{_table({"held out": results["metrics"]["validation"] | entropy})}

Step {results["best_step"]} of {results["total_steps"]}. {_made_on(results, environment)}

{_program(objective)}

{_recipe(recipe)}
"""


def write_shared_card(results: dict[str, Any], recipes: Mapping[str, Recipe]) -> str:
    """The words for a run of several tasks: how good, where each model lies, how they were made.

    Args:
        results: what `results.json` holds.
        recipes: by the folder of each model.
    """
    models = "\n".join(f"* `model/{folder}`" for folder in recipes)
    texts = "\n".join(_recipe(recipe) for recipe in recipes.values())
    return f"# One encoder, several tasks\n\n{models}\n\n{_table(results['metrics'])}\n\n{texts}\n"


def _metadata(
    name: str,
    pipeline: str,
    base_model: str | None,
    datasets: Sequence[str],
    evaluations: Sequence[EvalResult],
    library: str = "transformers",
) -> str:
    """The front matter, as the hub's own library writes it. Licence and language are for those who know them."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name=library,
        pipeline_tag=pipeline,
        base_model=next(iter(_hub_names([base_model])), None),
        datasets=list(datasets) or None,
        metrics=list(dict.fromkeys(one.metric_type for one in evaluations)) or None,
        tags=["bertcli"],
        model_name=name,
        eval_results=list(evaluations) or None,
    )
    return data.to_yaml()


def _evaluations(scores: Mapping[str, float], **where: Any) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(metric_type=HUB_METRICS.get(name, name), metric_name=name, metric_value=round(value, 6), **where)
        for name, value in scores.items()
        if name not in NO_METRICS
    ]


def _split_name(task: Task, split: str) -> str:
    """What the data set calls a split."""
    if split == "validation" and not (task.files.validation if task.files else task.splits.validation):
        return "held out of the training rows"
    return str(getattr(task.splits, split, None) or split)


def _hub_names(names: Sequence[str | None]) -> list[str]:
    """Those of the names that are the hub's: no folder on this machine, and not the embedded sample."""
    given = [name for name in names if name and HUB_NAME.fullmatch(name) and name != "sample"]
    return list(dict.fromkeys(name for name in given if not Path(name).exists()))


def _table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    rows = [(split, name, f"{value:.4f}") for split, scores in metrics.items() for name, value in scores.items()]
    return format_table(("split", "score", "value"), rows)


def _made_on(results: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    machine = ", ".join(environment["gpus"]) or f"{environment['cpus']} CPU cores ({environment['processor']})"
    packages = environment["packages"]
    return (
        f"{results['num_parameters']:,} parameters, trained for {format_seconds(results['train_seconds'])} in "
        f"{results['precision']} on {machine}, with PyTorch {packages['torch']}, transformers "
        f"{packages['transformers']} and bertcli {packages['bertcli']}."
    )


def _program(kind: str) -> str:
    if kind in PROGRAMS:
        lines = ["from transformers import pipeline", "", f'answer = pipeline("{PROGRAMS[kind]}", model={MODEL_HERE}']
    else:
        model_class = CLASSES.get(kind, "AutoModel")
        lines = [f"from transformers import {model_class}, AutoTokenizer", ""]
        lines += [f"{name} = {one}.from_pretrained({MODEL_HERE}"
                  for name, one in (("model", model_class), ("tokenizer", "AutoTokenizer"))]  # fmt: skip
    return _block("python", "\n".join(lines))


def _program_of_additions(kind: HeadName, base: str, *, is_new: bool) -> str:
    """The program that lays additions (LoRA) over the model `base`; `is_new`: whose own head has other labels."""
    model_class, has_call = CLASSES[kind], kind in PROGRAMS
    names = ["AutoConfig", model_class, "AutoTokenizer", *["pipeline"] * has_call]
    options = ", config=config" + (", ignore_mismatched_sizes=True" if is_new else "")
    lines = [
        "from peft import PeftModel",
        f"from transformers import {', '.join(names)}",
        "",
        f"config = AutoConfig.from_pretrained({MODEL_HERE}",
        f"base = {model_class}.from_pretrained({json.dumps(base, ensure_ascii=False)}{options})",
        f"model = PeftModel.from_pretrained(base, {MODEL_HERE}.merge_and_unload()",
        f"tokenizer = AutoTokenizer.from_pretrained({MODEL_HERE}",
    ]
    if has_call:
        lines.append(f'answer = pipeline("{PROGRAMS[kind]}", model=model, tokenizer=tokenizer)')
    return _block("python", "\n".join(lines))


def _words_on_thresholds(thresholds: Mapping[str, float] | None) -> str:
    """That others answer without them; nothing if there are none."""
    if not thresholds:
        return ""
    told = ", ".join(f"{_code(label)}: {value:.4g}" for label, value in thresholds.items())
    return (
        f"\n\n`bertcli` answers by thresholds of probability ({told}), which `config.json` holds. Plain `transformers` "
        "does not know them: the answers of this program can differ, its probabilities are the same."
    )


def _words_on_tags(results: Mapping[str, Any]) -> str:
    """That others ask and answer without what `bertcli` knows of tags; nothing if it is the same."""
    told = []
    if scheme := results.get("tag_scheme"):
        told.append(f"`bertcli` answers with tags that can follow each other ({scheme}), this program word by word.")
    if results.get("marks_capitals"):
        told.append(
            "The model is told of words with capital letters by `token_type_ids` of 1, which this program omits."
        )
    return "\n\n" + " ".join([*told, "Their answers can differ."]) if told else ""


def _recipe(recipe: Recipe | PretrainRecipe) -> str:
    return f"## Recipe\n\n{_block('yaml', dump_recipe(recipe).rstrip())}"


def _block(kind: str, text: str) -> str:
    """A block of code that nothing in `text` ends."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{kind}\n{text}\n{fence}"


def _code(text: str) -> str:
    """`text` as code within a line, whatever is in it."""
    line = " ".join(text.split())
    fence = "`" * (_longest_run(line) + 1)
    inside = f" {line} " if line.startswith("`") or line.endswith("`") else line
    return f"{fence}{inside}{fence}"


def _longest_run(text: str) -> int:
    """Backticks in a row."""
    return max(map(len, re.findall("`+", text)), default=0)
