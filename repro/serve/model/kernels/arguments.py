"""The types of the kernels' arguments: contiguous arrays, and named tuples of them."""

from typing import Any

from numba import types

from repro.serve.model.weights import AttentionWeights, FeedForwardWeights

VECTOR = types.float32[::1]
MATRIX = types.float32[:, ::1]
CUBE = types.float32[:, :, ::1]
STACK = types.float32[:, :, :, ::1]
INTS = types.int64[::1]
INT_MATRIX = types.int64[:, ::1]
PLACE = types.intp
NUMBER = types.float32

FLAG = types.boolean


def named(kind: type, *fields: Any) -> Any:
    """Return the type of a named tuple with fields of these types."""
    return types.NamedTuple(fields, kind)


ATTENTION_WEIGHTS = named(AttentionWeights, VECTOR, CUBE, VECTOR, VECTOR, VECTOR, VECTOR, CUBE, CUBE)
FEED_FORWARD_WEIGHTS = named(FeedForwardWeights, VECTOR, CUBE, CUBE, CUBE, VECTOR, STACK, STACK)
