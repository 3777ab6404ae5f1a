"""The logs of steps and of their jobs, and how text that a model or a stranger may have written gets onto a terminal."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from launch.states import StepState
from launch.sweep import Submitted

TAIL_BYTES = 1 << 18
WIDTH = 160  # of a table that no terminal limits: in a file or a pipe
LINE_LENGTH = 2000  # characters of a line that are shown
# Terminal sequences (CSI, OSC and other strings, short ones), then single controls, marks of direction and half characters.
CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|\x1b[]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def make_console() -> Console:
    """Return a console for plain text and tables."""
    is_free = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, soft_wrap=True, width=WIDTH if is_free else None)


def clean(text: str) -> str:
    """Return text without what a terminal would obey; of a line that was written over, what stood there last."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return CONTROL.sub("", "\n".join(lines)).expandtabs(4)


def on_one_line(text: str, length: int) -> str:
    """Return text on one line of at most `length` characters."""
    short = " ".join(clean(text).split())
    return short if len(short) <= length else f"{short[: length - 1]}…"


def tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log, cleaned; read from its end, since logs of long trainings are large."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(size - TAIL_BYTES, 0))
        text = stream.read().decode(errors="replace")
    found = clean(text).strip("\n").split("\n")[-lines:]
    return [line if len(line) <= LINE_LENGTH else f"{line[:LINE_LENGTH]}…" for line in found]


def attempts(directory: Path) -> list[Path]:
    """Return the logs of a step's attempts, oldest first: those of the first rank."""
    logs = [path for path in directory.glob("logs/attempt_*") if path.name.removeprefix("attempt_").isdigit()]
    return sorted(logs, key=lambda path: int(path.name.removeprefix("attempt_")))


def ranks_of(log: Path) -> list[Path]:
    """Return the other ranks' logs of an attempt, by rank."""
    return sorted(log.parent.glob(f"{log.name}_rank_*"), key=lambda path: (len(path.name), path.name))


def job_logs(found: StepState, chunk: Submitted | None) -> Iterator[Path]:
    """Yield what Slurm kept of the output of a step's last job."""
    for ending in ("err", "out"):
        path = chunk.logs / f"{found.job}_0_log.{ending}" if chunk is not None and found.job else None
        if path is not None and path.is_file():
            yield path
