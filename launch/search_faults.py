"""What stands in the way of a search: trainings without a verdict. They say nothing of a set, so it stops and names them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.look import needs
from launch.sweep import cell_name, cell_steps, load_sweep, sweep_names
from sftdiff.diffing import read_verdicts
from sftdiff.records import read_json, state
from sftdiff.words import counted

FILE_CLOCK_SECONDS = 2.0  # by which a file's time may be before that of the process


def no_verdict(runs: Path, found: Mapping[str, Any], trait: str, empty: Sequence[tuple[str, int]]) -> str:
    """Say of which trainings (arm, seed) no verdict counts, though they were judged, and how to go on.

    `found` is the state of the search.
    """
    arm, seed = empty[0]
    [cell] = [cell for cell in found["cells"] if (cell["arm"], cell["seed"]) == (arm, seed)]
    states = Counter(row["state"] for row in read_verdicts(runs, [cell], trait)[arm][seed])
    shown = ", ".join(f"{number} {name}" for name, number in states.items())
    more = f" (nor of {counted(len(empty) - 1, 'training')} more)" if len(empty) > 1 else ""
    directory = runs / "steps" / cell["judges"][trait]
    return (
        f"no verdict of arm={cell_name(cell)}{more} counts ({shown}), so that nothing can be said of its set. {_kept(found)} "
        f"Mend the judge, delete {directory}, and run the same command again: it judges these replies once more and goes on"
    )


def failure(runs: Path, name: str, found: Mapping[str, Any], since: float = 0.0) -> str | None:
    """Return which training failed, in which step, and how to go on; None where none did since then (seconds of the epoch)."""
    if name not in sweep_names(runs):  # stopped before it was written
        return None
    sweep = load_sweep(runs, name)
    for cell in sweep.cells:
        for step in needs(sweep, cell_steps(cell)):
            directory = sweep.directory(step)
            path = directory / "FAILED"
            if path.exists() and path.stat().st_mtime >= since - FILE_CLOCK_SECONDS and state(directory) != "done":
                error, mend = str(read_json(path)["error"]).rstrip("."), "Mend that and run the same command again: it runs"
                if sweep.launcher:
                    mend = f"Mend that; `python -m launch.status retry {name}` or the same command runs"
                return (
                    f"{cell_name(cell)} has no verdict, since its step {step} failed: {error}. {_kept(found)} "
                    f"{mend} what failed once more, and the same command goes on"
                )
    return None


def _kept(found: Mapping[str, Any]) -> str:
    return f"{counted(len(found['answers']), 'answer')} of the search and all finished steps are kept."
