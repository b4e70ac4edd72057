"""Inner loops of exact inference as vector instructions: what the compiler would have to guess is written down.

Loops over a handful of columns are unrolled to scalar code by the compiler, several times slower; these hold a row's
sums of LANES columns in registers. Buffers are [states, stride], the stride a multiple of LANES.
"""

# ruff: noqa: ARG001, PLR0917 - Numba looks up the parameters of an intrinsic by their number

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils as untyped_cgutils
from numba.core import types
from numba.extending import intrinsic

LANES = 8
"""Columns that are treated at a time."""

ROWS = 4
"""Rows of a dense matrix that are treated at a time, so that a number that is loaded is used as often."""

_INDEX = ir.IntType(64)

cgutils: Any = untyped_cgutils


class _Vectors:
    """Writes vector instructions for arrays of one element type."""

    def __init__(self, context: Any, builder: Any, array: Any) -> None:
        self.context, self.builder = context, builder
        self.element = context.get_value_type(array.dtype)
        self.type = ir.VectorType(self.element, LANES)
        self.align = array.dtype.bitwidth // 8

    def data(self, array: Any, kind: Any) -> Any:
        """Address of an array's first element."""
        return cgutils.create_struct_proxy(kind)(self.context, self.builder, array).data

    def place(self, data: Any, offset: Any) -> Any:
        """Address of LANES elements from an offset on."""
        return self.builder.bitcast(self.builder.gep(data, [offset]), self.type.as_pointer())

    def load(self, data: Any, offset: Any) -> Any:
        """LANES elements from an offset on."""
        value = self.builder.load(self.place(data, offset))
        value.align = self.align
        return value

    def store(self, vector: Any, data: Any, offset: Any) -> None:
        """Write LANES elements."""
        self.builder.store(vector, self.place(data, offset)).align = self.align

    def add_product(self, total: Any, scalar: Any, vector: Any) -> None:
        """Add scalar * vector to the variable `total`."""
        builder, undefined = self.builder, ir.Constant(self.type, ir.Undefined)
        one = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        all_equal = builder.shuffle_vector(
            one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        )
        product = builder.fmul(all_equal, vector, flags=("contract",))
        builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)


def _add_sparse_row(
    _: Any, values: Any, indices: Any, start: Any, stop: Any, x: Any, stride: Any, y: Any, column: Any, row: Any
) -> Any:
    """y[row, column ..] += sum over n in start .. stop - 1 of values[n] * x[indices[n], column ..]."""
    count = types.int64
    signature = types.void(values, indices, count, count, x, count, y, count, count)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, indices, start, stop, x, stride, y, column, row = arguments
        kinds = signature.args
        vectors = _Vectors(context, builder, kinds[4])
        factors, places = vectors.data(values, kinds[0]), vectors.data(indices, kinds[1])
        source, target = vectors.data(x, kinds[4]), vectors.data(y, kinds[6])
        into = builder.add(builder.mul(row, stride), column)
        total = cgutils.alloca_once_value(builder, vectors.load(target, into))
        with cgutils.for_range_slice(builder, start, stop, ir.Constant(_INDEX, 1), intp=_INDEX) as (n, _):
            k = builder.sext(builder.load(builder.gep(places, [n])), _INDEX)
            old = vectors.load(source, builder.add(builder.mul(k, stride), column))
            vectors.add_product(total, builder.load(builder.gep(factors, [n])), old)
        vectors.store(builder.load(total), target, into)
        return context.get_dummy_value()

    return signature, generate


def _set_dense_rows(rows: int) -> Any:
    def typed(_: Any, matrix: Any, offset: Any, states: Any, x: Any, stride: Any, y: Any, column: Any, row: Any) -> Any:
        """y[row + r, column ..] = sum over k of matrix[offset + (row + r) * states + k] * x[k, column ..]."""
        count = types.int64
        signature = types.void(matrix, count, count, x, count, y, count, count)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            matrix, offset, states, x, stride, y, column, row = arguments
            kinds = signature.args
            vectors = _Vectors(context, builder, kinds[3])
            factors = vectors.data(matrix, kinds[0])
            source, target = vectors.data(x, kinds[3]), vectors.data(y, kinds[5])
            zero = ir.Constant(vectors.type, [ir.Constant(vectors.element, 0.0)] * LANES)
            totals = [cgutils.alloca_once_value(builder, zero) for _ in range(rows)]
            numbers = [builder.add(row, ir.Constant(_INDEX, r)) for r in range(rows)]
            starts = [builder.add(offset, builder.mul(number, states)) for number in numbers]
            with cgutils.for_range(builder, states, intp=_INDEX) as loop:
                old = vectors.load(source, builder.add(builder.mul(loop.index, stride), column))
                for total, start in zip(totals, starts, strict=True):
                    factor = builder.load(builder.gep(factors, [builder.add(start, loop.index)]))
                    vectors.add_product(total, factor, old)
            for total, number in zip(totals, numbers, strict=True):
                vectors.store(builder.load(total), target, builder.add(builder.mul(number, stride), column))
            return context.get_dummy_value()

        return signature, generate

    return typed


add_sparse_row: Any = intrinsic(_add_sparse_row)
set_dense_rows: Any = intrinsic(_set_dense_rows(ROWS))
set_dense_row: Any = intrinsic(_set_dense_rows(1))
