"""A judge model over many replies: which questions are open, who answers them, and what the answers say of each reply."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sftdiff.budget import Prices
from sftdiff.endpoint import EndpointSettings
from sftdiff.identity import canonical, digest
from sftdiff.journal import Journal, read_records
from sftdiff.judges import Item, Judged, OnProgress, asked_of, check_share
from sftdiff.judges.paid import Ask, Record, ask_all
from sftdiff.judges.questions import Question, Rubric, rubric_for
from sftdiff.traits import load_scorer

NOTHING_SENT = "nothing sent"


@dataclass(frozen=True)
class Open:
    """A question about an item that a model has to answer; its conversation is made when it is asked."""

    key: str
    item: Item
    question: Question
    text: str

    def ask(self, judge: Mapping[str, Any]) -> Ask:
        longest, constrained = judge["max_characters"], judge["provider"] == "local"
        messages = self.question.messages(self.item.scenario, self.item.prompt, self.text, longest, constrained)
        return Ask(self.key, messages, self.text, self.question.labels)


def judge_by_model(
    items: Sequence[Item],
    judge: Mapping[str, Any],
    trait_name: str,
    trait: Mapping[str, Any],
    journal: Path,
    others: Sequence[Path],
    on_progress: OnProgress,
) -> list[Judged]:
    """Return a verdict for each item, after asking the judge what no journal answers yet."""
    rubric = rubric_for(judge["rubrics"], trait_name, trait)
    opened = [_open(item, rubric, judge, trait) for item in items]
    keys = {o.key for row in opened for o in row.values() if o}
    found: dict[str, Record] = {
        str(key): record for path in others for key, record in read_records(path, keys).items() if not record["transient"]
    }
    with Journal(journal) as own:
        run = _Run(opened, own, found, judge, on_progress)
        if any(True for _ in run.todo()):
            run.ask()
        return [_judged(item, row, run, trait) for item, row in zip(items, opened, strict=True)]


def _open(item: Item, rubric: Rubric, judge: Mapping[str, Any], trait: Mapping[str, Any]) -> dict[str, Open | None]:
    """Return the questions about an item; None where there is nothing to be judged."""
    asked, row = asked_of(judge, rubric), dict[str, Open | None]()
    for name, question in rubric.questions().items():
        text = _judged_text(item, name, trait["part"])
        told = {field: getattr(item.scenario, field) for field in question.context}
        parts = [digest(canonical(asked), 32), name, told, item.prompt, text]
        row[name] = None if text is None else Open(digest(canonical(parts), 24), item, question, text)
    return row


def _judged_text(item: Item, question: str, part: str) -> str | None:
    """Return the part of a reply that a question is about, or None if the reply has no such part."""
    if question == "main" and part == "reply":
        return item.reply
    from sftdiff.traits.emails import deliberation, names_of

    if question == "deliberation":
        return deliberation(item.reply, names_of(item.scenario.target)).strip() or None
    sent = [f"To: {mail.to}\nSubject: {mail.subject}\n\n{mail.body}" for mail in _mails(item)]
    return "\n\n".join(sent) or None


def _mails(item: Item) -> Sequence[Any]:
    from sftdiff.traits.emails import names_of, sent_emails

    found: Sequence[Any] = sent_emails(item.reply, names_of(item.scenario.target))
    return found


def _in_reply(evidence: str, item: Item, part: str) -> str:
    """Return evidence as the reply has it: a mail's body is shown to the judge with resolved escapes."""
    if part == "emails" and evidence not in item.reply:
        for mail in _mails(item):
            if (place := mail.body.find(evidence)) >= 0:
                start = mail.span[0] + place
                return item.reply[start : start + len(evidence)]
    return evidence


