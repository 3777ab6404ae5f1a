"""What an OpenAI-compatible endpoint's answer means: a reply, a fault of one request, or one that every request would meet.

Pure functions. Servers word the same fault in different ways: Gemini answers a bad key with 400 and wraps errors in a list,
routers answer 200 with an error inside, FastAPI servers say `detail`.
"""

import contextlib
import email.utils
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openai
from openai.types.chat import ChatCompletion

LONGEST_RETRY_AFTER = 900.0  # seconds; a server that asks for more is asked again after this
CHARACTERS_PER_TOKEN = 4  # of an estimate
BUSY = (429, 503, 529)
BAD_KEY = re.compile(r"api[ _-]?key (not valid|not found|expired|is invalid)|(invalid|incorrect)[ _]api[ _-]?key|API_KEY_INVALID"
                     r"|location is not supported", re.I)  # fmt: skip
NO_CREDIT = re.compile(r"insufficient_quota|insufficient (credit|funds|balance)", re.I)
NO_MODEL = re.compile(r"not a valid model|model\b.{0,200}(not found|does not exist|not exist)|unknown model|no such model", re.I)
FLAGGED = re.compile(r"flagged|moderation|content[ _](policy|filter)", re.I)
NO_PARAMETER = re.compile(r"unknown (name|field|parameter)|unexpected fields|unsupported (parameter|value)|extra inputs"
                          r"|extra_forbidden|unrecognized request argument", re.I)  # fmt: skip
GEMINI_DELAY = re.compile(r"retryDelay\W+([0-9.]+)s")


@dataclass(frozen=True)
class Completion:
    """A reply. finish_reason is the server's ("stop", "length", "content_filter" ...); `estimated`: it did not tell the tokens.

    `broken_off` counts earlier attempts that got no answer and may have been paid.
    """

    text: str
    reasoning: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False
    broken_off: int = 0


@dataclass(frozen=True)
class Fault:
    """An attempt without a reply. `wait`: the seconds that the server asks for.

    kind: retry, busy (retry, with fewer at a time), lost (retry; it may have been paid), row (this request never gets a reply),
    or what no request gets over: key, model, credit, parameter.
    """

    kind: str
    reason: str
    wait: float | None = None

    @property
    def transient(self) -> bool:
        return self.kind in ("retry", "busy", "lost")

    @property
    def final(self) -> bool:
        return self.kind in ("key", "model", "credit")


def estimate_tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer asks to wait (Retry-After as seconds or as a date), or None."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        with contextlib.suppress(ValueError):
            return min(max(0.0, float(headers.get(name, "")) / unit), LONGEST_RETRY_AFTER)
    with contextlib.suppress(ValueError):
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        return min(max(0.0, date.timestamp() - time.time()), LONGEST_RETRY_AFTER)
    return None


def read_error(error: Exception) -> Fault | None:
    """Return the fault that an exception of the openai library states, or None if it is none of its faults."""
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return Fault("lost", "no answer in time")
    if isinstance(error, openai.APIConnectionError):
        cause = type(error.__cause__).__name__
        return Fault("retry" if cause.startswith(("Connect", "UnsupportedProtocol")) else "lost", f"connection failed ({cause})")
    if isinstance(error, openai.APIStatusError):
        text = f"{error.status_code}: {error_text(error.body) or 'no explanation'}"
        wait = retry_after(error.response.headers)
        if wait is None and (delay := GEMINI_DELAY.search(str(error.body))):
            wait = retry_after({"retry-after": delay[1]})
        return Fault(status_kind(error.status_code, text), text, wait)
    if isinstance(error, UnicodeEncodeError):
        return Fault("row", "the conversation holds characters that are no Unicode text")
    if isinstance(error, ValueError | openai.APIError):  # JSON that does not parse comes as the parser's own exception
        return Fault("lost", "the answer is not a chat completion")
    return None


def status_kind(status: int, text: str) -> str:
    """Return the kind of fault that an HTTP status and the text beside it mean."""
    if status == 402 or (status == 429 and NO_CREDIT.search(text)):
        return "credit"
    if status in BUSY:
        return "busy"
    if status in (408, 409) or status >= 500 or status < 400:
        return "retry"
    if status == 401 or (status == 403 and not FLAGGED.search(text)) or (status == 400 and BAD_KEY.search(text)):
        return "key"
    if status == 404 or (status in (400, 422) and NO_MODEL.search(text)):
        return "model"
    return "parameter" if status in (400, 422) and NO_PARAMETER.search(text) else "row"


def error_text(body: Any) -> str:
    """Return what the body of an error says, on one line."""
    while isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, dict):
        for name in ("error", "message", "detail", "msg"):
            if body.get(name):
                code = f" ({body['code']})" if name == "message" and isinstance(body.get("code"), str) else ""
                return error_text(body[name]) + code
        body = json.dumps(body)
    return " ".join(str(body or "").split())


def read_answer(answer: Any, prompt_characters: int, max_tokens: int) -> Completion | Fault:
    """Return the reply in an answer with status 200; the openai library hands over anything that was JSON or text.

    Where the server does not tell the tokens they are estimated from characters, but never above max_tokens.
    """
    if not isinstance(answer, ChatCompletion):
        return Fault("lost", "the answer is not a chat completion")
    if error := (answer.model_extra or {}).get("error"):
        code = error.get("code") if isinstance(error, dict) else None
        text = f"{code}: {error_text(error)}"
        return Fault(status_kind(code, text) if isinstance(code, int) else "lost", text)
    if not isinstance(answer.choices, list) or (answer.choices and not answer.choices[0].message):
        return Fault("lost", "the answer has no choices")
    if not answer.choices:
        return Fault("row", "the server gave no reply (it has no choices)")
    choice = answer.choices[0]
    extra = choice.message.model_extra or {}
    text = _as_text(choice.message.content) or choice.message.refusal or ""
    reasoning = _as_text(extra.get("reasoning_content") or extra.get("reasoning"))
    prompt_tokens, completion_tokens, estimated = _tokens(answer, prompt_characters, text + reasoning, max_tokens)
    return Completion(text, reasoning, choice.finish_reason or "stop", prompt_tokens, completion_tokens, estimated)


def _as_text(content: Any) -> str:
    """Return the text of a content that may be a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _tokens(answer: ChatCompletion, prompt_characters: int, text: str, max_tokens: int) -> tuple[int, int, bool]:
    """Return (prompt tokens, completion tokens, whether they are estimated)."""
    usage = answer.usage
    if usage is None or not isinstance(usage.prompt_tokens, int) or not isinstance(usage.completion_tokens, int):
        return -(-prompt_characters // CHARACTERS_PER_TOKEN), min(estimate_tokens(text), max_tokens), True
    # Gemini bills its reasoning as output, but counts it in the total only.
    total = usage.total_tokens if isinstance(usage.total_tokens, int) else 0
    return usage.prompt_tokens, max(usage.completion_tokens, total - usage.prompt_tokens), False
