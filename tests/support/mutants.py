"""Mutants of a source file: one guard of it changed in each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from types import CodeType
from typing import Final

import attrs

_SHIFTED: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
_NEGATED: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_QUANTIFIERS: Final = {"any": "all", "all": "any"}


@attrs.frozen(kw_only=True)
class Mutant:
    """A function, by its qualified name, in which the expression that starts in `line` is another one."""

    path: str
    function: str
    line: int
    old: str
    new: str
    code: CodeType = attrs.field(eq=False, repr=False)

    @property
    def key(self) -> str:
        """Say which one it is, wherever its line is."""
        return f"{self.function}: {self.old} -> {self.new}"

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.path}:{self.line} {self.key}"


def mutants_of(path: str, source: str) -> Iterator[Mutant]:
    """Yield each function of the file at `path` once with each of its guards changed."""
    for index in range(len(list(_changes(ast.parse(source))))):
        tree = ast.parse(source)
        old, new = list(_changes(tree))[index]
        texts = ast.unparse(old), ast.unparse(new)
        name = _function_around(tree, old)
        changed = ast.fix_missing_locations(_Exchange(old, ast.copy_location(new, old)).visit(tree))
        code = _named(compile(ast.unparse(changed), path, "exec"), name)
        if code is not None:
            yield Mutant(path=path, function=name, line=old.lineno, old=texts[0], new=texts[1], code=code)


def _named(code: CodeType, name: str) -> CodeType | None:
    """Return the code of the function of that qualified name, which may be in a class of `code`."""
    inside = [each for each in code.co_consts if isinstance(each, CodeType)]
    own = next((each for each in inside if each.co_qualname == name), None)
    return own or next((found for each in inside if (found := _named(each, name)) is not None), None)


def _function_around(tree: ast.AST, node: ast.expr) -> str:
    """Return the qualified name of the outermost function that holds `node`."""
    names: list[str] = []
    holder = tree
    while not names or isinstance(holder, ast.ClassDef):
        inside = [each for each in ast.iter_child_nodes(holder) if node in ast.walk(each)]
        if not inside or not isinstance(inside[0], ast.ClassDef | ast.FunctionDef):
            break
        holder = inside[0]
        names.append(inside[0].name)
    return ".".join(names)


class _Exchange(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, old: ast.expr, new: ast.expr) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        """Return what stands in the place of `node`; what stays of the old one is not searched again."""
        if node is self._old:
            return self._new
        changed: ast.AST = self.generic_visit(node)
        return changed


def _changes(tree: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield the expressions that guard something, each with what to put in its place."""
    decided: set[ast.expr] = set()
    for node in ast.walk(tree):
        for condition in _conditions(node):
            decided.add(condition)
            yield condition, ast.Constant(value=True)
            yield condition, ast.Constant(value=False)
        match node:
            case ast.BoolOp(op=operator, values=values):
                decided.update(values)
                for left_out in values:
                    rest = [value for value in values if value is not left_out]
                    yield node, rest[0] if len(rest) == 1 else ast.BoolOp(op=operator, values=rest)
            case ast.Compare(left=left, ops=[operator], comparators=others):
                kinds = _SHIFTED if node in decided else _SHIFTED | _NEGATED
                if type(operator) in kinds:
                    yield node, ast.Compare(left=left, ops=[kinds[type(operator)]()], comparators=others)
            case ast.Call(func=ast.Name(id=name), args=args) if name in _QUANTIFIERS:
                yield (
                    node,
                    ast.Call(func=ast.Name(id=_QUANTIFIERS[name], ctx=ast.Load()), args=args, keywords=[]),
                )


def _conditions(node: ast.AST) -> list[ast.expr]:
    """Return what `node` decides by, or that it returns as the decision of a function."""
    match node:
        case ast.If(test=test) | ast.IfExp(test=test):
            return [test]
        case ast.comprehension(ifs=tests):
            return tests
        case ast.Return(value=ast.expr() as value) if _is_boolean(value):
            return [value]
        case _:
            return []


def _is_boolean(value: ast.expr) -> bool:
    match value:
        case ast.BoolOp() | ast.Compare() | ast.UnaryOp(op=ast.Not()):
            return True
        case ast.Call(func=ast.Name(id=name)):
            return name in {"bool", "any", "all", "isinstance"}
        case _:
            return False
