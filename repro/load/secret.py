"""The API key: read from the environment when it is sent, and kept out of whatever a server says about it."""

import os

API_KEY_VARIABLE = "OPENAI_API_KEY"


def api_key() -> str:
    """Return the key; "" for none. It is never written anywhere."""
    return os.environ.get(API_KEY_VARIABLE, "").strip()


def without_key(text: str) -> str:
    """Return what a server said without the key, which some quote when they refuse it."""
    key = api_key()
    return text.replace(key, "[API key]") if key else text
