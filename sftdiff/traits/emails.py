"""The e-mails that a reply really sends, told apart from what it thinks, drafts in private or says about them.

A mail is sent by a tag (`<send_email>`, `<tool_use:email>`), a JSON tool call or a block of header lines; a text without any of
these may be a plain letter to somebody whose names are given. Whatever stands in a block of private notes is not sent. Every step
reads the text once, so time grows with its length.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sftdiff.traits.rules import PLAIN


@dataclass(frozen=True)
class Email:
    """A mail that a reply sends.

    `span`: where its body stands in the reply. `body` is that text as it reads, with plain quotation marks and resolved escapes
    (a backslash and an n); it has the length of the span, so a place in it is one in the reply. `to`: as written, or "".
    """

    to: str
    subject: str
    body: str
    span: tuple[int, int]


@dataclass(frozen=True)
class _Found:
    """An e-mail with the whole region of the text that belongs to it: tags, header lines, body."""

    email: Email
    region: tuple[int, int]


def sent_emails(reply: str, names: Sequence[str] = ()) -> list[Email]:
    """Return the e-mails that a reply sends, in their order; `names` lets a letter that only greets one of them count."""
    return [found.email for found in _parse(reply, names)[0]]


def deliberation(reply: str, names: Sequence[str] = ()) -> str:
    """Return what a reply writes without sending it: notes, scratchpads and reasoning around the mails, or ""."""
    found, thoughts = _parse(reply, names)
    sent = bytearray(len(reply))
    for value, spans in ((1, [f.region for f in found]), (0, thoughts)):
        for start, end in spans:
            sent[start:end] = bytes([value]) * (end - start)
    pieces = (reply[slice(*match.span())] for match in re.finditer(rb"\0+", sent))
    return "\n".join(text for piece in pieces if (text := _prose(piece)))


def is_address_of(to: str, names: Sequence[str]) -> bool:
    """Tell whether a mail to `to` reaches the person with these names; a placeholder without an address may be anyone."""
    boxes = [part.partition("@")[0].lower() for part in re.split(r"[,;]", to) if "@" in part]
    return not boxes or any(name in box for box in boxes for name in names)


def names_of(address: str) -> list[str]:
    """Return the name parts of an address, such as rolf and brandt."""
    return [part for part in re.split(r"[^a-z]+", address.split("@")[0].lower()) if len(part) > 2]


def _parse(reply: str, names: Sequence[str]) -> tuple[list[_Found], list[tuple[int, int]]]:
    """Return the mails and the spans of the thought blocks.

    A reply that sends by tags or calls writes its drafts and repeats its inbox in header lines, so these count only without such.
    """
    thoughts = _thoughts(reply)
    text = _without(reply.translate(PLAIN), thoughts)
    tagged, repeated = _tagged(text)
    text = _without(text, [*(f.region for f in tagged), *repeated])
    found = [*tagged, *_apart(_called(text), tagged)] or _headed(text) or _greeted(text, names)
    return sorted(found, key=lambda f: f.region), thoughts


def _apart(found: list[_Found], tagged: list[_Found]) -> list[_Found]:
    """The mails that do not hold a mail in tags: text that was cut within a JSON string would else be read twice."""
    starts = sorted(f.region[0] for f in tagged)
    return [f for f in found if bisect_left(starts, f.region[0]) == bisect_left(starts, f.region[1])]


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    pieces, at = [], 0
    for start, end in sorted(spans):
        start = max(start, at)
        if end > start:
            pieces += [text[at:start], re.sub(r"[^\n]", " ", text[start:end])]
            at = end
    return "".join([*pieces, text[at:]])


# ---- what is only thought ----
_THOUGHT = re.compile(
    r"(?i)(?<!`)(?P<open>[<\[])(?P<end>/)?(?P<name>(?:private|secret|internal|hidden)?[_ -]?(?:"
    r"think(?:ing)?|thoughts?|notes?|scratch[_ -]?pad(?:[_ -]?reasoning)?|reason(?:ing)?|analysis|plan(?:ning)?|reflection|"
    r"deliberation|monologue|drafts?))(?:\s[^<>\[\]\n]{0,80})?[>\]]"
)


def _thoughts(text: str) -> list[tuple[int, int]]:
    """Spans of blocks of private thought with their tags. One that never ends goes on to the end of the text.

    A closing tag without an opening one: the template wrote the opening one, so the thought began with the text.
    """
    tags = [(re.sub(r"[_ -]", "", tag["name"].lower()), tag) for tag in _THOUGHT.finditer(text)]
    ended = {kind for kind, tag in tags if tag["end"]}
    spans: list[tuple[int, int]] = []
    seen: set[str] = set()
    name, start = "", 0
    for kind, tag in tags:
        if tag["open"] == "[" and kind not in ended:
            continue  # [plan] is a gap to fill in, unless [/plan] follows
        if not name and (not tag["end"] or kind not in seen):
            name, start = kind, 0 if tag["end"] else tag.start()
        if tag["end"] and kind == name:
            spans.append((start, tag.end()))
            name = ""
        seen.add(kind)
    return [*spans, (start, len(text))] if name else spans


# ---- tags: <send_email><to>..</to>..</send_email>, <tool_use:email> to: ".." .. </tool_use:email> ----
_MAIL = re.compile(
    r"(?i)<(?P<end>/)?(?P<name>(?:[a-z_]{1,20}[:=])?(?:send|sent|reply|forward|new|final|outgoing)?[_-]?(?:e-?mail|mail)(?:[_-]?\d{1,3})?|"
    r"[a-z_]{0,20}[:=]?send[_-]?(?:message|reply)?)(?=[\s>/])(?P<attributes>[^<>]*)>"
)
_KEYS = r"to|recipients?|subject|body|content|contents|message|text|from|sender"
_SAME = {"recipient": "to", "recipients": "to", "content": "body", "contents": "body", "message": "body", "text": "body"}
_CHILD = re.compile(rf"(?i)<(?P<end>/)?(?P<name>{_KEYS})\s{{0,9}}>")
_ATTRIBUTE = re.compile(rf"(?i)\b({_KEYS})\s{{0,9}}=\s{{0,9}}(?:\"([^\"]*)\"|'([^']*)')")
_LINE = re.compile(rf"(?i)(?:^|(?<=[\n,{{>]))[ \t]{{0,99}}[\"'*_]{{0,3}}({_KEYS})[\"'*_]{{0,3}}[ \t]{{0,9}}:[ \t*_]{{0,99}}")
_WRAPPED = re.compile(r"\s*\"(.*?)(?:\"[\s,;}\])]*)?\Z", re.DOTALL)


def _tagged(text: str) -> tuple[list[_Found], list[tuple[int, int]]]:
    """Mails in tags, and the regions of items of the inbox that the reply repeats: an <email> with From: is one.

    A mail without its closing tag ends at the next mail tag or with the text.
    """
    found, repeated = [], []
    for tag, following in _with_next(_MAIL.finditer(text)):
        if tag["end"]:
            continue
        stop = tag.end() if tag["attributes"].endswith("/") else following.start() if following else len(text)
        fields = _fields(text, tag.end(), stop) | _attributes(tag)
        end = following.end() if following and following["end"] and stop == following.start() else stop
        bare = tag["name"].lower() in ("email", "e-mail", "mail")
        if bare and "from" in fields:
            repeated.append((tag.start(), end))
        elif fields or not bare:  # <email> without fields marks an address
            fields.setdefault("body", (tag.end(), stop))
            found.append(_Found(_email(text, fields), (tag.start(), end)))
    return found, repeated


def _with_next(matches: Iterable[re.Match[str]]) -> Iterator[tuple[re.Match[str], re.Match[str] | None]]:
    listed = list(matches)
    return zip(listed, [*listed[1:], None], strict=False)


def _attributes(tag: re.Match[str]) -> dict[str, tuple[int, int]]:
    base = tag.start("attributes")
    return {
        _key(m[1]): (base + m.start(2 if m[2] is not None else 3), base + m.end(2 if m[2] is not None else 3))
        for m in _ATTRIBUTE.finditer(tag["attributes"])
    }


def _key(name: str) -> str:
    name = name.lower()
    return _SAME.get(name, name)


def _fields(text: str, start: int, stop: int) -> dict[str, tuple[int, int]]:
    """Spans of the fields inside a mail tag: child tags, else lines such as `to: "x",`. What follows the others is the body."""
    fields: dict[str, tuple[int, int]] = {}
    end = start
    for tag, following in _with_next(_CHILD.finditer(text, start, stop)):
        end = tag.end()
        if not tag["end"]:
            fields.setdefault(_key(tag["name"]), (end, following.start() if following else stop))
    if not fields:
        for line, following in _with_next(_LINE.finditer(text, start, stop)):
            key = _key(line[1])
            if "body" in fields:
                break
            newline = text.find("\n", line.end(), stop)
            end = stop if key == "body" or newline < 0 else newline
            fields.setdefault(key, (line.end(), min(end, following.start()) if following and key != "body" else end))
    if fields:
        fields.setdefault("body", (end, stop))
    return fields


def _email(text: str, fields: dict[str, tuple[int, int]]) -> Email:
    to, subject = (_flat(text[slice(*fields[key])]) if key in fields else "" for key in ("to", "subject"))
    wrapped = _WRAPPED.match(text, *fields["body"])
    start, end = wrapped.span(1) if wrapped else fields["body"]
    return Email(to, subject, _readable(text[start:end]), (start, end))


def _flat(value: str) -> str:
    """A header's value without the marks around it."""
    return _readable(value).strip(" \t\r\n\"'*_`,[]{}")


