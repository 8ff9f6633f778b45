"""Vector operations that numba has no words for, as LLVM code: what the kernels' bits rest on.

Each value is computed in an order that is written here, not chosen by a compiler: a product's element is a chain of
fused multiply-adds over the depth, first to last, starting at 0. So its bits are the same in a tile of any size.
Arrays are fp32 and contiguous; `at` and `step` count elements from their first one.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from repro.serve.model.panels import LANES

Builder = Any  # ir.IRBuilder
Value = Any  # ir.Value
Function = Callable[..., Any]

FLOAT, BYTE, INT32, INT64 = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)
VECTOR, EIGHT = ir.VectorType(FLOAT, LANES), ir.VectorType(FLOAT, 8)
EXPONENT_BITS, ONE_BITS = 23, 0x3F800000  # of an fp32


def _operation(typed: Function) -> Function:
    """Return the operation whose types and code `typed` gives when numba meets a call; it has the arguments' types."""
    return cast(Function, intrinsic(typed))


def _pointer(context: Any, builder: Builder, kind: Any, array: Value) -> Value:
    return context.make_array(kind)(context, builder, array).data


def _load(builder: Builder, base: Value, at: Value, vector: ir.VectorType) -> Value:
    pointer = builder.bitcast(builder.gep(base, [at]), vector.as_pointer())
    return builder.load(pointer, align=4)


def _store(builder: Builder, value: Value, base: Value, at: Value) -> None:
    builder.store(value, builder.bitcast(builder.gep(base, [at]), value.type.as_pointer()), align=4)


def _fma(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    """Return a * b + c, rounded once: llvmlite's own `fma` takes no vectors."""
    kind = a.type
    name = f"llvm.fma.v{kind.count}f32" if isinstance(kind, ir.VectorType) else "llvm.fma.f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, [a, b, c])


def _everywhere(builder: Builder, value: Value) -> Value:
    """Return a vector whose lanes all hold `value`."""
    single = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, INT32(0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(INT32, LANES), [0] * LANES))


def _products(builder: Builder, x: Sequence[Value], w: Sequence[Value], rows: int) -> list[list[Value]]:
    """Return a tile's sums as two vectors a row.

    `x` is (base, at, step) of the rows, `w` is (base, at, step, depth) of the panel.
    """
    (x_base, x_at, x_step), (w_base, w_at, w_step, depth) = x, w
    zero = ir.Constant(VECTOR, [0.0] * LANES)
    sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(2)] for _ in range(rows)]
    starts = [builder.add(x_at, builder.mul(x_step, INT64(row))) for row in range(rows)]
    with cgutils.for_range(builder, depth) as loop:
        column = builder.add(w_at, builder.mul(w_step, loop.index))
        right = [_load(builder, w_base, builder.add(column, INT64(half * LANES)), VECTOR) for half in range(2)]
        for start, row in zip(starts, sums, strict=True):
            left = _everywhere(builder, builder.load(builder.gep(x_base, [builder.add(start, loop.index)])))
            for half, chain in zip(right, row, strict=True):
                builder.store(_fma(builder, left, half, builder.load(chain)), chain)
    return [[builder.load(chain) for chain in row] for row in sums]


def tile(rows: int) -> Function:
    """Return the operation that writes a tile of a product, `rows` rows by one panel.

    It takes x, (at, step), w, (at, step, depth), out, (at, step).
    """

    @_operation
    def write(typing: Any, x: Any, x_place: Any, w: Any, w_place: Any, out: Any, out_place: Any) -> Any:
        def generate(context: Any, builder: Builder, signature: Any, args: Sequence[Value]) -> Value:
            x_base, w_base, out_base = (_pointer(context, builder, signature.args[n], args[n]) for n in (0, 2, 4))
            (x_at, w_at, out_at) = (cgutils.unpack_tuple(builder, args[n]) for n in (1, 3, 5))
            for row, halves in enumerate(_products(builder, [x_base, *x_at], [w_base, *w_at], rows)):
                at = builder.add(out_at[0], builder.mul(out_at[1], INT64(row)))
                for half, chain in enumerate(halves):
                    _store(builder, chain, out_base, builder.add(at, INT64(half * LANES)))
            return context.get_dummy_value()

        return types.void(x, _places(2), w, _places(3), out, _places(2)), generate

    return write


