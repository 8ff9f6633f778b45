"""The engine tests' fixtures: one thread, and the bundled checkpoint loaded once."""

from tests.serve.engine.conftest import bundled, one_thread

__all__ = ["bundled", "one_thread"]
