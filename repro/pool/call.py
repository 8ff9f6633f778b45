"""What crosses between a pool and its workers: calls of importable functions, and their answers.

A function takes one argument and returns one result. Both cross as JSON, typed by the function's annotations.
"""

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, cast, get_type_hints

import msgspec

from repro.base import errors
from repro.base.errors import HarnessError, ReproError

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Died(msgspec.Struct, frozen=True):
    """Takes the place of a result when the process of a call ended without an answer."""

    why: str


def alive(result: Result | Died) -> Result:
    """Return a result where no call may die. Raises HarnessError for one that did."""
    if isinstance(result, Died):
        raise HarnessError(f"a worker process died ({result.why}; out of memory?); fewer --workers need less")
    return result


class Pool(Protocol):
    """Makes calls, several at once."""

    def results(
        self, function: Callable[[Argument], Result], arguments: Iterator[Argument]
    ) -> Iterator[tuple[Argument, Result | Died]]:
        """Yield each argument with what its call came to, as calls end.

        The next argument is drawn when a worker is free and the last result was taken. A ReproError that the function
        raises is raised here. After an exception or a Ctrl-C, another call of `results` goes on with the calls
        under way.
        """


class Call(msgspec.Struct, frozen=True):
    """One line to a worker: which function to call with what."""

    function: str  # module:name
    argument: msgspec.Raw


class Answer(msgspec.Struct, frozen=True):
    """One line from a worker: the result, or the error that the function raised, by its class in `base.errors`."""

    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    text: str = ""
    run_dir: str = ""


def encoded_call(function: Callable[[Argument], Result], argument: Argument) -> bytes:
    """Return the line that asks a worker for this call."""
    module = function.__module__
    main = sys.modules["__main__"].__spec__
    if module == "__main__" and main is not None:  # run with python -m; a worker imports it by its own name
        module = main.name
    name = f"{module}:{function.__qualname__}"
    return msgspec.json.encode(Call(name, msgspec.Raw(msgspec.json.encode(argument))))


def made(line: bytes) -> bytes:
    """Make the call of a line in this process and return the line that answers it."""
    call = msgspec.json.decode(line, type=Call)
    module, _, name = call.function.partition(":")
    function = getattr(importlib.import_module(module), name)
    argument_type, _ = _types(function)
    try:
        result = function(msgspec.json.decode(call.argument, type=argument_type, dec_hook=_read_by_its_class))
    except ReproError as error:
        return msgspec.json.encode(Answer(error=type(error).__name__, text=str(error), run_dir=error.run_dir))
    except Exception as error:
        text = f"a bug of the harness: {type(error).__name__}: {error}\n{traceback.format_exc()}"
        return msgspec.json.encode(Answer(error=HarnessError.__name__, text=text))
    return msgspec.json.encode(Answer(msgspec.Raw(msgspec.json.encode(result))))


def decoded_answer(function: Callable[[Argument], Result], line: bytes) -> Result:
    """Return the result in a line. Raises the ReproError that the function raised."""
    answer = msgspec.json.decode(line, type=Answer)
    if answer.error:
        error: ReproError = getattr(errors, answer.error)(answer.text)
        error.run_dir = answer.run_dir
        raise error
    result = msgspec.json.decode(answer.result, type=_types(function)[1], dec_hook=_read_by_its_class)
    return cast(Result, result)


def _read_by_its_class(kind: Any, record: object) -> object:
    """Return a value of a class that msgspec does not know: such a class has `of_record`."""
    return kind.of_record(record)


def _types(function: Callable[..., Any]) -> tuple[Any, Any]:
    """Return the types of a function's argument and of its result."""
    *arguments, result = get_type_hints(function).values()
    (argument,) = arguments
    return argument, result
