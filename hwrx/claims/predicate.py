"""Predicates of claims: comparisons and arithmetic over named figures, as Python writes them, and nothing else.

0.99 <= receiver_copies <= 1.01 and lost == 0
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

from hwrx.errors import UsageError

Figure = bool | int | float | str  # bool, int: what a predicate is about may be counted, or be so or not
Figures = Mapping[str, Figure | None]
_BINARY: dict[type, Callable[..., Figure]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARE: dict[type, Callable[..., bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_MINUS: Callable[..., Figure] = operator.neg
_FUNCTIONS: dict[str, Callable[..., Figure]] = {"abs": abs, "min": min, "max": max}


class MissingError(Exception):
    """A figure that the predicate asks for was not measured; its name is the argument."""


def names_in(text: str) -> set[str]:
    """Return the figures that a predicate asks for; UsageError where it is none."""
    tree = _tree(text)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called}


def predicate_holds(text: str, figures: Figures) -> bool:
    """Say whether a predicate holds. MissingError where a figure is not there; UsageError for what is no predicate."""
    return bool(_value(_tree(text).body, figures))


def _tree(text: str) -> ast.Expression:
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise UsageError(f"'{text}' is no predicate: {error.msg}", remedy="for example: 0.9 <= copies <= 1.1") from None
    _allowed(tree.body, text)
    return tree


def _allowed(node: ast.AST, text: str) -> None:
    """UsageError for what a predicate may not have in it."""
    good = isinstance(
        node,
        ast.BoolOp | ast.UnaryOp | ast.BinOp | ast.Compare | ast.Call | ast.Name | ast.Constant | ast.boolop
        | ast.unaryop | ast.operator | ast.cmpop | ast.expr_context,
    )  # fmt: skip
    if isinstance(node, ast.Call):
        good = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords
    elif isinstance(node, ast.operator):
        good = type(node) in _BINARY
    elif isinstance(node, ast.cmpop):
        good = type(node) in _COMPARE
    elif isinstance(node, ast.unaryop):
        good = isinstance(node, ast.Not | ast.USub)
    if not good:
        raise UsageError(
            f"'{text}' is no predicate: {type(node).__name__} may not stand in it",
            remedy="names of figures, numbers, + - * /, comparisons, and, or, not, abs, min, max",
        )
    for child in ast.iter_child_nodes(node):
        _allowed(child, text)


def _value(node: ast.AST, figures: Figures) -> Figure:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.Name(id=name):
            return _figure(name, figures)
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_value(each, figures) for each in values)
        case ast.BoolOp(values=values):
            return any(_value(each, figures) for each in values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, figures)
        case ast.UnaryOp(operand=operand):
            return _MINUS(_value(operand, figures))
        case ast.BinOp(left=left, op=op, right=right):
            try:
                return _BINARY[type(op)](_value(left, figures), _value(right, figures))
            except ZeroDivisionError:
                raise MissingError("a quotient by 0") from None
        case ast.Call(func=ast.Name(id=name), args=args):
            return _FUNCTIONS[name](*(_value(each, figures) for each in args))
        case ast.Compare(left=left, ops=ops, comparators=rest):
            before = _value(left, figures)
            for comparison, each in zip(ops, rest, strict=True):
                after = _value(each, figures)
                if not _COMPARE[type(comparison)](before, after):
                    return False
                before = after
            return True
    raise AssertionError(f"{type(node).__name__} has passed _allowed()")


def _figure(name: str, figures: Figures) -> Figure:
    value = figures.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise MissingError(name)
    return value
