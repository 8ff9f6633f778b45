"""The tests; `repro` comes first, so that torch is loaded with the same settings as on the command line."""

import repro  # noqa: F401
