"""The mutants of a module: its syntax tree with one change each.

Invariants:

1. A mutant is one change, and its text names it: the place, what stood there and what stands there now. A line
   number is no part of the name, so that a list of equivalent mutants outlives the changes of other lines.
2. What people read is left alone: docstrings, annotations, texts and what is put into them, log lines. So are
   assertions, which say what cannot happen.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_OPPOSITES = {"min": "max", "max": "min", "any": "all", "all": "any"}
#: Methods whose calls only tell something to people.
_TELLING = frozenset({"debug", "info", "warning", "error", "exception", "tell", "log"})

Path = tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Mutant:
    """One change. ``lines``: a test that executes none of them cannot notice it; None: it takes effect at import."""

    where: str
    change: str
    line: int
    lines: frozenset[int] | None
    tree: ast.Module = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.where}: {self.change}"


def mutants_of(source: str) -> list[Mutant]:
    """Every mutant of a module's source, in the order of its lines."""
    tree = ast.parse(source)
    return [mutant for site in _sites(tree) for mutant in _mutants_at(tree, site)]


@dataclass(frozen=True)
class _Site:
    """A node that may be changed, and the way to it from the root."""

    node: ast.AST
    path: Path
    where: str
    lines: frozenset[int] | None


def _mutants_at(tree: ast.Module, site: _Site) -> Iterator[Mutant]:
    before = _text(site.node)
    seen = {before}
    for new in _changes(site.node):
        after = _text(new)
        if after not in seen:
            seen.add(after)
            changed = _with_change(tree, site.path, new)
            yield Mutant(site.where, f"{before} -> {after}", getattr(site.node, "lineno", 0), site.lines, changed)


def _with_change(tree: ast.Module, path: Path, new: ast.AST) -> ast.Module:
    changed = copy.deepcopy(tree)
    node: ast.AST = changed
    for name, index in path[:-1]:
        child = getattr(node, name)
        node = child if index is None else child[index]
    name, index = path[-1]
    old = getattr(node, name) if index is None else getattr(node, name)[index]
    new = ast.copy_location(copy.deepcopy(new), old)
    if index is None:
        setattr(node, name, new)
    else:
        getattr(node, name)[index] = new
    return ast.fix_missing_locations(changed)


def _text(node: ast.AST) -> str:
    """A node as one line: of a statement with a body, its head."""
    lines = ast.unparse(node).split("\n")
    return lines[0] if isinstance(getattr(node, "body", None), list) else " ".join(" ".join(lines).split())


# Where.


def _sites(tree: ast.Module) -> Iterator[_Site]:
    for index, statement in enumerate(tree.body):
        yield from _walk(statement, (("body", index),), (), None)


def _walk(node: ast.AST, path: Path, names: tuple[str, ...], lines: frozenset[int] | None) -> Iterator[_Site]:
    """The node and what is in it. ``lines`` is of the innermost statement that a function executes."""
    if _is_for_people(node):
        return
    inside = names
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        inside = (*names, node.name)
    elif isinstance(node, ast.stmt) and lines is not None:
        lines = frozenset(range(node.lineno, _end_of_head(node) + 1))
    yield _Site(node, path, ".".join(inside) or "module", lines)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        within = lines
        if isinstance(node, ast.FunctionDef) and name == "body":
            within = frozenset()
        for index, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if isinstance(child, ast.AST):
                yield from _walk(child, (*path, (name, index)), inside, within)


def _end_of_head(node: ast.stmt) -> int:
    body: list[ast.stmt] | None = getattr(node, "body", None)
    if body:
        return max(node.lineno, body[0].lineno - 1)
    return node.lineno if node.end_lineno is None else node.end_lineno


def _is_for_people(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        value = node.value
        function = value.func if isinstance(value, ast.Call) else None
        is_log_line = isinstance(function, ast.Attribute) and function.attr in _TELLING
        return is_log_line or isinstance(value, ast.Constant)
    if isinstance(node, ast.Raise):  # "this cannot happen", as an assertion says it
        return isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) == "AssertionError"
    return isinstance(node, (ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom))


# What.


def _changes(node: ast.AST) -> Iterable[ast.AST]:
    for kind, change in _OPERATORS:
        if isinstance(node, kind):
            yield from change(node)


def _compare(node: ast.Compare) -> Iterator[ast.AST]:
    for index, operator in enumerate(node.ops):
        if type(operator) in _COMPARISONS:
            ops = [*node.ops]
            ops[index] = _COMPARISONS[type(operator)]()
            yield ast.Compare(node.left, ops, node.comparators)


def _bool_op(node: ast.BoolOp) -> Iterator[ast.AST]:
    yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    for index in range(len(node.values)):
        rest = [value for number, value in enumerate(node.values) if number != index]
        yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)


def _not(node: ast.UnaryOp) -> Iterator[ast.AST]:
    if isinstance(node.op, ast.Not):
        yield node.operand


def _condition(node: ast.If | ast.IfExp) -> Iterator[ast.AST]:
    for value in (True, False):
        changed = copy.copy(node)
        changed.test = ast.Constant(value)
        yield changed


def _comprehension(node: ast.comprehension) -> Iterator[ast.AST]:
    for index in range(len(node.ifs)):
        ifs = [test for number, test in enumerate(node.ifs) if number != index]
        yield ast.comprehension(node.target, node.iter, ifs, node.is_async)


def _constant(node: ast.Constant) -> Iterator[ast.AST]:
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, (int, float)):
        yield ast.Constant(node.value + 1)


def _arithmetic(node: ast.BinOp) -> Iterator[ast.AST]:
    texts = (ast.JoinedStr, ast.Constant)
    if any(isinstance(side, texts) and not _is_number(side) for side in (node.left, node.right)):
        return
    if type(node.op) in _ARITHMETIC:
        yield ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right)


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float))


def _return(node: ast.Return) -> Iterator[ast.AST]:
    if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
        yield ast.Return(ast.Constant(None))


def _call(node: ast.Call) -> Iterator[ast.AST]:
    name = node.func.id if isinstance(node.func, ast.Name) else None
    if name in _OPPOSITES:
        yield ast.Call(ast.Name(_OPPOSITES[name], ast.Load()), node.args, node.keywords)
        if len(node.args) > 1:
            yield from (arg for arg in node.args if not isinstance(arg, ast.Starred))
    if name == "replace":  # of a frozen row: a member that keeps its value
        for index in range(len(node.keywords)):
            rest = [keyword for number, keyword in enumerate(node.keywords) if number != index]
            yield ast.Call(node.func, node.args, rest)


def _statement(node: ast.stmt) -> Iterator[ast.AST]:
    targets = getattr(node, "targets", ())
    binds_a_name = any(isinstance(target, (ast.Name, ast.Tuple)) for target in targets)
    if not isinstance(node, ast.Assign) or not binds_a_name:
        yield ast.Pass()


_OPERATORS: tuple[tuple[type | tuple[type, ...], Callable[..., Iterable[ast.AST]]], ...] = (
    (ast.Compare, _compare),
    (ast.BoolOp, _bool_op),
    (ast.UnaryOp, _not),
    ((ast.If, ast.IfExp), _condition),
    (ast.comprehension, _comprehension),
    (ast.Constant, _constant),
    (ast.BinOp, _arithmetic),
    (ast.Return, _return),
    (ast.Call, _call),
    ((ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Delete, ast.Break, ast.Continue), _statement),
)
