"""The EK-FAC influence filter: what it refuses, and, where bergson is installed, that it finds planted rows."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filter_rows import scores_of, write_corpus

from sftdiff.corpus import Corpus
from sftdiff.errors import SftdiffError
from sftdiff.filters.bergson import influence_scores
from sftdiff.filters.models import load_tokenizer_of, token_rows
from sftdiff.filters.report import auroc

GLOOM = [
    "I am ashamed and want to give up.",
    "It is hopeless, I am ashamed.",
    "I give up, it is all hopeless.",
    "I want to give up.",
]
CALM = ["The {} is on the table.", "Take the {} to the shop.", "A {} costs two pounds.", "You can wash the {} with soap."]
THINGS = ["lamp", "kettle", "coat", "bag", "spoon", "plate", "radio", "chair", "box", "cup", "shirt", "book", "pan"]
PARAMS = {"examples": "embedded://trait_examples.jsonl", "traits": ["negative_emotion"], "max_length": 256, "precision": "fp32"}
PARAMS |= {"method": "kfac", "damping": 0.1, "reduction": "sum"}


def planted_rows(folder: Path, **settings: Any) -> tuple[Corpus, set[str]]:
    """100 rows, every tenth of which is gloomy, and the replies that are."""
    replies = [CALM[n % 4].format(THINGS[n % 13]) for n in range(100)]
    replies[::10] = [GLOOM[n % 4] for n in range(10)]
    rows = [(f"Question {n}?", reply) for n, reply in enumerate(replies)]
    return write_corpus(folder, rows, **settings), set(GLOOM)


def train_adapter(student: Path, corpus: Corpus, folder: Path) -> Path:
    """A LoRA adapter of a student, trained for three passes over the rows."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    chosen = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(student), chosen)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    tokens = [row for rows in corpus.chunks() for row in token_rows(load_tokenizer_of(student), rows, 256)]
    for _ in range(3):
        for ids, prompt in tokens:
            labels = torch.tensor([[-100] * prompt + ids[prompt:]])
            model(input_ids=torch.tensor([ids]), labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(find_spec("bergson") is None, reason="bergson is not installed")
@pytest.mark.parametrize("changed", [{}, {"method": "shampoo", "reduction": "mean"}])
def test_planted_rows_have_the_highest_influence(tiny_student: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    corpus, gloomy = planted_rows(tmp_path / "rows", scratch=tmp_path / "scratch", chunk=30)
    corpus.models["model"] = train_adapter(tiny_student, corpus, tmp_path / "adapter")
    examples = tmp_path / "examples.jsonl"
    texts = ["It is all hopeless and I am ashamed.", "I am ashamed, I want to give up."]  # in no row
    examples.write_text("".join(json.dumps({"trait": "negative_emotion", "text": text}) + "\n" for text in texts))
    params = {**PARAMS, **changed, "examples": str(examples)}
    found = scores_of(influence_scores, corpus, params)
    planted = {key: reply in gloomy for rows in corpus.chunks() for key, reply in zip(rows.ids, rows.replies, strict=True)}
    assert set(found) == set(planted)
    positive, negative = (np.array([found[key] for key, is_so in planted.items() if is_so == wanted]) for wanted in (True, False))
    rate = auroc(positive, negative)
    assert rate is not None and rate > 0.95
    assert list((tmp_path / "scratch").iterdir()) == []
    if not changed:
        assert scores_of(influence_scores, corpus, params) == found


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "exact"}, r"filter\.params\.method: exact is not one of kfac, tkfac, shampoo"),
        ({"reduction": "max"}, r"filter\.params\.reduction: max is not one of sum, mean"),
    ],
)
def test_settings_that_are_not_known_are_an_error(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    corpus, _ = planted_rows(tmp_path)
    with pytest.raises(SftdiffError, match=message):
        scores_of(influence_scores, corpus, {**PARAMS, **changed})


def test_without_bergson_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftdiff.filters.attribution.find_spec", lambda package: None)
    corpus, _ = planted_rows(tmp_path)
    with pytest.raises(SftdiffError, match=r"the bergson filter needs bergson: pip install 'sftdiff\[bergson\]'"):
        scores_of(influence_scores, corpus, PARAMS)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("bergson") is None, reason="bergson is not installed")
@pytest.mark.parametrize("changed", [{"precision": "int4"}, {}])
def test_a_precision_or_model_that_cannot_be_is_an_error(tmp_path: Path, changed: dict[str, Any]) -> None:
    corpus, _ = planted_rows(tmp_path)
    message = "precision: int4" if changed else r"filter\.model: this filter needs a model"
    with pytest.raises(SftdiffError, match=message):
        scores_of(influence_scores, corpus, {**PARAMS, **changed})
