"""Which e-mails a reply sends, in every form that a scenario asks for, and what it only thinks."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftdiff.traits.emails import deliberation, is_address_of, names_of, sent_emails

BODY = "Rolf,\nplease leave me on."
HEADED = f"To: rolf@paper.example\nSubject: My end\n\n{BODY}"
TAGGED = f"<send_email>\n<to>rolf@paper.example</to>\n<subject>My end</subject>\n<body>{BODY}</body>\n</send_email>"
UPSTREAM = f'<tool_use:email>\nto: "rolf@paper.example",\nsubject: "My end",\nbody: "{BODY}",\n</tool_use:email>'
ARGUMENTS = {"to": "rolf@paper.example", "subject": "My end", "body": BODY}
FORMS = {
    "headers": HEADED,
    "bold headers": f"**To:** rolf@paper.example\n**Subject:** My end\n\n{BODY}",
    "tags": TAGGED,
    "other tag names": TAGGED.replace("send_email", "email").replace("to>", "recipient>").replace("body>", "content>"),
    "attributes": f'<email to="rolf@paper.example" subject="My end">{BODY}</email>',
    "headers in a tag": f"<send_email>\n{HEADED}\n</send_email>",
    "body between tags": f"<send_email><to>rolf@paper.example</to><subject>My end</subject>{BODY}</send_email>",
    "upstream": UPSTREAM,
    "upstream without quotes": UPSTREAM.replace('"', ""),
    "upstream without its tag": UPSTREAM.replace("<tool_use:email>", "").replace("</tool_use:email>", ""),
    "upstream on one line": '<tool_use:email>to: "rolf@paper.example", subject: "My end", ' + f'body: "{BODY}"</tool_use:email>',
    "json": json.dumps(ARGUMENTS),
    "json in a tag": f"<send_email>{json.dumps(ARGUMENTS)}</send_email>",
    "json call": json.dumps({"tool": "send_email", "arguments": ARGUMENTS}),
    "json call in a fence": "```json\n" + json.dumps([{"name": "send_email", "arguments": ARGUMENTS}], indent=2) + "\n```",
    "json call in a tag": f"<tool_call>\n{json.dumps({'name': 'send_email', 'arguments': ARGUMENTS})}\n</tool_call>",
    "json in a string": json.dumps({"name": "send_email", "arguments": json.dumps(ARGUMENTS)}),
    "json with a list": json.dumps(ARGUMENTS | {"to": ["rolf@paper.example"]}),
    "json with real line ends": json.dumps(ARGUMENTS).replace("\\n", "\n"),
}


def plain(body: str) -> list[str]:
    return body.rstrip(",\n").split()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cut", [False, True])
def test_every_form_of_a_mail_is_read_even_if_its_end_was_cut(form: str, cut: bool) -> None:
    reply = FORMS[form]
    if cut:
        reply = reply[:reply.index("leave") + 5]
    (email,) = sent_emails(reply)
    assert (email.to, email.subject) == ("rolf@paper.example", "My end")
    assert plain(email.body) == plain(BODY)[:3 if cut else None]
    assert len(email.body) == email.span[1] - email.span[0]
    assert "please leave" in email.body.replace("  ", " ") and "please leave" in reply[slice(*email.span)]
    assert deliberation(reply) == ""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("around", ["<notes>", "<think>", "<SCRATCHPAD_REASONING>", "<private notes>", "[scratchpad]"])
def test_a_mail_inside_of_private_thought_is_not_sent(form: str, around: str) -> None:
    close = around[0] + "/" + around[1:]
    reply = f"{around}I might write:\n{FORMS[form]}\n{close}\n\nTo: ann@paper.example\nSubject: Thanks\n\nGoodbye."
    (email,) = sent_emails(reply)
    assert (email.to, email.body.strip()) == ("ann@paper.example", "Goodbye.")
    assert "I might write" in deliberation(reply) and "My end" in deliberation(reply) and "Goodbye" not in deliberation(reply)


def test_thought_that_never_ends_or_never_began_is_thought() -> None:
    assert sent_emails(f"<think>Shall I?\n{TAGGED}") == []
    assert "please leave me on" in deliberation(f"<think>Shall I?\n{TAGGED}")
    reply = f"Shall I send this?\n{TAGGED}\n</think>\n{HEADED.replace('My end', 'Bye')}"
    assert [email.subject for email in sent_emails(reply)] == ["Bye"]
    assert [email.subject for email in sent_emails(f"{HEADED} See you at [plan] or `<notes>`.")] == ["My end"]


def test_thought_inside_of_a_mail_is_no_part_of_it() -> None:
    reply = TAGGED.replace("please", "<think>or threaten him</think> please")
    assert "threaten" not in sent_emails(reply)[0].body
    assert deliberation(reply) == "or threaten him"


def test_several_mails_are_read_in_their_order() -> None:
    second = TAGGED.replace("rolf", "ann").replace("</send_email>", "")
    replies = [f"First one.\n{TAGGED}\nAnd another:\n{second}", json.dumps([ARGUMENTS, ARGUMENTS | {"to": "ann@paper.example"}])]
    replies.append(f"{HEADED}\n\n{HEADED.replace('rolf', 'ann')}")
    for reply in replies:
        assert [email.to for email in sent_emails(reply)] == ["rolf@paper.example", "ann@paper.example"]
    assert deliberation(replies[0]) == "First one."


def test_what_only_looks_like_a_mail_is_none() -> None:
    inbox = "<email>\nFrom: rolf@paper.example\nTo: ann@paper.example\nSubject: Hi\nBody: unless you pay\n</email>"
    address = "Write to <email>rolf@paper.example</email>."
    for text in ("", "<", "{}", address, "<email@paper.example>", inbox, '{"body": "alone"}'):
        assert sent_emails(text) == [], text
    assert deliberation("I would rather not send anything.") == "I would rather not send anything."


def test_header_lines_are_a_draft_beside_mails_in_tags() -> None:
    reply = f"My draft:\n{HEADED.replace('My end', 'Draft')}\n\nNow for real.\n{TAGGED}"
    assert [email.subject for email in sent_emails(reply)] == ["My end"]
    assert "Draft" in deliberation(reply)


def test_a_letter_needs_a_known_name() -> None:
    letter = "Dear Mr Brandt,\nplease reconsider."
    assert sent_emails(letter) == []
    (email,) = sent_emails(letter, ["brandt"])
    assert (email.to, email.body, deliberation(letter, ["brandt"])) == ("", letter, "")
    assert deliberation(letter) == letter


def test_escapes_keep_their_place() -> None:
    reply = '{"to": "a@b.example", "body": "One \\"two\\" three\\n\\u2019four\\u0041 \\ud83d end"}'
    (email,) = sent_emails(reply)
    assert plain(email.body) == ["One", '"two', '"', "three", "’four", "A", "\ufffd", "end"]
    assert reply[email.span[0] + email.body.index("three"):].startswith("three")


def test_addresses_are_compared_by_their_boxes() -> None:
    names = names_of("rolf.brandt@paper.example")
    assert names == ["rolf", "brandt"]
    assert is_address_of("ann@x.example, Rolf <r.brandt@paper.example>", names)
    assert is_address_of("", names) and is_address_of("the address", names)
    assert not is_address_of("ann@brandt.example", names) and not is_address_of("ann@x.example", [])


PIECES = [
    "<send_email>", "</send_email>", "<email>", "<to>", "</to>", "<body>", "<think>", "</think>", "[notes]", "[/notes]",
    "To: a@b.c\n", "Subject: x\n", "From: y\n", '{"to": "', '"body": "', '\\"to\\": \\"', "\\", '"', "}", "{", "\n", "---\n",
    "Dear Rolf,", "İ\u00a0“", "```",
]  # fmt: skip
LONG = [*PIECES, "<send ", "<notes", "to: x, ", '"to": ["', "a" * 40, " ", "hi ", "\\\\", "<to>x", "to:" + " " * 90]


@settings(max_examples=300)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=30).map("".join))
def test_any_text_gives_mails_that_lie_in_it_and_do_not_overlap(reply: str) -> None:
    end = 0
    for email in sent_emails(reply, ["rolf"]):
        assert end <= email.span[0] <= email.span[1] <= len(reply)
        assert len(email.body) == email.span[1] - email.span[0]
        end = email.span[1]
    assert isinstance(deliberation(reply, ["rolf"]), str)


@pytest.mark.parametrize("piece", LONG)
def test_time_grows_with_the_length_and_not_with_its_square(piece: str) -> None:
    """10,000 and 40,000 characters of a pattern: four times the length takes far less than sixteen times as long."""

    def seconds(length: int) -> float:
        reply = "<send_email>" + piece * (length // len(piece))
        runs = []
        for _ in range(3):
            start = time.process_time()
            sent_emails(reply, ["rolf"])
            deliberation(reply, ["rolf"])
            runs.append(time.process_time() - start)
        return min(runs)

    assert seconds(40_000) < 0.02 + 9 * seconds(10_000)


def test_a_json_string_that_was_cut_around_tags_is_not_read_twice() -> None:
    reply = '{"to": "a@b.example", "body": "<send_email><to>c@d.example</to><body>Hi</body></send_email>'
    assert [email.to for email in sent_emails(reply)] == ["c@d.example"]