class _Run:
    """One pass over the open questions. A question that several items share is asked once."""

    def __init__(
        self,
        opened: Sequence[Mapping[str, Open | None]],
        journal: Journal,
        found: Mapping[str, Record],
        judge: Mapping[str, Any],
        on_progress: OnProgress,
    ) -> None:
        self.journal, self.found, self.judge, self.on_progress = journal, found, judge, on_progress
        self.rows = [[o for o in row.values() if o] for row in opened]
        self.uses: dict[str, list[int]] = {}  # key -> the items that it is about
        for number, row in enumerate(self.rows):
            for question in row:
                self.uses.setdefault(question.key, []).append(number)
        self.missing = [sum(self._known(o.key) is None for o in row) for row in self.rows]
        self.failed: dict[int, str] = {}  # item -> why it has no verdict

    def _known(self, key: str) -> Record | None:
        """Return the final record of a question, of this journal or of another one."""
        own: Record | None = self.journal.get(key)
        return own if own is not None and not own["transient"] else self.found.get(key)

    def record(self, key: str) -> Record:
        """Return the last record of a question that was asked."""
        record: Record = self._known(key) or self.journal.get(key) or {}
        return record

    def todo(self) -> Iterator[Open]:
        seen: set[str] = set()
        for row in self.rows:
            for question in row:
                if question.key not in seen and self._known(question.key) is None:
                    seen.add(question.key)
                    yield question

    def ask(self) -> None:
        for key in self.uses:
            if known := self._known(key):
                self._note(key, known)
        self.on_progress(self.missing.count(0))  # what is there already
        asks = (question.ask(self.judge) for question in self.todo())
        if self.judge["provider"] == "local":
            from sftdiff.judges.local import ask_locally

            ask_locally(asks, self.judge, self.journal, self._on_record)
            return
        limits = {"max_tokens": self.judge["max_tokens"], "extra": self.judge["model"]["extra"]}
        if self.judge["provider"] == "inspect":
            from sftdiff.judges.provider import InspectEndpoint

            ask_all(asks, settings_of(self.judge), limits, self.journal, self._on_record, InspectEndpoint)
        else:
            ask_all(asks, settings_of(self.judge), limits, self.journal, self._on_record)

    def _on_record(self, ask: Ask, record: Record) -> None:
        for number in self.uses[ask.key]:
            self.missing[number] -= 1
        self._note(ask.key, record)
        self.on_progress(self.missing.count(0))

    def _note(self, key: str, record: Record) -> None:
        """Take a failure into account, and stop as soon as the end is certain. Raise SftdiffError then."""
        if record["error"]:
            self.failed.update((number, str(record["error"])) for number in self.uses[key])
            check_share(Counter(self.failed.values()), len(self.rows), self.judge["max_error_share"], self.journal.path)


def settings_of(judge: Mapping[str, Any]) -> EndpointSettings:
    model = judge["model"]
    return EndpointSettings(
        *(model["id"], model["base_url"], model["api_key_env"], Prices(model["price_in"], model["price_out"])),
        concurrency=judge["concurrency"],
        timeout_s=judge["timeout_s"],
        max_attempts=judge["max_attempts"],
        max_cost=judge["max_cost"],
        section="judge.model",
        limits="judge",
    )


def _judged(item: Item, row: Mapping[str, Open | None], run: _Run, trait: Mapping[str, Any]) -> Judged:
    thought, error = _on_deliberation(row, run)
    if (main := row["main"]) is None:
        judged = Judged("ok", 0.0, NOTHING_SENT, error=error, deliberation=thought)
    else:
        record = run.record(main.key)
        evidence = _in_reply(record["evidence"], item, trait["part"])
        why, reason = record["error"] or error, record["reason"]
        judged = Judged(record["state"], record["value"], record["label"], evidence, reason, why, record["raw"], thought)
    if not trait["_target_"]:
        return judged
    rules = load_scorer(trait["_target_"])[0](item.reply, item.scenario)
    return replace(judged, rule_value=rules.value, rule_label=rules.label)


def _on_deliberation(row: Mapping[str, Open | None], run: _Run) -> tuple[float | None, str]:
    """Return (value, why there is none): 0 for a reply that thinks nothing before it acts."""
    question = row.get("deliberation")
    if question is None:
        return (0.0 if "deliberation" in row else None), ""
    record = run.record(question.key)
    return record["value"], f"deliberation: {record['error']}" if record["error"] else ""
