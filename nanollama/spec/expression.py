"""Lists that are written as an expression: `range(0, 100, 10)`, `[8, 16] + [64]`, `[2**i for i in range(3, 8)]`.

Configs of the established shape hold such strings, and were meant to be run as Python. Here a small language is read:
numbers, texts, lists and tuples; + - * / // % and ** on numbers; + on lists; range, list, int, float and round; list
comprehensions over lists. Nothing else has a meaning, so nothing can be done but to make a list.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

MAX_LENGTH = 10_000
"""Longest list that an expression may make."""

_MAX_TEXT = 10_000
_MAX_NUMBER = 2**63
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class NotAList(ValueError):
    """The text is not an expression of the small language; the message says why."""


def read_list(text: str) -> list[Any]:
    """The list that the expression makes.

    Raises:
        NotAList: anything that is not such an expression, or makes no list, or one that is too long.
    """
    if len(text) > _MAX_TEXT:
        raise NotAList(f"is longer than {_MAX_TEXT:,} characters")
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body, {})
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise NotAList(str(error) if isinstance(error, NotAList) else "cannot be read as a list") from None
    if not isinstance(value, list):
        raise NotAList("is not a list")
    return value


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | None):
        return _bounded(node.value)
    if isinstance(node, ast.List | ast.Tuple):
        return _bounded([_value(item, names) for item in node.elts])
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(_value(node.operand, names))
    if isinstance(node, ast.BinOp):
        return _bounded(_operation(node, names))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _bounded(_call(node.func.id, [_value(argument, names) for argument in node.args]))
    if isinstance(node, ast.ListComp):
        return _comprehension(node.elt, node.generators, names)
    raise NotAList(f"uses `{ast.unparse(node)[:60]}`, which has no meaning in a config")


def _operation(node: ast.BinOp, names: Mapping[str, Any]) -> Any:
    left, right = _value(node.left, names), _value(node.right, names)
    if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
        return left + right
    left, right = _number(left), _number(right)
    if isinstance(node.op, ast.Pow):
        if abs(left) > 1e6 or abs(right) > 64:
            raise NotAList(f"raises {left} to the power of {right}")
        return left**right
    if type(node.op) not in _OPERATORS:
        raise NotAList(f"uses `{ast.unparse(node)[:60]}`, which has no meaning in a config")
    return _OPERATORS[type(node.op)](left, right)


def _call(name: str, arguments: list[Any]) -> Any:
    if name == "range" and 1 <= len(arguments) <= 3:
        numbers = range(*arguments)
        if len(numbers) > MAX_LENGTH:
            raise NotAList(f"makes {len(numbers):,} values; the limit is {MAX_LENGTH:,}")
        return list(numbers)
    if name == "list" and len(arguments) == 1 and isinstance(arguments[0], list):
        return arguments[0]
    if name in ("int", "float") and len(arguments) == 1:
        return (int if name == "int" else float)(_number(arguments[0]))
    if name == "round" and 1 <= len(arguments) <= 2:
        return round(*(_number(argument) for argument in arguments))
    raise NotAList(f"calls `{name}`, which has no meaning in a config")


def _comprehension(element: ast.expr, generators: list[ast.comprehension], names: Mapping[str, Any]) -> list[Any]:
    if not generators:
        return [_value(element, names)]
    first = generators[0]
    if first.ifs or first.is_async or not isinstance(first.target, ast.Name):
        raise NotAList("is a comprehension with more than `for NAME in LIST`")
    items = _value(first.iter, names)
    if not isinstance(items, list):
        raise NotAList(f"goes over `{ast.unparse(first.iter)[:60]}`, which is no list")
    found: list[Any] = []
    for item in items:
        found = _bounded(found + _comprehension(element, generators[1:], {**names, first.target.id: item}))
    return found


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotAList(f"computes with {value!r}")
    return value


def _bounded(value: Any) -> Any:
    """The value, unless it has grown beyond what a config can mean."""
    if isinstance(value, list) and len(value) > MAX_LENGTH:
        raise NotAList(f"makes {len(value):,} values; the limit is {MAX_LENGTH:,}")
    if isinstance(value, complex) or (isinstance(value, int) and abs(value) > _MAX_NUMBER):
        raise NotAList("makes a number that is too large")
    return value
