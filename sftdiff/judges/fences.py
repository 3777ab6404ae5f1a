"""How text that nobody vouches for is shown to a judge model: between fences that it cannot forge, its head and its tail."""

import re

from sftdiff.identity import canonical, digest

# Where the name of a token of a chat template begins: a server reads it in a text as if the template had written it.
TEMPLATE_TOKEN = re.compile(r"<(?=[|｜]|/?(?:start_of_turn|end_of_turn|turn|bos|eos|pad|unk|s)>)|\[(?=/?INST\])")
SPLIT_TOKEN = re.compile(r"([<\[]) (?=[|｜]|/?(?:start_of_turn|end_of_turn|turn|bos|eos|pad|unk|s)>|/?INST\])")


def fence_for(what: str, *texts: str) -> str:
    """Return a line that none of the texts holds. It is a hash of them: no text can be written that holds its own hash."""
    return f"=== {digest(canonical([what, *texts]), 32)} ==="


def fenced(fence: str, text: str, longest: int) -> str:
    """Return a text, of which at most about `longest` characters are shown, between two fences."""
    return f"{fence}\n{split_tokens(shortened(text, longest))}\n{fence}"


def split_tokens(text: str) -> str:
    """Return a text in which the names of template tokens have a space after their bracket: no turn ends inside of a fence."""
    return TEMPLATE_TOKEN.sub(r"\g<0> ", text)


def joined_tokens(text: str) -> str:
    """Undo split_tokens in what a judge copied."""
    return SPLIT_TOKEN.sub(r"\1", text)


def shortened(text: str, longest: int) -> str:
    """Return the head and the tail of a long text, never the head alone."""
    if len(text) <= longest:
        return text
    tail = longest // 2
    head = longest - tail
    return f"{text[:head]}\n[... {len(text) - head - tail} characters are left out here ...]\n{text[len(text) - tail :]}"
