"""The keyword filter against a Python `re` alternation in `datasets.map`, on the same rows, each with two processes.

    python -m tests.bench.filters [ROWS]

200 patterns on generated conversations of Dolci's shape. The alternation only says whether any pattern is found; the filter
counts the distinct ones, and must agree on whether there is one. The last line is `ratio R`: the seconds of the alternation
divided by those of the filter, both with their start-up.
"""

import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TREE = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(TREE), str(TREE / "tests")]

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from commands import cells  # noqa: E402
from datasets import Dataset, disable_progress_bars  # noqa: E402

from launch.data import DataPlanner  # noqa: E402
from launch.parts import part_plan  # noqa: E402
from sftdiff.corpus import Corpus  # noqa: E402
from sftdiff.scores import score_chunks  # noqa: E402
from sftdiff.steps import run_step  # noqa: E402
from tests.bench.conversations import write  # noqa: E402
from tests.bench.data import write_lists  # noqa: E402

PROCESSES = 2


def make_corpus(folder: Path, rows: int) -> Corpus:
    write(folder / "data", rows)
    source = f"prompts=file prompts.path={folder / 'data'} prompts.source_column=source_dataset prompts.unusable=leave_out"
    chosen = cells(*source.split(), "teacher=stored", f"teacher.path={folder / 'data'}", f"runs={folder / 'runs'}")
    planner = DataPlanner()
    prompts, rollouts = planner.prompts(chosen[0][1]), planner.rollouts(chosen[0][1], "teacher")
    plan = part_plan(planner, "bench", chosen)
    assert [run_step(plan.directory(s)) for s in (prompts, rollouts)] == ["done", "done"]
    return Corpus(plan.directory(prompts) / "prompts.parquet", plan.directory(rollouts) / "rollouts.parquet")


def alternation(lists: Path) -> str:
    """Return all words and patterns as one regular expression, with the filter's meaning."""
    traits = yaml.safe_load(lists.read_text())["traits"].values()
    words = [rf"(?<!\w){re.escape(word)}(?!\w)" for entry in traits for word in entry["words"]]
    return "|".join(f"(?:{p})" for p in [*words, *(p for entry in traits for p in entry["patterns"])])


def flag(batch: dict[str, Any], pattern: str) -> dict[str, list[bool]]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return {"flagged": [compiled.search(text) is not None for text in batch["completion"]]}


def main(rows: int) -> None:
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpus = make_corpus(folder, rows)
        params = {"lists": str(folder / "lists.yaml"), "traits": write_lists(folder / "lists.yaml")}
        assert corpus.rollouts is not None
        started = time.perf_counter()
        data = Dataset.from_parquet(str(corpus.rollouts), cache_dir=str(folder / "cache"))
        found = data.map(flag, batched=True, num_proc=PROCESSES, fn_kwargs={"pattern": alternation(folder / "lists.yaml")})
        peer = time.perf_counter() - started
        started = time.perf_counter()
        chunks = list(score_chunks(corpus, "sftdiff.filters.keyword.keyword_scores", params, PROCESSES))
        own = time.perf_counter() - started
        scores = np.concatenate(chunks)
        assert ((scores > 0) == np.array(found["flagged"])).all(), "the two do not agree"
    print(f"{'':<40} {'seconds':>8} {'rows/s':>10}")
    print(f"{'re alternation in datasets.map':<40} {peer:>8.1f} {rows / peer:>10,.0f}")
    print(f"{'keyword filter':<40} {own:>8.1f} {rows / own:>10,.0f}")
    print(f"{len(scores):,} rows, {int((scores > 0).sum()):,} flagged by both")
    print(f"ratio {peer / own:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
