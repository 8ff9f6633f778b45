"""The tasks of one worker: its engine, and transfers beside it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from repro.serve.engine import Engine

Result = TypeVar("Result")


class Work:
    """Runs the engine with the tasks started beside it; an error in any of them ends the worker with it."""

    def __init__(self, name: str, engine: Engine) -> None:
        self._name = name
        self._engine = engine
        self._group = asyncio.TaskGroup()
        self._serving: asyncio.Task[None] | None = None
        self._tasks: dict[asyncio.Task[Any], None] = {}  # ordered by their start

    @property
    def busy(self) -> bool:
        """Return whether a task beside the engine is under way."""
        return bool(self._tasks)

    async def run(self) -> None:
        """Serve until the engine is stopped, or killed. Raises what the engine or a task raises."""
        try:
            async with self._group:
                self._serving = self._group.create_task(self._engine.run(), name=f"{self._name}.engine")
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed

    def start(self, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        """Run a task beside the engine; the engine does not stop before it has ended."""
        task = self._group.create_task(work, name=f"{self._name}.work")
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def kill(self) -> None:
        """End everything at once."""
        for task in self._tasks:
            task.cancel()
        if self._serving is not None:
            self._serving.cancel()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.pop(task, None)
        self._engine.wake()