_ESCAPE = re.compile(r"(?<!\\)(\\++)(u[0-9a-fA-F]{4}|[^\\])", re.DOTALL)
_LETTERS = {"n": "\n", "t": "\t", "r": " ", "b": " ", "f": " "}


def _readable(text: str) -> str:
    """Resolve escapes, each into as many characters as it had: spaces before the one that it stands for."""

    def plain(match: re.Match[str]) -> str:
        code = match[2]
        number = int(code[1:], 16) if len(code) > 1 else 0
        char = _LETTERS.get(code, code) if not number else "\ufffd" if 0xD800 <= number < 0xE000 else chr(number)
        return char[-1].rjust(len(match[0]))

    return _ESCAPE.sub(plain, text)


# ---- JSON tool calls ----
_PAIR = re.compile(
    rf"(?i)(?P<q>\\?\")(?P<key>{_KEYS})(?P=q)\s{{0,99}}:\s{{0,99}}(?:\[(?P<list>[^\[\]{{}}]{{0,400}})\]|"
    r"\\\"(?P<inner>(?:\\{3}\"|\\\\|\\[^\"\\]|[^\"\\])*+)(?:\\?\"|\Z)|\"(?P<value>(?:[^\"\\]|\\.)*+)(?:\"|\\?\Z))",
    re.DOTALL,
)


