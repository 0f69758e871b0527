"""Does a test notice? Every small wrong change to `objectives/` must make one fail.

    python benchmarks/mutate_objectives.py [--only dpo kto] [--kinds "change a constant"] [--jobs 2]

Each mutant is one change to one file: a sign flipped, a factor (beta, a weight) dropped, candidates swapped, a mask
dropped or another one in its place, a comparison turned or its edge moved, a `detach` or a bound taken out, a number
rounded otherwise, a constant changed, two dictionaries merged the other way. The tests of `tests/objectives` run
against a copy of the package that holds it; a mutant that passes them all has survived. Exits 1 if any did.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("penchant/objectives")
SKIPPED = {"__init__.py", "base.py"}
"""The protocol and the registry hold no formula."""

EDGES: Mapping[type[ast.cmpop], type[ast.cmpop]] = {ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Lt: ast.LtE, ast.LtE: ast.Lt}
OPTIONS = {"sum": "mean", "mean": "sum", "groups": "pairs", "pairs": "groups"}
"""Arguments that choose how something is averaged, and what else they could be."""

TESTED_BY = {
    "decisions": "ddo_rm",
    "references": "multi_reference",
    "sft": "pairs",
    "weighted_sum": "pairs",
}
"""Files whose tests are in another's file."""

LOOKUPS = {"state", "after", "metrics", "counts"}
"""Dictionaries: what they are indexed by is no mask."""

TINY, HUGE = 1e-20, 1e20
"""Numbers beyond them keep 0 out of a denominator or a probability at 0; another such number does the same."""

Way = tuple[str, Callable[[ast.AST], ast.AST | None]]


@dataclass(frozen=True)
class Mutant:
    """One change: the file, its line, what was done, and the whole mutated source."""

    file: str
    line: int
    kind: str
    change: str
    source: str


def mutants(file: Path) -> Iterator[Mutant]:
    """Every mutant of a file."""
    source = file.read_text(encoding="utf-8")
    tree = ast.parse(source)
    masks = {id(node): other_masks for function in ast.walk(tree) for node, other_masks in _masks(function)}
    # A node is found again in a fresh copy by its place in the walk.
    for index, node in enumerate(ast.walk(tree)):
        swaps = [("swap a mask", _replacing(mask)) for mask in masks.get(id(node), ())]
        for kind, mutate in [*_ways(node), *_edge_ways(node), *swaps]:
            copy = ast.parse(source)
            target = list(ast.walk(copy))[index]
            source_before = ast.unparse(target)
            mutated = mutate(target)
            if mutated is None or (source_after := ast.unparse(mutated)) == source_before:
                continue
            _replace(copy, target, mutated)
            ast.fix_missing_locations(copy)
            yield Mutant(
                file.name, getattr(node, "lineno", 0), kind, f"{source_before}  ->  {source_after}", ast.unparse(copy)
            )


def _masks(function: ast.AST) -> Iterator[tuple[ast.AST, list[str]]]:
    """A function's masks (what `where` or an index goes by), each with the others that could stand in its place."""
    if not isinstance(function, ast.FunctionDef):
        return
    expressions: list[ast.AST] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "where" and len(node.args) == 3:
            expressions.append(node.args[0])
        indexed = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load)
        if indexed and not _is_lookup(node.value):
            expressions.append(node.slice)
    masks = [node for node in expressions if isinstance(node, (ast.Name, ast.Attribute))]
    names = sorted({ast.unparse(mask) for mask in masks})
    for mask in masks:
        yield mask, [name for name in names if name != ast.unparse(mask)]


def _is_lookup(node: ast.expr) -> bool:
    name = getattr(node, "attr", getattr(node, "id", ""))
    return name in LOOKUPS or name.isupper()


def _replacing(expression: str) -> Callable[[ast.AST], ast.AST]:
    return lambda node: ast.parse(expression, mode="eval").body


def _edge_ways(node: ast.AST) -> Iterator[Way]:
    """Changes at the edge of a value: a comparison's, a bound's, a rounding's, a constant's, a merge's."""
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            if type(operator) in EDGES:
                yield "move an edge", _with_operator(index, EDGES[type(operator)]())
    if isinstance(node, ast.Constant) and isinstance(node.value, float) and _matters(node.value):
        yield "change a constant", lambda n: ast.Constant(n.value * 2)
    if isinstance(node, ast.Dict) and node.keys == [None, None]:
        yield "merge the other way", lambda n: ast.Dict(n.keys, n.values[::-1])
    if isinstance(node, ast.Call):
        yield from _edge_call_ways(node)


def _edge_call_ways(node: ast.Call) -> Iterator[Way]:
    bounds = [word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)]
    if getattr(node.func, "attr", "") == "clamp" and all(limit == 0 or _matters(limit) for limit in bounds):
        yield "drop a bound", lambda n: n.func.value
    if getattr(node.func, "id", "") == "int" and isinstance(node.args[0], ast.BinOp):
        yield "round otherwise", lambda n: ast.Call(ast.Name("round", ast.Load()), n.args, [])
    for index, argument in enumerate(node.args):
        if isinstance(argument, ast.Constant) and argument.value in OPTIONS:
            yield "change a constant", _with_argument(index, OPTIONS[argument.value])


def _matters(value: float) -> bool:
    return TINY < abs(value) < HUGE


def _with_operator(index: int, operator: ast.cmpop) -> Callable[[ast.AST], ast.AST]:
    return lambda n: ast.Compare(n.left, [*n.ops[:index], operator, *n.ops[index + 1 :]], n.comparators)