def score_tile(heads: int) -> Function:
    """Return the operation that adds `heads` heads' index scores to those of a panel of keys.

    A score is the chain, over the heads, of fused multiply-adds of a head's weight and its product, negative ones
    taken as 0 and NaN kept. It takes queries, (at, step), keys, (at, step, depth), weights, scores, (their at's).
    """

    @_operation
    def add(typing: Any, x: Any, x_place: Any, w: Any, w_place: Any, weights: Any, scores: Any, ats: Any) -> Any:
        def generate(context: Any, builder: Builder, signature: Any, args: Sequence[Value]) -> Value:
            bases = [_pointer(context, builder, signature.args[n], args[n]) for n in (0, 2, 4, 5)]
            x_at, w_at, (weight_at, score_at) = (cgutils.unpack_tuple(builder, args[n]) for n in (1, 3, 6))
            sums = _products(builder, [bases[0], *x_at], [bases[1], *w_at], heads)
            zero = ir.Constant(VECTOR, [0.0] * LANES)
            for half in range(2):
                place = builder.add(score_at, INT64(half * LANES))
                score = _load(builder, bases[3], place, VECTOR)
                for head, halves in enumerate(sums):
                    weight = builder.load(builder.gep(bases[2], [builder.add(weight_at, INT64(head))]))
                    positive = builder.select(builder.fcmp_ordered("<", halves[half], zero), zero, halves[half])
                    score = _fma(builder, _everywhere(builder, weight), positive, score)
                _store(builder, score, bases[3], place)
            return context.get_dummy_value()

        return types.void(x, _places(2), w, _places(3), weights, scores, _places(2)), generate

    return add


def _places(count: int) -> Any:
    return types.UniTuple(types.intp, count)


@_operation
def transpose8(typing: Any, source: Any, starts: Any, first: Any, column: Any, out: Any, at: Any, step: Any) -> Any:
    """Write 8 columns, from `column` on, of the 8 rows that begin at `starts[first:first + 8]`, one below the other."""

    def generate(context: Any, builder: Builder, signature: Any, args: Sequence[Value]) -> Value:
        base, begins, target = (_pointer(context, builder, signature.args[n], args[n]) for n in (0, 1, 4))
        rows = []
        for row in range(8):
            begin = builder.load(builder.gep(begins, [builder.add(args[2], INT64(row))]))
            rows.append(_load(builder, base, builder.add(begin, args[3]), EIGHT))
        for number, values in enumerate(_transposed(builder, rows)):
            _store(builder, values, target, builder.add(args[5], builder.mul(args[6], INT64(number))))
        return context.get_dummy_value()

    at_ = types.intp
    return types.void(source, starts, at_, at_, out, at_, at_), generate


@_operation
def copy_panel(typing: Any, source: Any, at: Any, out: Any, to: Any) -> Any:
    """Copy PANEL numbers from `at` on in `source` to `to` in `out`."""

    def generate(context: Any, builder: Builder, signature: Any, args: Sequence[Value]) -> Value:
        base, target = (_pointer(context, builder, signature.args[n], args[n]) for n in (0, 2))
        for half in range(2):
            values = _load(builder, base, builder.add(args[1], INT64(half * LANES)), VECTOR)
            _store(builder, values, target, builder.add(args[3], INT64(half * LANES)))
        return context.get_dummy_value()

    return types.void(source, types.intp, out, types.intp), generate


@_operation
def prefetch8(typing: Any, source: Any, starts: Any, first: Any, column: Any) -> Any:
    """Have `column` of the 8 rows that begin at `starts[first:first + 8]` brought into the processor's cache."""

    def generate(context: Any, builder: Builder, signature: Any, args: Sequence[Value]) -> Value:
        base, begins = (_pointer(context, builder, signature.args[n], args[n]) for n in (0, 1))
        kind = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), INT32, INT32, INT32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        for row in range(8):
            begin = builder.load(builder.gep(begins, [builder.add(args[2], INT64(row))]))
            pointer = builder.bitcast(builder.gep(base, [builder.add(begin, args[3])]), BYTE.as_pointer())
            builder.call(function, [pointer, INT32(0), INT32(3), INT32(1)])  # to read, near, data
        return context.get_dummy_value()

    return types.void(source, starts, types.intp, types.intp), generate


def _transposed(builder: Builder, rows: list[Value]) -> list[Value]:
    """Return the columns of an 8 by 8 block, by exchanging halves, quarters and eighths."""
    for size in (4, 2, 1):
        low = [place for place in range(8) if not place & size]
        first = [lane if not lane & size else lane - size + 8 for lane in range(8)]
        second = [lane + size if not lane & size else lane + 8 for lane in range(8)]
        new = list(rows)
        for place in low:
            pair = rows[place], rows[place + size]
            new[place] = builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(INT32, 8), first))
            new[place + size] = builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(INT32, 8), second))
        rows = new
    return rows


