"""Arguments of transformers' `TrainingArguments` and example scripts, and the recipe keys that mean the same.

Complete for `TrainingArguments` of transformers 5 and 4, and for `run_glue.py`, `run_classification.py`, `run_qa.py`,
`run_ner.py`, `run_swag.py`, `run_mlm.py` and their `no_trainer` variants. An argument is in `KEY_ALIASES`, has the name
of a recipe key, or is in `UNSUPPORTED_KEYS`, which says why it has no equivalent. No heavy imports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

KEY_ALIASES = {  # argument → recipe key, or recipe key with its value
    "batch_size": "training.global_batch_size",
    "bf16": "hardware.precision=bf16",
    "config_name": "model.name",
    "data_seed": "training.seed",
    "dataset_config_name": "task.config",
    "dataset_name": "task.dataset",
    "do_regression": "task.problem=regression",
    "eval_steps": "evaluation.every_steps",
    "eval_strategy": "evaluation.every_steps",
    "evaluation_strategy": "evaluation.every_steps",
    "fp16": "hardware.precision=fp16",
    "fsdp": "hardware.shard=true",
    "gradient_checkpointing": "hardware.gradient_checkpointing",
    "ignore_mismatched_sizes": "model.new_head=true",
    "label_column_name": "task.label_column",
    "label_smoothing_factor": "training.label_smoothing",
    "logging_steps": "hardware.log_every_steps",
    "lora_r": "training.lora_rank",
    "lr": "training.learning_rate",
    "lr_scheduler_type": "training.schedule",
    "max_eval_samples": "data.max_eval_examples",
    "max_seq_length": "data.max_length",
    "max_train_samples": "data.max_train_examples",
    "max_train_steps": "training.max_steps",
    "metric_for_best_model": "evaluation.best_by",
    "metric_name": "task.metrics",
    "mixed_precision": "hardware.precision",
    "model_name": "model.name",
    "model_name_or_path": "model.name",
    "no_cuda": "hardware.device=cpu",
    "num_epochs": "training.epochs",
    "num_train_epochs": "training.epochs",
    "num_warmup_steps": "training.warmup_steps",
    "patience": "evaluation.early_stopping_patience",
    "per_device_train_batch_size": "training.global_batch_size",
    "per_gpu_train_batch_size": "training.global_batch_size",
    "report_to": "hardware.trackers",
    "save_steps": "evaluation.every_steps",
    "save_strategy": "evaluation.every_steps",
    "save_total_limit": "evaluation.keep_checkpoints",
    "task_name": "task",
    "test_file": "task.files.test",
    "test_split_name": "task.splits.test",
    "text_column_delimiter": "task.files.delimiter",
    "text_column_name": "task.text_columns",
    "text_column_names": "task.text_columns",
    "tokenizer_name": "model.tokenizer",
    "torch_compile": "hardware.compile=true",
    "train_batch_size": "training.global_batch_size",
    "train_file": "task.files.train",
    "train_split_name": "task.splits.train",
    "use_cpu": "hardware.device=cpu",
    "use_mps_device": "hardware.device=mps",
    "validation_file": "task.files.validation",
    "validation_split_name": "task.splits.validation",
    "version_2_with_negative": "task.unanswerable=true",
}
PRETRAIN_KEY_ALIASES = {  # aliases that differ in recipes for `bertcli pretrain`
    "block_size": "phases=[{max_length: …}]",
    "config_name": "model.family",
    "dataset_config_name": "corpus.sources=[{dataset: …, config: …}]",
    "dataset_name": "corpus.sources=[{dataset: …}]",
    "line_by_line": "corpus.sources=[{files: …, documents: lines}]",
    "max_length": "phases=[{max_length: …}]",
    "max_seq_length": "phases=[{max_length: …}]",
    "max_train_samples": "corpus.max_documents",
    "model_type": "model.family",
    "tokenizer_name": "tokenizer.name",
    "train_file": "corpus.sources=[{files: …}]",
    "validation_split_percentage": "corpus.held_out_fraction",
}
LOGGED = "everything is logged in the run folder; leave it out"
ON_MAIN_PROCESS = "only the main process writes; leave it out"
NO_PROFILE = "memory is not profiled; leave it out"
ADAMW_ONLY = "the optimizer is always AdamW; leave it out"
GROUPED = "batches are grouped by length anyway; leave it out"
RESUMED = "a resumed run continues exactly where it stopped; leave it out"
NO_WORKERS = "rows are tokenized once and batched without worker processes; leave it out"
DDP_DEFAULTS = "set by bertcli as training requires; leave it out"
PRECISION = "hardware.precision sets the precision of training and evaluation; use it instead"
COMPILED = "hardware.compile=true compiles with torch's defaults; use it instead"
EVAL_BATCHES = "evaluation batches are limited by tokens, hardware.eval_batch_tokens, not by rows; leave it out"
EVERY_ROW = "each row is evaluated once, and its logits move to the CPU at once; leave it out"
PUSHED = "use `bertcli push` on the finished run"
TRACKIO = "trackers are configured by their environment variables, such as TRACKIO_SPACE_ID; leave it out"
CHECKPOINTING = "hardware.gradient_checkpointing=auto, the default, does this where needed; leave it out"
FAST_TOKENIZER = "tokenizers are always fast ones; leave it out"
GENERATION = "this concerns models that generate text; leave it out"
PREDICTED = "`bertcli predict --input` predicts on all rows of a file; leave it out"
UNSUPPORTED_KEYS = {  # argument without an equivalent → what to do instead
    "accelerator_config": "bertcli configures Accelerate itself; the options are in the section hardware",
    "activation_checkpointing": CHECKPOINTING,
    "activation_checkpointing_kwargs": CHECKPOINTING,
    "adafactor": ADAMW_ONLY,
    "auto_find_batch_size": "hardware.micro_batch_size=auto, the default, does this; leave it out",
    "average_tokens_across_devices": "the loss is always averaged over the global batch; leave it out",
    "batch_eval_metrics": EVERY_ROW,
    "bf16_full_eval": PRECISION,
    "cache_dir": "caches are set by the environment variables BERTCLI_CACHE and HF_HOME",
    "checkpointing_steps": "every evaluation saves a checkpoint; use evaluation.every_steps or evaluation.every_epochs",
    "dataloader_drop_last": "the last batch of an epoch is trained on, too; leave it out",
    "dataloader_in_order": NO_WORKERS,
    "dataloader_multiprocessing_context": NO_WORKERS,
    "dataloader_num_workers": NO_WORKERS,
    "dataloader_persistent_workers": NO_WORKERS,
    "dataloader_pin_memory": NO_WORKERS,
    "dataloader_prefetch_factor": NO_WORKERS,
    "ddp_backend": DDP_DEFAULTS,
    "ddp_broadcast_buffers": DDP_DEFAULTS,
    "ddp_bucket_cap_mb": DDP_DEFAULTS,
    "ddp_find_unused_parameters": DDP_DEFAULTS,
    "ddp_static_graph": DDP_DEFAULTS,
    "ddp_timeout": DDP_DEFAULTS,
    "debug": "this is an option, not a key; use --debug",
    "deepspeed": "DeepSpeed is not supported; hardware.shard=true shards a large model",
    "delimiter": "the separator of CSV files is task.files.delimiter",
    "disable_tqdm": "this is an option, not a key; use --quiet",
    "dispatch_batches": NO_WORKERS,
    "do_eval": "every run is evaluated; `bertcli eval` scores a finished one",
    "do_predict": "use `bertcli predict` on the finished run",
    "do_train": "`bertcli finetune` and `bertcli pretrain` always train; leave it out",
    "dtype": "weights are trained in fp32; hardware.precision sets the mixed precision",
    "enable_jit_checkpoint": "SIGTERM always saves a checkpoint; leave it out",
    "encoding": "the encoding of text files is task.files.encoding, or corpus.sources[…].encoding",
    "eval_accumulation_steps": EVERY_ROW,
    "eval_batch_size": EVAL_BATCHES,
    "eval_delay": "evaluation starts after the first interval; set evaluation.every_steps or evaluation.every_epochs",
    "eval_do_concat_batches": EVERY_ROW,
    "eval_on_start": "a model is scored before training by `bertcli eval`; leave it out",
    "eval_use_gather_object": EVERY_ROW,
    "fp16_backend": PRECISION,
    "fp16_full_eval": PRECISION,
    "fp16_opt_level": PRECISION,
    "fsdp_config": "hardware.shard=true configures FSDP itself; leave it out",
    "fsdp_min_num_params": "hardware.shard=true configures FSDP itself; leave it out",
    "fsdp_transformer_layer_cls_to_wrap": "hardware.shard=true configures FSDP itself; leave it out",
    "full_determinism": "on a CPU, training.seed determines the result; on a GPU, there is no such option",
    "gradient_accumulation_steps": "training.global_batch_size counts the examples of a step over all devices and "
    "accumulation steps, and hardware.micro_batch_size how many a device computes at once; set these",
    "gradient_checkpointing_kwargs": CHECKPOINTING,
    "greater_is_better": "the metric evaluation.best_by determines this; leave it out",
    "group_by_length": GROUPED,
    "half_precision_backend": PRECISION,
    "hub_always_push": PUSHED,
    "hub_model_id": PUSHED,
    "hub_private_repo": "use `bertcli push --private` on the finished run",
    "hub_revision": PUSHED,
    "hub_strategy": PUSHED,
    "hub_token": "log in with `hf auth login`",
    "ignore_data_skip": RESUMED,
    "include_for_metrics": "metrics are named in task.metrics and get what they need; leave it out",
    "include_inputs_for_metrics": "metrics are named in task.metrics and get what they need; leave it out",
    "include_num_input_tokens_seen": LOGGED,
    "include_tokens_per_second": LOGGED,
    "jit_mode_eval": COMPILED,
    "keep_linebreaks": "corpus.sources[…].documents says what separates documents; set that",
    "label_all_tokens": "the first token of a word predicts its tag; leave it out",
    "label_names": "labels are read from task.label_column; leave it out",
    "length_column_name": GROUPED,
    "liger_kernel_config": "Liger kernels are not supported; leave it out",
    "load_best_model_at_end": "the best model is always kept; leave it out",
    "local_rank": "--processes N starts all processes; leave it out",
    "log_level": "this is an option, not a key; use --quiet",
    "log_level_replica": ON_MAIN_PROCESS,
    "log_on_each_node": ON_MAIN_PROCESS,
    "logging_dir": "everything is logged in the run folder; use --run",
    "logging_first_step": "hardware.log_every_steps=1 logs every step; leave it out",
    "logging_nan_inf_filter": "training.non_finite says what happens at a non-finite loss; leave it out",
    "logging_strategy": "the loss is logged every hardware.log_every_steps steps; set that",
    "low_cpu_mem_usage": "transformers 5 always does this; leave it out",
    "lr_scheduler_kwargs": "schedules have no further options; leave it out",
    "max_predict_samples": PREDICTED,
    "model_revision": "to use a fixed revision, download it, and set model.name to its folder",
    "mp_parameters": "model parallelism is not supported; hardware.shard=true shards a large model",
    "n_gpu": "this is an option, not a key; use --processes",
    "neftune_noise_alpha": "NEFTune is not supported; leave it out",
    "num_labels": "the labels determine this; name them in task.labels",
    "num_processes": "this is an option, not a key; use --processes",
    "optim": ADAMW_ONLY,
    "optim_args": ADAMW_ONLY,
    "optim_target_modules": ADAMW_ONLY,
    "output_dir": "the run folder is an option, not a key; use --run",
    "overwrite_cache": "cached rows always match their files; leave it out",
    "overwrite_output_dir": "this is an option, not a key; use --overwrite",
    "pad_to_max_length": "padding is avoided where possible; leave it out",
    "parallelism_config": "tensor and context parallelism are not supported; hardware.shard=true shards a large model",
    "past_index": GENERATION,
    "per_device_eval_batch_size": EVAL_BATCHES,
    "per_gpu_eval_batch_size": EVAL_BATCHES,
    "prediction_loss_only": "every evaluation computes the loss and the metrics; leave it out",
    "preprocessing_num_workers": "tokenizers use all cores; leave it out",
    "project": TRACKIO,
    "push_to_hub": PUSHED,
    "push_to_hub_model_id": PUSHED,
    "push_to_hub_organization": PUSHED,
    "push_to_hub_token": "log in with `hf auth login`",
    "ray_scope": "hyperparameters are searched with lists of values under training; leave it out",
    "remove_columns": "only the columns in task.text_columns and task.label_column are read; leave it out",
    "remove_splits": "task.splits names the splits that are used; set that",
    "remove_unused_columns": "only the columns in task.text_columns and task.label_column are read; leave it out",
    "restore_callback_states_from_checkpoint": RESUMED,
    "resume_from_checkpoint": "re-run the same command to resume; leave it out",
    "return_entity_level_metrics": "the report lists the scores of each entity type; leave it out",
    "run_name": "the run folder is an option, not a key; use --run",
    "save_on_each_node": ON_MAIN_PROCESS,
    "save_only_model": "checkpoints are always resumable, and the best model is saved without optimizer; leave it out",
    "save_safetensors": "weights are always saved as safetensors; leave it out",
    "sharded_ddp": "use hardware.shard=true",
    "shuffle_seed": "rows are shuffled by training.seed in each epoch; leave it out",
    "shuffle_train_dataset": "rows are always shuffled by training.seed; leave it out",
    "skip_memory_metrics": NO_PROFILE,
    "split_batches": "training.global_batch_size counts the examples of all devices; leave it out",
    "streaming": "corpora are always streamed into the cache; leave it out",
    "tf32": "hardware.precision=bf16, the default on GPUs with TF32, is faster; leave it out",
    "token": "log in with `hf auth login`",
    "torch_compile_backend": COMPILED,
    "torch_compile_mode": COMPILED,
    "torch_dtype": "weights are trained in fp32; hardware.precision sets the mixed precision",
    "torch_empty_cache_steps": NO_PROFILE,
    "torchdynamo": COMPILED,
    "tpu_metrics_debug": "TPUs are not supported; leave it out",
    "tpu_num_cores": "TPUs are not supported; leave it out",
    "trackio_bucket_id": TRACKIO,
    "trackio_space_id": TRACKIO,
    "trackio_static_space_id": TRACKIO,
    "train_sampling_strategy": GROUPED,
    "trust_remote_code": "code from the Hub is never run; use a model that transformers supports",
    "use_cache": GENERATION,
    "use_fast_tokenizer": FAST_TOKENIZER,
    "use_ipex": "IPEX is not supported; PyTorch has what it offered; leave it out",
    "use_legacy_prediction_loop": EVERY_ROW,
    "use_liger_kernel": "Liger kernels are not supported; leave it out",
    "use_slow_tokenizer": FAST_TOKENIZER,
    "with_tracking": "hardware.trackers lists the trackers, such as [tensorboard]; set that",
    "xpu_backend": DDP_DEFAULTS,
}
RECIPE_FIRST = "the recipe is the first argument, without an option"
RUN_FOLDER = "the run folder is an option; use --run"
OPTION_HINTS = {  # options of other programs that are neither arguments above nor recipe keys → what to do instead
    "config_file": RECIPE_FIRST,
    "force": "use --overwrite to replace a run",
    "gpus": "use --processes",
    "nproc_per_node": "use --processes",
    "num_gpus": "use --processes",
    "out": RUN_FOLDER,
    "output": RUN_FOLDER,
    "recipe": RECIPE_FIRST,
    "resume": "re-run the same command to resume; leave it out",
    "save_dir": RUN_FOLDER,
}
INTERVALS = {
    "no": "evaluation.every_epochs=null",
    "epoch": "evaluation.every_epochs=1",
    "steps": "evaluation.every_steps=500",  # the default of eval_steps and save_steps
}
PRECISION_OFF = {"False": "hardware.precision=auto", "false": "hardware.precision=auto"}
OVERRIDES = {  # argument → its value → the recipe key and value that mean the same, where the value differs
    "bf16": PRECISION_OFF,
    "eval_strategy": INTERVALS,
    "evaluation_strategy": INTERVALS,
    "fp16": PRECISION_OFF,
    "lr_scheduler_type": {"constant_with_warmup": "training.schedule=constant"},
    "max_grad_norm": {"0": "training.max_grad_norm=null", "0.0": "training.max_grad_norm=null"},
    "max_steps": {"-1": "training.max_steps=null"},
    "report_to": {"none": "hardware.trackers=[]"},
    "save_strategy": INTERVALS,
    "use_cpu": {"False": "hardware.device=auto", "false": "hardware.device=auto"},
}
STRATEGIES = ("eval_strategy", "evaluation_strategy", "save_strategy")
LIST_KEYS = ("hardware.trackers", "task.metrics", "task.text_columns")


def override_for(argument: str, key: str, value: str, arguments: Mapping[str, str]) -> str:
    """Return the `key=value` for an argument with a value, such as `training.epochs=3` for `num_train_epochs` 3.

    Args:
        argument: the name of the argument, with underscores.
        key: the recipe key for it, or a key with its value.
        value: the value given; empty if there is none.
        arguments: all arguments of the command line with their values, some of which belong together.
    """
    if argument in STRATEGIES and value == "steps":
        value = arguments.get("eval_steps") or arguments.get("save_steps") or value
    if value in (special := OVERRIDES.get(argument, {})):
        return special[value]
    if "=" in key:  # the key includes its value
        return key
    if argument == "task_name" and value:
        return f"task=glue/{value.lower().replace('-', '')}"
    if argument == "metric_for_best_model":
        value = value.removeprefix("eval_")
    if argument == "warmup_steps" and value.startswith("0."):  # a fraction of the steps
        key = "training.warmup_ratio"
    if argument in ("per_device_train_batch_size", "per_gpu_train_batch_size") and value.isdecimal():
        factors = [arguments.get(name, "") for name in ("gradient_accumulation_steps", "processes")]
        value = str(math.prod(map(int, [value, *filter(str.isdecimal, factors)])))
    if argument == "validation_split_percentage" and value.isdecimal():
        value = f"{int(value) / 100:g}"
    if value and key in LIST_KEYS:
        value = f"[{value}]"
    return f"{key}={value or '…'}"


def option_hint(option: str, value: str) -> str | None:
    """Return what to do instead of an option of another program that has no recipe key; None if it may have one.

    Args:
        option: its name without dashes, with underscores.
        value: the value given; empty if there is none.
    """
    if option == "config" and value.endswith((".yaml", ".yml", ".json")):  # otherwise the key task.config
        return f"{RECIPE_FIRST}: {value}"
    hint = UNSUPPORTED_KEYS.get(option) or OPTION_HINTS.get(option)
    return f"{hint} {value}" if hint and value and hint.endswith(("use --run", "use --processes")) else hint
