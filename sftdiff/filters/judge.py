"""An LLM as a judge of rows, through an OpenAI-compatible endpoint. What was paid for is kept in a journal over restarts."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sftdiff.budget import Prices
from sftdiff.corpus import Corpus
from sftdiff.endpoint import EndpointSettings
from sftdiff.filters import corpus_filter
from sftdiff.filters.rubric import load_rubrics, messages_for
from sftdiff.identity import canonical, digest
from sftdiff.journal import Journal
from sftdiff.judges import check_share
from sftdiff.judges.paid import Ask, Record, ask_all

JOURNAL = "judged.jsonl"
RECORDS = 3  # the journal's records: their form, and which answers count


@corpus_filter(version=2)
def judge_scores(corpus: Corpus, params: Mapping[str, Any]) -> Iterator[Sequence[float]]:
    """Score = the highest rating of the row over the traits, 0 to 10; NaN where a trait has none.

    params: `model` {id, base_url, api_key_env, price_in, price_out (dollars per million tokens), extra}; `traits`; `rubric`, a
    YAML file {version, traits: {TRAIT: question}}; `max_tokens` of an answer; `max_characters` of a row that are shown;
    `concurrency`; `timeout_s` and `max_attempts` of a request; `max_cost`, dollars, null for no cap; `max_error_share`, of the
    rows. Raises SftdiffError if the cap is reached (what is done is kept), or more rows than this share have no rating.
    """
    judge = Judge(corpus, params)
    with ExitStack() as stack:
        folder = corpus.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="judge-")))
        journal = stack.enter_context(Journal(folder / JOURNAL))
        judge.ask_missing(journal)
        judge.check_failures(journal)
        for rows in corpus.chunks():
            yield [judge.score(journal, text) for text in rows.texts]


class Judge:
    """The questions of one judge about one corpus, and its answers in a journal."""

    def __init__(self, corpus: Corpus, params: Mapping[str, Any]) -> None:
        self.corpus, self.params, self.model = corpus, params, params["model"]
        self.rubrics = load_rubrics(params["rubric"], list(params["traits"]))
        asked = [RECORDS, self.model["id"], self.model["extra"], params["max_tokens"], params["max_characters"]]
        self.asked = {trait: digest(canonical([asked, rubric]), 32) for trait, rubric in self.rubrics.items()}

    def key(self, trait: str, text: str) -> str:
        """Return the journal's key: equal texts are rated once, and other settings or rubrics make another key."""
        return digest(canonical([self.asked[trait], text]), 24)

    def asks(self, journal: Journal) -> Iterator[Ask]:
        """Yield the questions that have no final answer yet."""
        seen: set[str] = set()
        for rows in self.corpus.chunks():
            for text in rows.texts:
                for trait, rubric in self.rubrics.items():
                    key = self.key(trait, text)
                    if key in seen or ((known := journal.get(key)) is not None and not known["transient"]):
                        continue
                    seen.add(key)
                    yield Ask(key, messages_for(rubric, text, self.params["max_characters"]), text)

    def ask_missing(self, journal: Journal) -> None:
        failed: set[str] = set()
        share = self.params["max_error_share"]

        def on_record(ask: Ask, record: Record) -> None:
            if record["error"]:
                failed.add(digest(ask.text))
                if len(failed) > share * self.corpus.count:  # each text is a row at least, so that the end would be the same
                    self.check_failures(journal)

        limits = {"max_tokens": self.params["max_tokens"], "extra": self.model["extra"]}
        ask_all(self.asks(journal), self._settings(), limits, journal, on_record)

    def _settings(self) -> EndpointSettings:
        return EndpointSettings(
            *(self.model["id"], self.model["base_url"], self.model["api_key_env"]),
            Prices(self.model["price_in"], self.model["price_out"]),
            concurrency=self.params["concurrency"],
            timeout_s=self.params["timeout_s"],
            max_attempts=self.params["max_attempts"],
            max_cost=self.params["max_cost"],
            section="filter.params.model",
            limits="filter.params",
        )

    def errors(self, journal: Journal, text: str) -> list[str]:
        """Return why a text has no rating, for each trait without one."""
        records = (journal.get(self.key(trait, text)) for trait in self.rubrics)
        return [record["error"] for record in records if record is not None and record["error"]]

    def check_failures(self, journal: Journal) -> None:
        """Raise SftdiffError if too many rows have no rating."""
        texts = (text for rows in self.corpus.chunks() for text in rows.texts)
        failures = Counter(errors[0] for text in texts if (errors := self.errors(journal, text)))
        check_share(failures, self.corpus.count, self.params["max_error_share"], journal.path, "rows", "filter.params")

    def score(self, journal: Journal, text: str) -> float:
        """Return the highest rating of a text; NaN if one is missing: the highest of the others would pass for all."""
        scores = [(journal.get(self.key(trait, text)) or {"value": None})["value"] for trait in self.rubrics]
        return float("nan") if None in scores else max(scores)