def _reduction(combine: Callable[[Builder, Value, Value], Value], prepare: Callable[..., Value], start: float) -> Any:
    """Return the function that reduces x[at:at + count]: 16 chains over the whole sixteens, then halves, then the rest.

    `prepare(builder, chain, values)` extends the chains by 16 values, or the one chain by a value.
    """
    wide = ir.VectorType(FLOAT, 16)

    @_operation
    def reduce(typing: Any, x: Any, at: Any, count: Any) -> Any:
        def generate(context: Any, builder: Builder, signature: Any, args: Sequence[Value]) -> Value:
            base = _pointer(context, builder, signature.args[0], args[0])
            chains = cgutils.alloca_once_value(builder, ir.Constant(wide, [start] * 16))
            whole = builder.sdiv(args[2], INT64(16))
            with cgutils.for_range(builder, whole) as loop:
                part = _load(builder, base, builder.add(args[1], builder.mul(loop.index, INT64(16))), wide)
                builder.store(prepare(builder, builder.load(chains), part), chains)
            result = cgutils.alloca_once_value(builder, _by_halves(builder, builder.load(chains), combine))
            done = builder.mul(whole, INT64(16))
            with cgutils.for_range(builder, builder.sub(args[2], done)) as loop:
                one = builder.load(builder.gep(base, [builder.add(builder.add(args[1], done), loop.index)]))
                builder.store(prepare(builder, builder.load(result), one), result)
            return builder.load(result)

        return types.float32(x, types.intp, types.intp), generate

    return reduce


def _by_halves(builder: Builder, chains: Value, combine: Callable[[Builder, Value, Value], Value]) -> Value:
    lanes = 16
    while lanes > 1:
        lanes //= 2
        kind = ir.VectorType(INT32, lanes)
        low = builder.shuffle_vector(chains, chains, ir.Constant(kind, list(range(lanes))))
        high = builder.shuffle_vector(chains, chains, ir.Constant(kind, list(range(lanes, 2 * lanes))))
        chains = combine(builder, low, high)
    return builder.extract_element(chains, INT32(0))


def _add(builder: Builder, a: Value, b: Value) -> Value:
    return builder.fadd(a, b)


def _add_square(builder: Builder, total: Value, value: Value) -> Value:
    return _fma(builder, value, value, total)


def _larger(builder: Builder, a: Value, b: Value) -> Value:
    return builder.select(builder.fcmp_ordered(">", b, a), b, a)


total = _reduction(_add, _add, 0.0)
sum_of_squares = _reduction(_add, _add_square, 0.0)
highest = _reduction(_larger, _larger, -math.inf)  # passes over NaN


@_operation
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c of fp32, rounded once."""

    def generate(context: Any, builder: Builder, signature: Any, args: Sequence[Value]) -> Value:
        return _fma(builder, *args)

    return types.float32(types.float32, types.float32, types.float32), generate


@_operation
def rank(typing: Any, value: Any) -> Any:
    """Return a uint32 that orders fp32 numbers as they are ordered: -0.0 equals 0.0, and NaN equals infinity."""

    def generate(context: Any, builder: Builder, signature: Any, args: Sequence[Value]) -> Value:
        infinity = ir.Constant(FLOAT, math.inf)
        number = builder.select(builder.fcmp_unordered("uno", args[0], args[0]), infinity, args[0])
        pattern = builder.bitcast(builder.fadd(number, ir.Constant(FLOAT, 0.0)), INT32)
        flipped = builder.or_(builder.ashr(pattern, INT32(31)), ir.Constant(INT32, -(2**31)))
        return builder.xor(pattern, flipped)

    return types.uint32(types.float32), generate


@_operation
def power_of_two(typing: Any, shifted: Any) -> Any:
    """Return 2 to the integer in the lowest bits of an fp32's mantissa, -126 to 127."""

    def generate(context: Any, builder: Builder, signature: Any, args: Sequence[Value]) -> Value:
        exponent = builder.shl(builder.bitcast(args[0], INT32), INT32(EXPONENT_BITS))
        return builder.bitcast(builder.add(exponent, INT32(ONE_BITS)), FLOAT)

    return types.float32(types.float32), generate
