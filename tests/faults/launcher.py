"""Runs `bertcli` many times without importing torch each time: forks for every line of JSON on stdin.

In:  {"arguments": […], "folder": the run folder, "log": path for stdout and stderr, "signal": number,
      "at": number or null, "after": seconds or null, "fill_at": number or null}
Out: the exit code of the child; for a signal, its number, negative.

`at` counts file operations of the child in the run folder, so that the signal can arrive in the middle of a save;
`fill_at` fills the disk at such a moment; `after` is a delay.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from bertcli.cli.main import main

FILE_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.listdir", "os.scandir"}
FILLER = ".filler"


def inject_fault(request: dict[str, Any]) -> None:
    """Schedule the requested signal or full disk in this process."""
    folder, num_events = request["folder"], [0]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        in_folder = event in FILE_EVENTS and any(str(arg).startswith(folder) for arg in args[:2])
        if not in_folder or FILLER in str(args[0]):
            return
        num_events[0] += 1
        if num_events[0] == request["at"]:
            os.kill(os.getpid(), request["signal"])
        if num_events[0] == request["fill_at"]:
            fill_disk(Path(folder).parent / FILLER)

    sys.addaudithook(hook)
    if request["after"] is not None:
        timer = threading.Timer(request["after"], os.kill, (os.getpid(), request["signal"]))
        timer.daemon = True
        timer.start()


def fill_disk(path: Path) -> None:
    """Write to `path` until the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 4096)
        except OSError:
            return


def run_child(request: dict[str, Any]) -> None:
    """Run `bertcli` in this process; never returns."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    inject_fault(request)
    sys.argv = ["bertcli", *request["arguments"]]
    code = 0
    try:
        main()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run_child(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
