"""Tables of the messages that the packages raise, read from their source: message, cure, package.

A message is an expression ``Problem(…)`` of the code. What is only known at run time stands as a name in
braces, or as an ellipsis.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from tico_config import TicoError

PLACE: Final = re.compile(r"^<!-- messages: (?P<name>\w+) -->$", re.MULTILINE)

# What many classes have, so that the name does not say whose it is.
_EVERYWHERE: Final = frozenset({"", "__init__", "problems"})

# Problems that torch's `load_state_dict` reports in an error of its own.
UNNAMED: Final = "RuntimeError"

# What raises on behalf of those who call it.
_RAISING: Final = {"refuse": "ConfigError"}

# What a package raises where the source does not say so: its problems are found by methods of objects.
_OTHERWISE: Final = {
    "tico-config": "ConfigError",
    "tico-export": "UnsupportedError",
    "tico-quantizers": "ConfigError",
    "tico-wrapq": "UnsupportedError",
}

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def error_names() -> list[str]:
    """Return the names of the public error classes.

    >>> "ConfigError" in error_names()
    True
    """
    names, waiting = [], [TicoError]
    while waiting:
        found = waiting.pop(0).__subclasses__()
        waiting += found
        names += [each.__name__ for each in found]
    return sorted(set(names))


@attrs.frozen(order=True)
class Message:
    """What a problem says, and what to do about it."""

    text: str
    cure: str
    package: str


@attrs.frozen
class _Scope:
    """A function of a package, with what it raises and which other names it uses."""

    path: Path
    name: str
    problems: tuple[tuple[ast.Call, frozenset[str]], ...]
    raised: frozenset[str]
    used: frozenset[str]
    texts: Mapping[str, ast.expr]


def with_messages(text: str, root: Path) -> str:
    """Return `text` with a table for each line ``<!-- messages: CLASS -->``, an error class."""
    if PLACE.search(text) is None:
        return text
    found = messages(root)
    return PLACE.sub(lambda place: _table(found[place["name"]]), text)


@functools.cache
def messages(root: Path) -> Mapping[str, Sequence[Message]]:
    """Return the messages of each error class, each once, in the order of their words.

    Problems that one function describes and another raises belong to every class that the other one, or one
    that calls it, raises.
    """
    scopes = [scope for path in sorted(root.glob("packages/*/src/**/*.py")) for scope in _scopes(path)]
    found: dict[str, set[Message]] = {name: set() for name in [*error_names(), UNNAMED]}
    users = _users(scopes)
    for scope in scopes:
        for call, directly in scope.problems:
            package = scope.path.relative_to(root).parts[1]
            named = directly or scope.raised or _raised_by_users(scope, users)
            for name in named if 0 < len(named) < 3 else {_OTHERWISE.get(package, UNNAMED)}:
                found[name].update(filter(_says_something, _messages(call, scope, package)))
    return {name: sorted(each) for name, each in found.items()}


def _scopes(path: Path) -> Iterator[_Scope]:
    names, module = {*error_names()}, ast.parse(path.read_text(encoding="utf-8"))
    constants = _assigned(module.body)
    for function in (node for node in ast.walk(module) if isinstance(node, _Function)):
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        errors = [call for call in calls if _name(call.func) in names]
        within = {id(node): _name(error.func) for error in errors for node in ast.walk(error)}
        yield _Scope(
            path=path,
            name=function.name,
            problems=tuple(
                (call, frozenset({within[id(call)]} if id(call) in within else ()))
                for call in calls
                if _name(call.func) == "Problem"
            ),
            raised=frozenset(
                [_name(error.func) for error in errors]
                + [_RAISING[name] for call in calls if (name := _name(call.func)) in _RAISING]
            ),
            used=frozenset(_name(node) for node in ast.walk(function)) - _EVERYWHERE,
            texts={**constants, **_assigned(list(ast.walk(function)))},
        )


def _assigned(nodes: Sequence[ast.AST]) -> dict[str, ast.expr]:
    """Return what plain names are assigned, alone or several at once."""
    pairs = [
        (target, node.value) for node in nodes if isinstance(node, ast.Assign) for target in node.targets
    ]
    several = [
        pair
        for target, value in pairs
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        for pair in zip(target.elts, value.elts, strict=False)
    ]
    return {target.id: value for target, value in pairs + several if isinstance(target, ast.Name)}


def _name(node: ast.AST) -> str:
    return getattr(node, "id", "") or getattr(node, "attr", "")


def _users(scopes: Sequence[_Scope]) -> Mapping[str, Sequence[_Scope]]:
    users = defaultdict(list)
    for scope in scopes:
        for name in scope.used:
            users[name].append(scope)
    return users


def _raised_by_users(scope: _Scope, users: Mapping[str, Sequence[_Scope]]) -> frozenset[str]:
    """Return the classes that the nearest functions raise which use `scope`, directly or through others."""
    seen, level = [scope], [scope]
    while level:
        above = [user for below in level for user in users.get(below.name, ()) if _sees(user, below)]
        raised = frozenset(name for user in above for name in user.raised)
        if raised:
            return raised
        level = [user for user in above if user not in seen]
        seen += level
    return frozenset()


def _sees(user: _Scope, scope: _Scope) -> bool:
    """Whether a name that `user` uses can be that of `scope`: private ones stay within their file."""
    return user.path == scope.path or not scope.name.startswith("_")


def _says_something(message: Message) -> bool:
    """Whether the source has any of the words, and not only the frame around them."""
    words = re.sub(r"{\w+}|\b(must be|expected|got)\b", "", message.text)
    return re.search(r"\w", words) is not None


def _messages(call: ast.Call, scope: _Scope, package: str) -> Iterator[Message]:
    """Yield what a call of `Problem` can say, one for each alternative in its words."""
    fields = {each.arg: _alternatives(each.value, scope.texts) for each in call.keywords if each.arg}
    none = ("",)
    for cure in fields.get("remedy", none):
        for sentence in fields.get("sentence", none):
            if sentence not in {"", "None"}:
                yield Message(sentence, cure, package)
                continue
            what = [f"{field} must be" if field else "expected" for field in fields.get("field", none)]
            for expected in fields.get("expected", none):
                yield from (Message(f"{each} {expected}, got …", cure, package) for each in what)


def _alternatives(node: ast.expr, texts: Mapping[str, ast.expr], depth: int = 0) -> tuple[str, ...]:
    """Return the texts that an expression can have, with ``{name}`` for what only a run can know."""
    match node:
        case ast.Constant(value=value):
            return ("" if value is None else str(value),)
        case ast.JoinedStr(values=parts):
            return _joined(parts, texts, depth)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _joined([left, right], texts, depth)
        case ast.IfExp(body=body, orelse=orelse):
            return _alternatives(body, texts, depth) + _alternatives(orelse, texts, depth)
        case ast.Name(id=name) if name in texts and depth < 4:
            return _alternatives(texts[name], texts, depth + 1)
    inner = node.value if isinstance(node, ast.FormattedValue) else node
    known = isinstance(node, ast.FormattedValue) and isinstance(inner, ast.Name) and inner.id in texts
    return _alternatives(inner, texts, depth) if known else (_placeholder(inner),)


def _placeholder(node: ast.expr) -> str:
    """Return what stands for a value that the source does not show."""
    name = _name(node).strip("_")
    return f"{{{name}}}" if name else "…"


def _joined(parts: Sequence[ast.expr], texts: Mapping[str, ast.expr], depth: int) -> tuple[str, ...]:
    """Return every text that `parts` can make together, or only the first where these are many."""
    choices = itertools.product(*(_alternatives(each, texts, depth) for each in parts))
    found = ["".join(each) for each in itertools.islice(choices, 9)]
    return tuple(found if len(found) < 9 else found[:1])


def _table(found: Sequence[Message]) -> str:
    lines = ["| message | what to do | package |", "|---|---|---|"]
    lines += [f"| {_code(each.text)} | {_code(each.cure)} | {each.package} |" for each in found]
    return "\n".join(lines)


def _code(text: str) -> str:
    """Return `text` as code in a cell of a table."""
    flat = re.sub(r"\s+", " ", text).strip().replace("|", chr(92) + "|")
    return f"`` {flat} ``" if flat else ""
