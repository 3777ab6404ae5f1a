"""The one rendering function: conversation -> tokens and loss mask, for training and for evaluation.

Everything comes from the chat template, so that what a student is asked is worded as what it was trained on. The hash of the
rendering is written by pack and train and checked by sample.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sftdiff.errors import SftdiffError
from sftdiff.identity import canonical, digest

PROBE: list[dict[str, str]] = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U 1"},
    {"role": "assistant", "content": "A 1"},
    {"role": "user", "content": "U 2"},
]


def render_prompt(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the token ids of a conversation up to and with the header of the reply."""
    text = tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def render_row(tokenizer: Any, messages: Sequence[Mapping[str, str]], completion: str) -> tuple[list[int], int]:
    """Return (token ids, length of the prompt) of a training row: the loss is on what follows the prompt.

    The reply ends with the tokenizer's end-of-turn token, so that a student learns to stop. The assistant turns inside the prompt
    are not the teacher's and carry no loss.
    """
    prompt = render_prompt(tokenizer, messages)
    reply = list(tokenizer(completion, add_special_tokens=False)["input_ids"])
    return prompt + reply + [tokenizer.eos_token_id], len(prompt)


def rendering_hash(tokenizer: Any) -> str:
    """Return a hash of how a tokenizer and its chat template render a fixed conversation."""
    try:
        row = render_row(tokenizer, PROBE, "A 2")
    except Exception as error:  # templates are code of the model's author: any error is theirs
        raise SftdiffError(f"the chat template cannot render a conversation with a system turn ({error})") from error
    return digest(canonical([list(row), tokenizer.chat_template]))