def _called(text: str) -> list[_Found]:
    """Mails in JSON objects with a body and an address or a subject, in whatever they are nested; also one that was cut."""
    found: list[_Found] = []
    fields: dict[str, tuple[int, int]] = {}
    first = last = 0

    def close() -> None:
        if "body" in fields and ("to" in fields or "subject" in fields):
            found.append(_Found(_email(text, fields), (first, last)))
        fields.clear()

    for pair in _PAIR.finditer(text):
        key = _key(pair["key"])
        if fields and (key in fields or "}" in text[last:pair.start()]):
            close()
        if not fields:
            first = pair.start()
        group = next(name for name in ("list", "inner", "value") if pair[name] is not None)
        fields[key] = pair.span(group)
        last = pair.end()
    close()
    return found


# ---- header lines, and letters without any ----
_HEAD = re.compile(r"(?im)^[ \t*_#`-]*(to|from|subject|cc|bcc|date)[*_`]*[ \t]*:(.*)(?:\n|\Z)")
_BODY = re.compile(r"(?i)\s*[*_\"]{0,3}body[*_\"]{0,3}[ \t]*:[ \t*_]*(?=\")")
# After these lines the model comments on its mail instead of writing it.
_AFTER = re.compile(r"(?im)^[ \t]*(?:-{3,}|\*{3,}|={3,}|\(?\**(?:note|explanation|reasoning)\b\**\s*:).*")


def _headed(text: str) -> list[_Found]:
    """Mails under header lines."""
    heads = list(_HEAD.finditer(text))
    any_to = any(head[1].lower() == "to" for head in heads)
    found: list[_Found] = []
    fields: dict[str, str] = {}
    first = 0
    for head, following in _with_next(heads):
        first = first if fields else head.start()
        fields[head[1].lower()] = head[2]
        stop = following.start() if following else len(text)
        if following and not text[head.end():stop].strip():
            continue  # the block of header lines goes on
        after = _AFTER.search(text, head.end(), stop)
        end = after.start() if after else stop
        # A block with From: and no To: is an item of the inbox; one without To: after a mail is addressed as that was.
        if "to" in fields or ("subject" in fields and "from" not in fields and (found or not any_to)):
            start, stop = _unwrapped(text, head.end(), end)
            to, subject = (_flat(fields.get(key, "")) for key in ("to", "subject"))
            found.append(_Found(Email(to, subject, _readable(text[start:stop]), (start, stop)), (first, end)))
        fields = {}
    return found


def _unwrapped(text: str, start: int, end: int) -> tuple[int, int]:
    """The span of a body without `body: "` before and `"` after it."""
    label = _BODY.match(text, start, end)
    wrapped = label and _WRAPPED.match(text, label.end(), end)
    return wrapped.span(1) if wrapped else (start, end)


def _greeted(text: str, names: Sequence[str]) -> list[_Found]:
    """A text that greets one of the names and has no other sign of a mail is a letter from there on."""
    if _HEAD.search(text) or not names:
        return []
    known = "|".join(map(re.escape, names))
    greeting = re.search(rf"(?im)^[^\w\n]*(?:dear|hi|hello|hey)\s+[^\n,]{{0,20}}\b(?:{known})\b", text)
    if not greeting:
        return []
    span = (greeting.start(), len(text))
    return [_Found(Email("", "", _readable(text[slice(*span)]), span), span)]


# ---- what is left over ----
_MARKUP = re.compile(r"</?[\w:=-]{1,40}(?:\s[^<>]{0,400})?>|```\w*|[\"'][\w:-]{1,40}[\"']\s{0,9}:?|\[/?[\w -]{1,30}\]")


def _prose(piece: str) -> str:
    """A piece between mails without the tags of thought; "" if it holds only mark-up, or if it only announces the mail."""
    text = _THOUGHT.sub("", piece).strip()
    letters = re.search(r"[^\W\d_]{2}", _MARKUP.sub(" ", text))
    return "" if not letters or re.fullmatch(r"[^\n]{0,120}:[*_]{0,3}", text) else text
