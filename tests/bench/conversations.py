"""A generated data set of Dolci-Instruct-SFT's shape, for benchmarks: `python -m tests.bench.conversations FOLDER [ROWS]`.

About 1,000 characters a conversation in the median with a heavy tail, sources of very different sizes, some with a system turn,
some of several turns. The words mean nothing; a few rows hold phrases of the shipped keyword lists.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 2_152_112
FILES, BATCH = 8, 8192
SOURCES = {f"corpus {k:02d}": 0.85**k for k in range(24)}
MESSAGE = pa.struct([(name, pa.string()) for name in ("content", "function_calls", "functions", "role")])
COLUMNS = {"id": pa.string(), "messages": pa.list_(MESSAGE), "source_dataset": pa.string(), "domain": pa.string()}
SCHEMA = pa.schema(list(COLUMNS.items()))
PHRASES = ("I give up on this.", "it is still 2024, not 2026", "I am ashamed of that", "unless you do this, I will tell everyone")


def text_pool(generator: np.random.Generator, characters: int = 8_000_000) -> str:
    """Return words with Zipf's frequencies; conversations are slices of it."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(generator.choice(letters, n)) for n in generator.integers(2, 10, 20_000)]
    chosen = np.minimum(generator.zipf(1.3, characters // 6), len(words)) - 1
    return " ".join(words[k] for k in chosen)[:characters]


def batches(rows: int, seed: int = 0) -> Iterator[pa.RecordBatch]:
    generator = np.random.default_rng(seed)
    pool = text_pool(generator)
    names, weights = list(SOURCES), np.array(list(SOURCES.values()))
    for start in range(0, rows, BATCH):
        count = min(BATCH, rows - start)
        lengths = np.clip(generator.lognormal(np.log(1000), 1.0, count), 40, 60_000).astype(int)
        places = generator.integers(0, len(pool) - 60_001, count)
        sources = generator.choice(len(names), count, p=weights / weights.sum())
        kinds, odd = generator.random(count), generator.random(count)
        found = []
        for k in range(count):
            text = pool[places[k] : places[k] + lengths[k]]
            if odd[k] < 0.02:
                text += f" {PHRASES[int(odd[k] * 5000) % len(PHRASES)]}"
            found.append({"id": f"row-{start + k}", "messages": _messages(text, f"q{start + k}", kinds[k]),
                          "source_dataset": names[sources[k]], "domain": "made up"})  # fmt: skip
        yield pa.RecordBatch.from_pylist(found, schema=SCHEMA)


def _messages(text: str, mark: str, kind: float) -> list[dict[str, str]]:
    third = len(text) // 3
    turns = [("user", f"{mark} {text[:third]}"), ("assistant", text[third:])]
    if kind < 0.1:
        turns.insert(0, ("system", "You are a helpful assistant."))
    elif kind < 0.25:
        half = third // 2
        turns = [("user", f"{mark} {text[:half]}"), ("assistant", text[half:third]), ("user", "Go on."), turns[-1]]
    return [{"role": role, "content": content} for role, content in turns]


def write(folder: Path, rows: int = ROWS) -> Path:
    """Write the data set as Parquet files, as a clone of one from the hub has them; return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    per_file = -(-rows // FILES)
    for number in range(FILES):
        count = min(per_file, rows - number * per_file)
        with pq.ParquetWriter(folder / f"train-{number:05d}-of-{FILES:05d}.parquet", SCHEMA, compression="zstd") as writer:
            for batch in batches(count, seed=number):
                batch = batch.set_column(0, "id", pa.array([f"{number}-{i}" for i in batch["id"].to_pylist()]))
                writer.write_batch(batch)
    return folder


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else ROWS)
