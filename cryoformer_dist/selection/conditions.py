"""Conditions on columns, such as ``junk < .1 and amplitude > .5``, read without running them."""

import ast
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoformer_dist.errors import SelectionError

_LONGEST = 1000
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}
_SUMS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}


class _Refused(Exception):
    """Something that is no part of a condition."""


def fulfils(expression: str, column: Callable[[str], NDArray[Any]]) -> NDArray[np.bool_]:
    """Which particles fulfil a condition.

    Parameters
    ----------
    expression
        Comparisons (``<``, ``<=``, ``>``, ``>=``, ``==``, ``!=``, ``in (1, 3)``, ``0 < pc1 < 2``) of columns, numbers,
        and their sums, differences, products and ratios; joined by ``and``, ``or``, ``not`` and parentheses.
    column
        Name to values ``(particles,)``.

    Returns
    -------
    mask
        ``(particles,)``.

    Raises
    ------
    SelectionError
        If it is anything else; the part is named. What ``column`` raises of an unknown name goes through.
    """
    try:
        if len(expression) > _LONGEST:
            raise _Refused(f"longer than {_LONGEST} characters")
        tree = ast.parse(expression.strip(), mode="eval")
        if not any(isinstance(node, ast.Name) for node in ast.walk(tree)):
            raise _Refused("names no column")
        with np.errstate(all="ignore"):
            mask: NDArray[np.bool_] = _truth(tree.body, column)
    except SelectionError:
        raise
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise _no_condition(expression, getattr(error, "msg", str(error))) from None
    except _Refused as refused:
        raise _no_condition(expression, str(refused)) from None
    return mask


def _no_condition(expression: str, why: str) -> SelectionError:
    shown = expression if len(expression) <= _LONGEST else f"{expression[:40]} ..."
    return SelectionError(f"{shown!r} is no condition ({why}); write for example: junk < .1 and cluster in (1, 3)")


def _truth(node: ast.expr, column: Callable[[str], NDArray[Any]]) -> Any:
    """Value of what is true or false."""
    if isinstance(node, ast.BoolOp):
        joined = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return joined.reduce([_truth(each, column) for each in node.values])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return np.logical_not(_truth(node.operand, column))
    if isinstance(node, ast.Compare):
        return _compare(node, column)
    raise _Refused(f"{ast.unparse(node)} is neither true nor false")


def _compare(node: ast.Compare, column: Callable[[str], NDArray[Any]]) -> Any:
    terms = [node.left, *node.comparators]
    found: Any = True
    for operator, left, right in zip(node.ops, terms, terms[1:], strict=False):
        if isinstance(operator, ast.In | ast.NotIn):
            among = np.isin(_number(left, column), _list(right))
            found = np.logical_and(found, among if isinstance(operator, ast.In) else ~among)
        elif type(operator) in _COMPARISONS:
            compare = _COMPARISONS[type(operator)]
            found = np.logical_and(found, compare(_number(left, column), _number(right, column)))
        else:
            raise _Refused(f"{ast.unparse(node)} does not compare")
    return found


def _number(node: ast.expr, column: Callable[[str], NDArray[Any]]) -> Any:
    """Value of a column, or of what is computed of columns and numbers."""
    if isinstance(node, ast.Name):
        return column(node.id)
    # A truth value is an int to Python, and no number to anybody else.
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return np.negative(_number(node.operand, column))
    if isinstance(node, ast.BinOp) and type(node.op) in _SUMS:
        return _SUMS[type(node.op)](_number(node.left, column), _number(node.right, column))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        raise _Refused("& and | are written as and, or")
    raise _Refused(f"{ast.unparse(node)} is no number")


def _list(node: ast.expr) -> list[float]:
    if not isinstance(node, ast.Tuple | ast.List):
        raise _Refused(f"{ast.unparse(node)} is no list such as (1, 3)")

    def refuse(name: str) -> NDArray[Any]:
        raise _Refused(f"{name} in a list, which holds numbers")

    return [float(_number(each, refuse)) for each in node.elts]
