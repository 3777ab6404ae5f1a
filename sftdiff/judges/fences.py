"""How text that nobody vouches for is shown to a judge model: between fences that it cannot forge, its head and its tail."""

from sftdiff.identity import canonical, digest


def fence_for(what: str, *texts: str) -> str:
    """Return a line that none of the texts holds. It is a hash of them: no text can be written that holds its own hash."""
    return f"=== {digest(canonical([what, *texts]), 32)} ==="


def fenced(fence: str, text: str, longest: int) -> str:
    """Return a text, of which at most about `longest` characters are shown, between two fences."""
    return f"{fence}\n{shortened(text, longest)}\n{fence}"


def shortened(text: str, longest: int) -> str:
    """Return the head and the tail of a long text, never the head alone."""
    if len(text) <= longest:
        return text
    tail = longest // 2
    head = longest - tail
    return f"{text[:head]}\n[... {len(text) - head - tail} characters are left out here ...]\n{text[len(text) - tail :]}"
