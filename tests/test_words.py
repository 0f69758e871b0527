"""The field's words: names say what they hold, and docstrings begin with a sentence; the ceilings only fall."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

BARE = frozenset(
    """
    about above after again alike all allowed another answered any anything applied asked at before begun below beside
    besides between beyond both_ bound broken brought built called changed counted cut done drawn due each either ended
    even ever every everybody everyone everything fitted followed for_ found from_ gathered given handed he heard held
    here how in_ it joined just kept knew known laid learnt least less let listed looked lost made many_ marked meant
    measured mentioned met more most moved much named needed neither nobody none nothing now of offered once one_ ones
    only opened others own parted passed place placed prepared promised put read_ received refused remembered removed
    renamed replaced rest said same saw seen sent settled she shown some somebody something spent split_ spoken spread
    started still stopped stored stripped such taken that them then there these they thing things this those thought
    thrown told took tried turned understood unread us usable used waited wanted we what when which who whom whose why
    with_ within without written yet you
    """.replace("_", "").split()
) - {"for", "from", "in", "split", "read", "both", "many", "one", "with"}
"""Participles, pronouns, adverbs and prepositions that name nothing by themselves."""

CEILINGS = {"src": 19, "tests": 1, "benchmarks": 0}
"""Bound names in the list above that a folder may have; lower a number when it has fewer."""


def bound_names(tree: ast.AST, scope: str = "") -> Iterator[tuple[str, str]]:
    """Every (scope, name) that a module binds: parameters, variables, fields, functions, classes and aliases."""
    for node in ast.iter_child_nodes(tree):
        inner = scope
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield scope, name
                inner = f"{scope}.{name}"
            case ast.Lambda() | ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                inner = f"{scope}.{node.lineno}:{node.col_offset}"
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield scope, name
            case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                yield scope, name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield scope.rpartition(".")[0], name
        yield from bound_names(node, inner)


def bare_names(source: str) -> list[str]:
    """The bare names that a module binds, once for each scope."""
    return [
        name
        for _, name in sorted(set(bound_names(ast.parse(source))))
        if name.strip("_") in BARE and not name.startswith("__")
    ]


def test_bare_names_are_seen_wherever_they_are_bound():
    source = """
class Reader:
    told: int
    def __init__(self, found):
        self.kept = [each for each in found]
        self.count = lambda place: place
        with open("x") as given:
            for own in given:
                own = 1
"""
    assert bare_names(source) == ["kept", "told", "found", "given", "own", "each", "place"]


@pytest.mark.parametrize("folder", CEILINGS)
def test_bare_names_only_become_fewer(folder):
    bare = {
        str(file.relative_to(REPOSITORY)): names
        for file in sorted((REPOSITORY / folder).rglob("*.py"))
        # Environments that the benchmarks made are not ours.
        if not any(part.startswith(".") for part in file.relative_to(REPOSITORY).parts)
        if (names := bare_names(file.read_text(encoding="utf-8")))
    }
    count = sum(map(len, bare.values()))
    assert count <= CEILINGS[folder], bare


def public_functions(file: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Every public function and documented method: its name, its node and the docstrings of what it is in."""
    module = ast.parse(file.read_text(encoding="utf-8"))

    def inside(parent: ast.AST, prefix: str, context: str) -> Iterator[tuple[str, ast.FunctionDef, str]]:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from inside(node, f"{node.name}.", context + (ast.get_docstring(node) or ""))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                # A method may take its docstring from the protocol it implements.
                inherits = bool(prefix) and not ast.get_docstring(node)
                if not inherits:
                    yield f"{file.relative_to(REPOSITORY)}:{node.lineno} {prefix}{node.name}", node, context

    yield from inside(module, "", ast.get_docstring(module) or "")


SOURCES = sorted((REPOSITORY / "src" / "penchant").rglob("*.py"))


def test_docstrings_begin_with_a_sentence():
    fragments = []
    for file in SOURCES:
        for name, node, _ in public_functions(file):
            first_paragraph = (ast.get_docstring(node) or "").split("\n\n")[0].strip()
            words = first_paragraph.split()
            if len(words) < 3 or not first_paragraph.endswith((".", ":")) or words[0] in {"Of", "As", "With"}:
                fragments.append(f"{name}: {first_paragraph}")
    assert not fragments, "\n".join(fragments)


def test_tensors_have_shapes():
    """A public function that takes or gives tensors says their shapes, itself or where it stands."""
    silent = []
    for file in SOURCES:
        for name, node, context in public_functions(file):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            annotations = [argument.annotation for argument in arguments if argument.annotation] + [node.returns]
            typed = " ".join(ast.unparse(annotation) for annotation in annotations if annotation)
            documented = (ast.get_docstring(node) or "") + context
            if re.search(r"\bTensor\b", typed) and not re.search(
                r"\[[A-Z0-9.]|scalar|shape", documented, re.IGNORECASE
            ):
                silent.append(name)
    assert not silent, "\n".join(silent)
