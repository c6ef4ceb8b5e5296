"""Report an exception as one message on stderr and an exit code; with `--json`, also as an object on stdout."""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
import textwrap
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from bertcli.errors import BertcliError

MAX_UNEXPECTED_CHARS = 200  # of a library's error message
OUT_OF_MEMORY = ("can't allocate memory", "CUDA out of memory", "MPS backend out of memory")  # torch's messages
FOLDER_VARIABLES = ("BERTCLI_CACHE", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "TMPDIR", "HOME")


def handle_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command so that its exceptions become one message on stderr and an exit code."""

    @functools.wraps(command)
    def wrapper(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except (SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic of a Rust library is not an Exception
            if isinstance(error, typer.Exit):
                raise
            from bertcli.cluster.launch import report_failure
            from bertcli.console import escape_control

            message, exit_code = _message_and_exit_code(error, debug=bool(options.get("debug")))
            prefix = f"process {rank}: " if (rank := os.environ.get("RANK", "0")) != "0" else ""
            with suppress(OSError):  # the reader has closed the pipe (`2>&1 | head`)
                if options.get("debug"):
                    print(textwrap.indent(escape_control(traceback.format_exc()), prefix), file=sys.stderr, end="")
                report_failure(message.removeprefix("error: "), exit_code)
                print(textwrap.indent(escape_control(message), prefix), file=sys.stderr)
            if options.get("as_json"):
                _print_json_error(message, exit_code)
            raise typer.Exit(exit_code) from None

    return wrapper


class Commands(TyperGroup):
    """The program's commands.

    The error for an unknown option names the recipe key of the same name, if there is one. With `--json`, usage errors
    are also printed as JSON.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, and remember them for error messages."""
        ctx.meta["bertcli.arguments"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; extend the message of a usage error, and print it as JSON with `--json`."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if not hasattr(error, "format_message"):  # not a usage error
                raise
            arguments = ctx.meta["bertcli.arguments"]
            if getattr(error, "option_name", None) is not None:
                hint = _option_hint(arguments, getattr(error, "ctx", None))
                error.message = f"{error.message}{hint}"  # type: ignore[attr-defined]
            if "--json" in arguments:
                _print_json_error(f"error: {error.format_message()}", getattr(error, "exit_code", 2))
            raise


def _option_hint(arguments: list[str], context: Any) -> str:
    """Return a hint that translates the unknown options, such as `--learning_rate 3e-5`, to recipe keys.

    Args:
        arguments: the command line.
        context: the parser's context of the command.
    """
    if not {"finetune", "pretrain", "submit", "check", "show"} & set(arguments):
        return ""
    from bertcli.recipe.error_messages import find_key
    from bertcli.recipe.hf_arguments import option_hint, override_for

    values = _option_values(arguments)
    known = {name for parameter in context.command.params for name in parameter.opts} if context else set()
    overrides, hints = [], []
    for name, value in values.items():
        if {f"--{name}", f"--{name.replace('_', '-')}"} & known:
            continue
        if name == "gradient_accumulation_steps" and "per_device_train_batch_size" in values:
            continue  # a factor of the global batch size
        if "." in name:  # a recipe key
            overrides.append(f"{name}={value or '…'}")
        elif (hint := option_hint(name, value)) is not None:
            hints.append((name, hint))
        elif (key := find_key(name, pretraining="pretrain" in arguments)) is not None:
            overrides.append(override_for(name, key, value, values))
    text = f"\nRecipe keys are given without dashes: {shlex.join(dict.fromkeys(overrides))}" if overrides else ""
    return text + "".join(f"\nInstead of --{name}: {hint}" for name, hint in hints)


def _option_values(arguments: list[str]) -> dict[str, str]:
    """Return the value of each option, by its name without dashes and with underscores; empty if it has none."""
    values: dict[str, str] = {}
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            is_value = not following.startswith("-") or following.lstrip("-").replace(".", "").isdecimal()
            values[name.lstrip("-").replace("-", "_")] = value if equals else following if is_value else ""
    return values


def _print_json_error(message: str, exit_code: int) -> None:
    from bertcli.console import print_result

    error = {"error": message.removeprefix("error: "), "exit_code": exit_code}
    with suppress(OSError):  # stdout may be unwritable, which may be the error itself
        print_result(json.dumps(error, ensure_ascii=False))


def _message_and_exit_code(error: BaseException, *, debug: bool) -> tuple[str, int]:
    if isinstance(error, BertcliError):
        return f"error: {error}", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY):
        return "error: out of memory; use less data or a smaller model, or a machine with more memory", 1
    if isinstance(error, OSError) and (message := _system_message(error)):
        return f"error: {message}", 1
    lines = str(error).strip().splitlines()
    first_line = lines[0][:MAX_UNEXPECTED_CHARS] if lines else ""
    if first_line.startswith("Could not determine home directory"):
        return "error: found no home folder; set HOME, or BERTCLI_CACHE and HF_HOME, to a writable folder", 1
    cure = "" if debug else " (use --debug for the traceback)"
    return f"error: unexpected {type(error).__name__}: {first_line}{cure}", 1


def _system_message(error: OSError) -> str:
    """Return which path cannot be used and why, and the environment variable that sets its folder."""
    from bertcli.files import FULL_ERRORS

    if error.filename is None and error.errno in FULL_ERRORS:  # standard output has no path
        return f"cannot write the output ({error.strerror}); free some disk space"
    if error.filename is None or error.strerror is None:
        is_temporary = "temporary directory" in str(error)
        return "found no folder for temporary files; set TMPDIR to a writable folder" if is_temporary else ""
    path = Path(os.fsdecode(error.filename))
    for name in FOLDER_VARIABLES:
        if (folder := os.environ.get(name)) and Path(folder) in (path, *path.parents):
            return f"cannot use {path} ({error.strerror}): set {name} (now {folder}) to a writable folder"
    return f"cannot use {path} ({error.strerror})"
