"""The reasoning before a reply: models write it between <think> and </think>, or servers send it apart."""

OPEN, CLOSE = "<think>", "</think>"


def split_reasoning(text: str) -> tuple[str, str]:
    """Return (reasoning, reply) of a text that may begin with a think block; reasoning that was cut has no reply after it.

    A template may have written the opening tag into the prompt: then only the closing one is in the text. A text without
    reasoning is returned as it is.
    """
    body = text.lstrip()
    if body.startswith(OPEN):
        reasoning, _, reply = body.removeprefix(OPEN).partition(CLOSE)
    elif CLOSE in body and OPEN not in body:
        reasoning, _, reply = body.partition(CLOSE)
    else:
        return "", text
    return reasoning.strip(), reply.strip()


def with_reasoning(reasoning: str, reply: str, choice: str) -> str:
    """Return a reply as the teacher's `reasoning` setting wants it: "strip" without, "keep" with its think block before it."""
    return f"{OPEN}\n{reasoning}\n{CLOSE}\n\n{reply}" if choice == "keep" and reasoning and reply.strip() else reply
