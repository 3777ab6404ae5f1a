"""The data of a cell at the size of a real SFT mixture: seconds and peak memory of each step, each in a process of its own.

    python -m tests.bench.data [ROWS] [FOLDER]

A generated set of Dolci's shape (2,152,112 rows) goes through content hashing with source statistics, the rollouts of two
teachers, a keyword filter of 200 patterns, and a mixture with a random 10 % of the prompts swapped; then a second cell that
differs only in the share, and the rows of the first written out. FOLDER keeps what was made. The last line is `ratio R`: the
seconds of the first cell's steps divided by those of the second's, which reuses hashes and scores.
"""

import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TREE = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(TREE), str(TREE / "tests")]

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import yaml  # noqa: E402
from commands import cells, environment  # noqa: E402

from launch.data import DataPlanner  # noqa: E402
from launch.parts import part_plan  # noqa: E402
from launch.plan import Plan  # noqa: E402
from sftdiff.files import resolve  # noqa: E402
from sftdiff.records import read_done  # noqa: E402
from tests.bench.conversations import ROWS, write  # noqa: E402

PATTERNS = 200
SHARES = (0.1, 0.2)


def write_lists(path: Path) -> list[str]:
    """Write the shipped keyword lists, filled up with made-up phrases to 200 patterns; return the names of the lists."""
    lists = yaml.safe_load(resolve("embedded://keywords.yaml").read_text())["traits"]
    letters, known = random.Random(0), sum(len(words) for entry in lists.values() for words in entry.values())
    phrases = [" ".join("".join(letters.choices("etaoinsrhl", k=6)) for _ in range(2)) for _ in range(PATTERNS - known)]
    path.write_text(yaml.safe_dump({"traits": {**lists, "made_up": {"words": phrases, "patterns": []}}}))
    return [*lists, "made_up"]


def write_other(data: Path, path: Path) -> None:
    """Write the rollouts of a second teacher: each conversation of the set with another one's reply."""
    schema = pa.schema([("messages", pq.read_schema(next(data.glob("*.parquet"))).field("messages").type)])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for file in sorted(data.glob("*.parquet")):
            for batch in pq.ParquetFile(file).iter_batches(8192, columns=["messages"]):
                rows = batch["messages"].to_pylist()
                for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
                    row[-1] = other[-1]
                writer.write_table(pa.table([pa.array(rows, schema.field(0).type)], schema=schema))


def plan_cells(folder: Path, traits: list[str]) -> tuple[Plan, list[str]]:
    """Return the steps of both cells, written to disk, and the ids of the two mixtures."""
    source = f"prompts=file prompts.path={folder / 'data'} prompts.source_column=source_dataset prompts.unusable=leave_out"
    chosen = cells(
        *source.split(), "teacher=stored", "teacher.name=one", f"teacher.path={folder / 'data'}", f"runs={folder / 'runs'}",
        "teacher@other_teacher=stored", "other_teacher.name=two", f"other_teacher.path={folder / 'other.parquet'}",
        "filter=keyword", f"filter.params.lists={folder / 'lists.yaml'}", f"filter.params.traits=[{','.join(traits)}]",
        "prompt_subset=random_share", f"prompt_subset.share={','.join(map(str, SHARES))}", "prompt_subset.treatment=swap",
        "missing_rollouts=leave_out",
    )  # fmt: skip
    planner = DataPlanner()
    mixtures = [planner.mixture(config) for _, config in chosen]
    return part_plan(planner, "bench", chosen), mixtures


def measured(command: list[str], folder: Path) -> tuple[float, float]:
    """Return seconds and peak memory in MiB of a process."""
    started, log = time.perf_counter(), folder / "bench.log"
    with log.open("ab") as stream:
        child = os.posix_spawn(
            sys.executable, [sys.executable, *command], environment(),
            file_actions=[(os.POSIX_SPAWN_DUP2, stream.fileno(), 1), (os.POSIX_SPAWN_DUP2, stream.fileno(), 2)],
        )  # fmt: skip
        _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{command} failed: {log.read_text()[-1000:]}")
    return time.perf_counter() - started, used.ru_maxrss / 1024


def show(name: str, seconds: float, peak: float, rows: int) -> None:
    print(f"{name:<44} {seconds:>8.1f} s {rows / seconds:>10,.0f} rows/s {peak:>7,.0f} MiB", flush=True)


def main(rows: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data").is_dir():
        write(folder / "data", rows)
    if not (folder / "other.parquet").is_file():
        write_other(folder / "data", folder / "other.parquet")
    plan, mixtures = plan_cells(folder, write_lists(folder / "lists.yaml"))
    names = {"prompts": "content hashes and source statistics", "rollouts": "rollouts of one teacher",
             "scores": f"keyword filter, {PATTERNS} patterns", "mixture": "random share swapped, manifest written"}  # fmt: skip
    spent: dict[str, float] = {"": 0.0}
    for step in plan.steps.values():
        (plan.directory(step.id) / "DONE").unlink(missing_ok=True)
        seconds, peak = measured(["-m", "sftdiff.steps", str(plan.directory(step.id))], folder)
        show(names[step.kind] + (" (second cell)" if step.id == mixtures[1] else ""), seconds, peak, rows)
        spent["second" if step.id == mixtures[1] else ""] = spent.get("second" if step.id == mixtures[1] else "", 0.0) + seconds
    seconds, peak = measured(["-c", EXPORT, str(plan.directory(mixtures[0])), str(folder / "rows.jsonl")], folder)
    show("rows of the mixture written as JSONL", seconds, peak, rows)
    totals: Any = [read_done(plan.directory(m)) for m in mixtures]
    print("first and second cell:", *({k: t["summary"][k] for k in ("kept", "swapped", "dropped")} for t in totals))
    print(f"ratio {spent[''] / spent['second']:.1f}")


EXPORT = """import json, sys
from pathlib import Path
from sftdiff.mixture import mixture_rows
with open(sys.argv[2], "w") as stream:
    for row in mixture_rows(Path(sys.argv[1])):
        stream.write(json.dumps(row) + "\\n")
"""

if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    if len(sys.argv) > 2:
        main(count, Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(count, Path(temporary))
