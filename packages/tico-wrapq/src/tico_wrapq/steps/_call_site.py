"""Where a step stands in the code of its module, and the name that follows from that.

A step's name depends on the source alone, so it is the same in every process, for every batch, with and
without a cache, and whichever way control flow goes: ``mul_2`` is the third product in the text of the
module's `forward`, ``rotate_half_0_neg_0`` the first negation in the first call of a function `rotate_half`.
A place that is passed several times, as in a loop, is one step.
"""

from __future__ import annotations

import ast
import linecache
from functools import lru_cache
from types import CodeType, FrameType
from typing import Final, TypeAlias

from torch import nn

from tico_wrapq.steps._operators import operator_named

Place: TypeAlias = tuple[CodeType, int]
Site: TypeAlias = tuple[Place, ...]
"""The calls that lead from a module's `forward` to a step, the inner ones first: code and instruction."""

Span: TypeAlias = tuple[int, int, int, int]

_MODULE_CALL: Final = nn.Module._call_impl.__code__
_BINARY: Final = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
    ast.FloorDiv: "div",
    ast.Pow: "pow",
    ast.MatMult: "matmul",
    ast.Mod: "remainder",
    ast.USub: "neg",
}


def site_of(frame: FrameType, forward: CodeType) -> Site | None:
    """Return the calls that lead from the code `forward` to `frame`.

    None where `forward` does not run, or where the call of another module is between.
    """
    places: list[Place] = []
    current: FrameType | None = frame
    while current is not None and (code := current.f_code) is not _MODULE_CALL:
        if not _is_of_torch(current):
            places.append((code, current.f_lasti))
        if code is forward:
            return tuple(places)
        current = current.f_back
    return None


def _is_of_torch(frame: FrameType) -> bool:
    name: object = frame.f_globals.get("__name__")
    return isinstance(name, str) and (name == "torch" or name.startswith("torch."))


def is_inside(site: Site, files: tuple[str, ...]) -> bool:
    """Whether one of the calls of `site` is in a file whose path ends with one of `files`."""
    return any(code.co_filename.replace("\\", "/").endswith(files) for code, _ in site)


def name_of(site: Site, operator: str) -> str:
    """Return the name of the step at `site`, which computes `operator`."""
    (code, instruction), *calls = site
    names = [_named(code, instruction, operator, is_step=True)]
    callee = code
    for caller, at in calls:
        if not _is_comprehension(callee):
            names.append(_named(caller, at, callee.co_name, is_step=False))
        callee = caller
    return "_".join(reversed(names))


def _is_comprehension(code: CodeType) -> bool:
    return code.co_name.startswith("<") and code.co_name != "<lambda>"


def _named(code: CodeType, instruction: int, operator: str, *, is_step: bool) -> str:
    """Return what is spelled at a place, numbered among what is spelled alike in the same function."""
    span = _span(code, instruction)
    function = None if span is None else _function_at(code.co_filename, span)
    here = [] if function is None else [each for each in _operations(function) if _reach(each) == span]
    if function is None or not here:
        return f"{operator}_at_{instruction}"
    spelled = _spelling(here[0])
    alike = [each for each in _operations(function) if _spelling(each) == spelled]
    number = f"{spelled}_{alike.index(here[0])}"
    return number if spelled == operator or not is_step else f"{number}_{operator}"


def _span(code: CodeType, instruction: int) -> Span | None:
    """Return where the instruction stands in the text: lines and columns of its start and end."""
    line, end, column, end_column = _positions(code)[instruction // 2]
    if line is None or end is None or column is None or end_column is None:
        return None
    return line, column, end, end_column


@lru_cache(maxsize=1024)
def _positions(code: CodeType) -> tuple[tuple[int | None, int | None, int | None, int | None], ...]:
    return tuple(code.co_positions())


@lru_cache(maxsize=256)
def _functions_in(path: str) -> tuple[ast.AST, ...]:
    """Return the functions in the file at `path`, the inner ones last."""
    text = "".join(linecache.getlines(path))
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return ()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    return tuple(node for node in ast.walk(tree) if isinstance(node, kinds))


def _function_at(path: str, span: Span) -> ast.AST | None:
    around = [each for each in _functions_in(path) if _encloses(_reach(each), span)]
    return max(around, key=_reach, default=None)


def _reach(node: ast.AST) -> Span:
    """Return the place of `node` in UTF-8 bytes, as code objects count: first its start, then its end."""
    line, column = getattr(node, "lineno", 0), getattr(node, "col_offset", 0)
    return (line, column, getattr(node, "end_lineno", 0), getattr(node, "end_col_offset", 0))


def _encloses(outer: Span, inner: Span) -> bool:
    return outer[:2] <= inner[:2] and inner[2:] <= outer[2:]


@lru_cache(maxsize=1024)
def _operations(function: ast.AST) -> tuple[ast.AST, ...]:
    """Return what computes or calls in `function`, in the order of the text."""
    return tuple(sorted(filter(_may_compute, ast.walk(function)), key=_reach))


def _may_compute(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp):
        return not isinstance(node.operand, ast.Constant)
    return isinstance(node, ast.BinOp | ast.AugAssign | ast.Call | ast.Subscript)


def _spelling(node: ast.AST) -> str:
    """Return by what name `node` computes, as far as the text says."""
    match node:
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.UnaryOp(op=op):
            return _BINARY.get(type(op), type(op).__name__)
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)):
            return operator_named(name).name
        case _:
            return type(node).__name__
