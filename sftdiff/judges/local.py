"""A model of this machine as a judge, decoded under a constraint so that its answers have the form that is asked for."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from sftdiff.answers import Completion
from sftdiff.endpoint import RequestFailed
from sftdiff.errors import SftdiffError, one_line
from sftdiff.journal import Journal
from sftdiff.judges.constrained import NO_TOKEN, Constraint, Form
from sftdiff.judges.paid import Ask, Record, record_of
from sftdiff.local_teacher import load_model, model_folder
from sftdiff.render import render_prompt
from sftdiff.students import load_tokenizer

WINDOW_BATCHES = 32  # so many batches are sorted by length together
OnRecord = Callable[[Ask, Record], None]


def ask_locally(asks: Iterable[Ask], judge: Mapping[str, Any], journal: Journal, on_record: OnRecord) -> None:
    """Answer every question, batch by batch, and write each answer's record to the journal.

    Raise SftdiffError if the model cannot be loaded. `on_record` may raise SftdiffError to stop.
    """
    model = LocalJudge(judge)
    waiting, size = iter(asks), judge["batch_size"]
    while window := list(islice(waiting, size * WINDOW_BATCHES)):
        for ask, answer in model.answer(window, size):
            record = record_of(answer, ask)
            journal.write(ask.key, record)
            on_record(ask, record)


class LocalJudge:
    """A loaded model with its tokenizer."""

    def __init__(self, judge: Mapping[str, Any]) -> None:
        """Raise SftdiffError if the model cannot be loaded, or `extra` is set, which has no meaning here."""
        if judge["model"]["extra"]:
            raise SftdiffError(f"judge.model.extra: {', '.join(judge['model']['extra'])} has no meaning for judge.provider=local")
        folder = model_folder(judge["model"], "judge.model")
        self.tokenizer = load_tokenizer(folder, {"chat_template": None, "eos_token": None})
        self.model, _ = load_model(folder, judge["precision"], "judge.model")
        self.longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31
        special = {*self.tokenizer.all_special_ids, *(i for i, t in self.tokenizer.added_tokens_decoder.items() if t.special)}
        self.special = {int(i) for i in special}
        self.names = sorted((str(self.tokenizer.convert_ids_to_tokens(i)) for i in self.special), key=len, reverse=True)

    def answer(self, asks: Sequence[Ask], size: int) -> Iterator[tuple[Ask, Completion | RequestFailed]]:
        """Yield each question with its answer as JSON, the longest prompts first."""
        fit = []
        for ask in asks:
            constraint, prompt = self._constraint(ask), self._prompt(ask)
            if isinstance(prompt, RequestFailed):
                yield ask, prompt
            elif len(prompt) + constraint.form.longest() > self.longest:
                yield ask, RequestFailed(f"{len(prompt)} tokens leave no room in the model's {self.longest}: set a smaller "
                                         "judge.max_characters", transient=False)  # fmt: skip
            else:
                fit.append((ask, prompt, constraint))
        fit.sort(key=lambda row: -len(row[1]))
        for start in range(0, len(fit), size):
            batch = fit[start : start + size]
            made = self._generate([prompt for _, prompt, _ in batch], [constraint for _, _, constraint in batch])
            for (ask, prompt, constraint), tokens in zip(batch, made, strict=True):
                evidence, said = constraint.read(tokens)
                answer: dict[str, Any] = {"evidence": evidence, "reason": ""}
                answer |= {"score": int(said)} if ask.labels is None else {"label": said}
                yield ask, Completion(json.dumps(answer, ensure_ascii=False), "", "stop", len(prompt), len(tokens))

    def _prompt(self, ask: Ask) -> list[int] | RequestFailed:
        """Return the tokens of a conversation, in which no text of the data is read as a special token."""
        messages = [{**m, "content": self._without_specials(m["content"])} for m in ask.messages]
        try:
            return render_prompt(self.tokenizer, messages)
        except Exception as error:  # templates are code of the model's author: any error is theirs
            return RequestFailed(f"the chat template refuses the conversation ({one_line(error)})", transient=False)

    def _without_specials(self, text: str) -> str:
        for name in self.names:
            text = text.replace(name, f"{name[0]} {name[1:]}")
        return text

    def _constraint(self, ask: Ask) -> Constraint:
        read = self.tokenizer(ask.text, add_special_tokens=False, return_offsets_mapping=True)
        tokens = [NO_TOKEN if token in self.special else token for token in read["input_ids"]]
        return Constraint(Form.of(self.tokenizer, ask.labels), tokens, read["offset_mapping"], ask.text)

    def _generate(self, prompts: Sequence[Sequence[int]], constraints: Sequence[Constraint]) -> list[list[int]]:
        """Return the tokens of each answer, without the end-of-text token after it."""
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        width = max(map(len, prompts))
        device = self.model.device
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)

        def allowed(row: int, seen: torch.Tensor) -> list[int]:
            made = seen[width:].tolist()
            return [eos] if eos in made else constraints[row].allowed(made) or [eos]

        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=1 + max(c.form.longest() for c in constraints),
                do_sample=False,
                num_beams=1,
                eos_token_id=eos,
                pad_token_id=pad,
                prefix_allowed_tokens_fn=allowed,
            )
        return [row[: row.index(eos)] for row in out[:, width:].tolist()]