def _with_argument(index: int, value: str) -> Callable[[ast.AST], ast.AST]:
    return lambda n: ast.Call(n.func, [*n.args[:index], ast.Constant(value), *n.args[index + 1 :]], n.keywords)


def _ways(node: ast.AST) -> Iterator[Way]:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield "flip a sign", lambda n: n.operand
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
        yield "flip a sign", lambda n: ast.BinOp(n.left, ast.Sub() if isinstance(n.op, ast.Add) else ast.Add(), n.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Div)):
        yield "drop a factor", lambda n: n.left
        if isinstance(node.op, ast.Mult):
            yield "drop a factor", lambda n: n.right
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], (ast.Gt, ast.Lt)):
        opposite = ast.Lt() if isinstance(node.ops[0], ast.Gt) else ast.Gt()
        yield "turn a comparison", lambda n: ast.Compare(n.left, [opposite], n.comparators)
    if isinstance(node, ast.Call):
        yield from _call_ways(node)
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) and len(node.slice.elts) == 3:
        group, second, third = node.slice.elts
        if _is_none(second) != _is_none(third):
            yield "swap candidates", lambda n: ast.Subscript(n.value, ast.Tuple([group, third, second]), n.ctx)


def _call_ways(node: ast.Call) -> Iterator[Way]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name == "where" and len(node.args) == 3 and isinstance(node.func, ast.Attribute):
        yield "drop a mask", lambda n: n.args[1]
    if name in ("any", "sum", "logsumexp") and len(node.args) == 1 and isinstance(node.args[0], ast.Constant):
        other = {1: 2, 2: 1}.get(node.args[0].value)
        if other is not None:
            yield "swap candidates", lambda n: ast.Call(n.func, [ast.Constant(other)], n.keywords)
    if name == "detach" and isinstance(node.func, ast.Attribute):
        yield "drop a detach", lambda n: n.func.value
    if name == "differences":
        yield "flip a sign", lambda n: ast.UnaryOp(ast.USub(), n)
    if name == "logsigmoid":
        yield "flip a sign", lambda n: ast.Call(n.func, [ast.UnaryOp(ast.USub(), n.args[0])], n.keywords)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _replace(tree: ast.AST, target: ast.AST, mutated: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is target:
                setattr(parent, name, mutated)
                return
            if isinstance(value, list) and any(item is target for item in value):
                setattr(parent, name, [mutated if item is target else item for item in value])
                return


def survives(mutant: Mutant) -> bool:
    """Whether all tests pass with the mutant in the package."""
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "penchant"
        shutil.copytree(ROOT / "src" / "penchant", package)
        (Path(scratch) / FOLDER / mutant.file).write_text(mutant.source, encoding="utf-8")
        tests = ROOT / "tests" / "objectives"
        name = Path(mutant.file).stem
        nearest = tests / f"test_{TESTED_BY.get(name, name)}.py"
        # The nearest tests first, then the ranges and the formulas: most mutants end there.
        nearest_files = [
            file for file in (nearest, tests / "test_ranges.py", tests / "test_formulas.py") if file.exists()
        ]
        return all(_passes(scratch, [str(file)]) for file in (*nearest_files, tests))


def _try(mutant: Mutant) -> bool:
    lived = survives(mutant)
    fate = "SURVIVED" if lived else "killed"
    print(f"{fate} {mutant.file}:{mutant.line} {mutant.kind}: {mutant.change}", file=sys.stderr, flush=True)
    return lived


def _passes(scratch: str, files: list[str]) -> bool:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
                sys.path.insert(0, scratch)
                code = _run_tests(files)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def _run_tests(files: list[str]) -> int:
    import pytest

    quiet = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", "-W", "ignore"]
    return int(pytest.main([*quiet, "--rootdir", str(ROOT), *files]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="names of files, without .py")
    parser.add_argument("--kinds", nargs="*", default=[], help="of changes, as the table names them")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    # The children inherit what takes long to import.
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    if any(name.startswith("penchant") for name in sys.modules):
        raise SystemExit("penchant is imported already: the children would not see the mutants")
    files = sorted(file for file in (ROOT / "src" / FOLDER).glob("*.py") if file.name not in SKIPPED)
    all_mutants = [m for file in files if not options.only or file.stem in options.only for m in mutants(file)]
    all_mutants = [m for m in all_mutants if not options.kinds or m.kind in options.kinds]
    if not survives(Mutant(files[0].name, 0, "", "", files[0].read_text(encoding="utf-8"))):
        raise SystemExit("the tests fail without any change: every mutant would seem killed")
    with ThreadPoolExecutor(options.jobs) as pool:
        alive = list(pool.map(_try, all_mutants))
    print("| file | kind | mutants | killed |")
    print("| --- | --- | ---: | ---: |")
    for key in sorted({(m.file, m.kind) for m in all_mutants}):
        fates = [lived for m, lived in zip(all_mutants, alive, strict=True) if (m.file, m.kind) == key]
        print(f"| {key[0]} | {key[1]} | {len(fates)} | {len(fates) - sum(fates)} |")
    print(f"\n{len(all_mutants)} mutants, {len(all_mutants) - sum(alive)} killed")
    for mutant, lived in zip(all_mutants, alive, strict=True):
        if lived:
            print(f"SURVIVED {mutant.file}:{mutant.line} {mutant.kind}: {mutant.change}")
    return int(any(alive))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
