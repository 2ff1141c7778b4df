"""Conditions over columns, e.g. `age >= 18 and city in ("Rome", "Oslo")`: read by Python's parser, never run by it."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mms_sdk.errors import InvalidRequest

_MAX_DEPTH = 50
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def parse(expression: str, *, columns: Sequence[str]) -> pc.Expression:
    """The condition that a text says.

    Args:
        expression: Columns by name, numbers, quoted texts, `+ - * /`, comparisons, `in`, `and`, `or`, `not` and
            `is None`.
        columns: Those there are.

    Raises:
        InvalidRequest: It says something else, or names a column that is not there.
    """
    try:
        tree = ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise InvalidRequest(
            f"a condition reads like `age >= 18 and city != 'Rome'`; got {expression[:200]!r}: {error}"
        ) from error
    try:
        found = _Reader(expression, columns).read(tree, 0)
    except (OverflowError, pa.ArrowInvalid) as error:
        raise InvalidRequest(
            f"values of a condition are numbers of 64 bits, truth values and texts, and of one kind in a list; "
            f"{expression[:200]!r}: {error}"
        ) from error
    if not isinstance(tree, ast.Compare | ast.BoolOp | ast.UnaryOp | ast.Name):
        raise InvalidRequest(f"a condition is true or false; {expression[:200]!r} is a value; compare it with one")
    return found


def names_in(expression: str, *, columns: Sequence[str]) -> list[str]:
    """The columns that a condition is about. See `parse` for arguments and errors."""
    parse(expression, columns=columns)
    tree = ast.parse(expression, mode="eval")
    return sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})


class _Reader:
    def __init__(self, expression: str, columns: Sequence[str]) -> None:
        self._expression = expression
        self._columns = columns

    def read(self, node: ast.expr, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise InvalidRequest(f"a condition is nested at most {_MAX_DEPTH} deep; this one is deeper; split it")
        match node:
            case ast.Name(id=name):
                return self._column(name)
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return pc.scalar(value)
            case ast.BoolOp(op=ast.And(), values=values):
                return _all(operator.and_, [self.read(value, depth + 1) for value in values])
            case ast.BoolOp(op=ast.Or(), values=values):
                return _all(operator.or_, [self.read(value, depth + 1) for value in values])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self.read(operand, depth + 1)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return pc.scalar(0) - self.read(operand, depth + 1)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                return _ARITHMETIC[type(op)](self.read(left, depth + 1), self.read(right, depth + 1))
            case ast.Compare(left=left, ops=ops, comparators=rights):
                sides = [left, *rights]
                compared = [
                    self._compare(one, op, other, depth) for one, op, other in zip(sides, ops, rights, strict=False)
                ]
                return _all(operator.and_, compared)
        raise self._refused(node)

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr, depth: int) -> Any:
        match op, right:
            case ast.Is(), ast.Constant(value=None):
                return self.read(left, depth + 1).is_null()
            case ast.IsNot(), ast.Constant(value=None):
                return self.read(left, depth + 1).is_valid()
            case ((ast.In() | ast.NotIn()), (ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items))):
                values = [item.value for item in items if isinstance(item, ast.Constant)]
                if len(values) < len(items):
                    raise self._refused(right)
                found = self.read(left, depth + 1).isin(values)
                return ~found if isinstance(op, ast.NotIn) else found
        if type(op) not in _COMPARISONS:
            raise self._refused(right)
        return _COMPARISONS[type(op)](self.read(left, depth + 1), self.read(right, depth + 1))

    def _column(self, name: str) -> Any:
        if name not in self._columns:
            raise InvalidRequest(f"a condition names columns that are there: {list(self._columns)}; got {name!r}")
        return pc.field(name)

    def _refused(self, node: ast.expr) -> InvalidRequest:
        said = ast.get_source_segment(self._expression, node) or type(node).__name__
        return InvalidRequest(
            f"a condition has columns, numbers, quoted texts, + - * /, comparisons, in, and, or, not and is None; got "
            f"{said[:100]!r}; write it with these, or derive a column first"
        )


def _all(join: Callable[[Any, Any], Any], parts: Sequence[Any]) -> Any:
    joined = parts[0]
    for part in parts[1:]:
        joined = join(joined, part)
    return joined
