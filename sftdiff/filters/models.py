"""Models for the filters that look into one: loading a Hugging Face folder or a LoRA adapter, and rows as tokens."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sftdiff.corpus import Corpus, Rows
from sftdiff.errors import SftdiffError
from sftdiff.records import read_json
from sftdiff.render import render_row

AS_SAVED = {"chat_template": None, "eos_token": None}


def model_of(corpus: Corpus, name: str) -> Path:
    """Return the folder of one of the filter's models; raises SftdiffError if it is not set or not there."""
    if name not in corpus.models:
        raise SftdiffError(f"filter.{name}: this filter needs a model: set it to a Hugging Face folder or a LoRA adapter")
    folder = Path(corpus.models[name])
    if not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        raise SftdiffError(f"filter.{name}: {folder} has no config.json or adapter_config.json")
    return folder


def base_of(folder: Path) -> Path:
    """Return the folder of the full weights: the folder itself, or what a LoRA adapter was trained on."""
    if not (folder / "adapter_config.json").is_file():
        return folder
    base = Path(str(read_json(folder / "adapter_config.json").get("base_model_name_or_path")))
    if not (base / "config.json").is_file():
        raise SftdiffError(f"{folder}/adapter_config.json: base_model_name_or_path {base} is not a Hugging Face folder here")
    return base


def load_tokenizer_of(folder: Path) -> Any:
    """Load the tokenizer of a model folder; an adapter without one has that of its base."""
    from sftdiff.students import load_tokenizer

    return load_tokenizer(tokenizer_folder(folder), AS_SAVED)


def tokenizer_folder(folder: Path) -> Path:
    return folder if (folder / "tokenizer_config.json").is_file() else base_of(folder)


def load_model_of(folder: Path, precision: str) -> Any:
    """Load a model for inference, an adapter merged into its base. Models that were loaded before are dropped."""
    from sftdiff.loading import load_for_sampling

    load_for_sampling.cache_clear()  # else two would be in memory at once
    base = base_of(folder)
    return load_for_sampling(str(base), str(folder) if base != folder else "", "", precision)


def max_tokens(folder: Path, wanted: int) -> int:
    """Return `wanted`, or the longest input that the model takes where that is shorter."""
    config = read_json(base_of(folder) / "config.json")
    return min(wanted, int(config.get("max_position_embeddings") or config.get("n_positions") or wanted))


def token_rows(tokenizer: Any, rows: Rows, longest: int) -> list[tuple[list[int], int]]:
    """Return (token ids, length of the prompt) of each row, cut to `longest` tokens."""
    pairs = zip(rows.messages, rows.replies, strict=True)
    return [cut(*render_row(tokenizer, messages, reply), longest) for messages, reply in pairs]


def cut(tokens: list[int], prompt: int, longest: int) -> tuple[list[int], int]:
    """Cut a row to `longest` tokens: the beginning of the prompt goes first, as far as one token; then the end of the reply."""
    drop = min(max(len(tokens) - longest, 0), prompt - 1)
    return tokens[drop : drop + longest], prompt - drop


def labelled(rows: Iterable[tuple[list[int], int]]) -> Iterator[Mapping[str, Any]]:
    """Yield rows as training sees them: the prompt has no label (-100)."""
    for tokens, prompt in rows:
        yield {"input_ids": tokens, "labels": [-100] * prompt + tokens[prompt:], "length": len(tokens)}
