"""The API key: read from the environment when it is sent, and kept out of whatever a server says about it."""

import os

from repro.base.errors import UsageError

API_KEY_VARIABLE = "OPENAI_API_KEY"
EXCERPT_CHARS = 120


def api_key() -> str:
    """Return the key; "" for none. It is never written anywhere. Raises UsageError for what no header can hold."""
    key = os.environ.get(API_KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"{API_KEY_VARIABLE} holds a character that no HTTP header may; set it to the key alone")
    return key


def without_key(text: str) -> str:
    """Return what a server said without the key, which some quote when they refuse it."""
    key = api_key()
    return text.replace(key, "[API key]") if key else text


def excerpt_of(reply: bytes) -> str:
    """Return the beginning of a reply, without the key: the key goes before the rest is cut off."""
    return without_key(reply.decode("utf-8", "backslashreplace"))[:EXCERPT_CHARS]
