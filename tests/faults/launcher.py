"""Starts `bertcli` again and again without importing torch anew: it forks for each line of JSON it reads.

In:  {"arguments": […], "folder": the run folder, "log": where stderr goes, "signal": number,
      "at": number or null, "after": seconds or null, "fill_at": number or null}
Out: the exit code of the child (of a signal: its number, negative).

`at` counts what the child does to files in the run folder, so that the signal can come in the middle of saving;
`fill_at` fills the disk at such a moment.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from bertcli.cli.main import main

TOUCHING = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.listdir", "os.scandir"}
FILLER = ".filler"


def strike(asked: dict[str, Any]) -> None:
    """Let this process have its signal, or the disk be full, at the moment asked for."""
    folder, seen = asked["folder"], [0]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in TOUCHING or not any(str(arg).startswith(folder) for arg in args[:2]) or FILLER in str(args[0]):
            return
        seen[0] += 1
        if seen[0] == asked["at"]:
            os.kill(os.getpid(), asked["signal"])
        if seen[0] == asked["fill_at"]:
            fill_disk(Path(folder).parent / FILLER)

    sys.addaudithook(hook)
    if asked["after"] is not None:
        timer = threading.Timer(asked["after"], os.kill, (os.getpid(), asked["signal"]))
        timer.daemon = True
        timer.start()


def fill_disk(path: Path) -> None:
    """Write until nothing more can be written."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 4096)
        except OSError:
            return


def child(asked: dict[str, Any]) -> None:
    """Be `bertcli`; never returns."""
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    strike(asked)
    sys.argv = ["bertcli", *asked["arguments"]]
    code = 0
    try:
        main()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
