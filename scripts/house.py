"""Figures of the house, and their limits: `make house`. Reads source as text; imports nothing of it.

    python scripts/house.py [--all] [--src src/srpo_trl]

Prints one figure a line as `name: value`, with what lies behind it, and ends with 1 where one is above its limit.
"""

import argparse
import ast
import importlib.util
import re
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

# The floors of the house, from the ground up (docs/design.md): an import goes to a floor below, never up or sideways.
FLOORS = (
    ("seams", "runs", "version.py"),
    ("rewards", "loss"),
    ("data", "evaluation", "methods", "teacher"),
    ("config", "rollout"),
    ("host", "logs"),
    ("trainer.py",),
    ("__init__.py", "cli.py", "commands"),
)
CORE = ("rewards", "rollout", "teacher", "loss", "methods")  # stand without a trainer
SHARED_COMMANDS = (
    "inputs",
    "options",
    "config_file",
    "train",
    "curves",
    "curves_plot",
    "report",
)  # that other commands may import
OPERATORS = "loss/ops/"  # kernels: long functions, one interface in several files
# Largest value of each figure that has one.
LIMITS = {
    "files over 400 lines": 0,
    "functions over 60 lines": 0,
    "import cycles at run time": 0,
    "import cycles, type-only imports included": 0,
    "top-level units (folders and single files)": 17,
    "import arrows between top-level units": 45,
    "cycles between top-level units": 0,
    "imports that go up or sideways": 0,
    "trainers in the core": 0,
    "trainer classes": 2,
    "host methods overridden": 22,
    "host methods overridden in more than one class": 0,
    "undeclared third-party imports": 1,
    "modules that do not import on Windows": 0,
    "method named outside methods/": 0,
    "public names defined in more than one file": 0,
}

LONG_FILE = 400
LONG_FUNCTION = 60
METHODS = {
    "srpo",
    "grpo",
    "sdpo",
    "sdpo_failed",
    "sdpo_correct",
    "advantage_mix",
}  # + every file of methods/ but:
NO_METHODS = {
    "__init__",
    "record",
    "routers",
    "groups",
    "tokenwise",
    "schedules",
    "scorers",
    "checks",
    "testing",
}


def main() -> int:
    """Measure the package below `--src`, print, and return how many figures are above their limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--src", default=None)
    parser.add_argument(
        "--all", action="store_true", help="list everything behind a figure, not the first few"
    )
    options = parser.parse_args()
    package = (
        Path(options.src)
        if options.src
        else next(p.parent for p in sorted(Path("src").glob("*/__init__.py")))
    )
    house = House(package)
    show = Show(options.all)

    show("total src lines", sum(house.lines.values()), house.lines_by_unit())
    show("files", len(house.lines))
    show(f"files over {LONG_FILE} lines", *counted([f for f, n in house.lines.items() if n > LONG_FILE]))
    show(f"functions over {LONG_FUNCTION} lines", *counted(house.long_functions()))
    runtime, everything = house.file_graph(type_only=False), house.file_graph(type_only=True)
    show("import cycles at run time", *counted([" ".join(c) for c in cycles(runtime)]))
    show("import cycles, type-only imports included", *counted([" ".join(c) for c in cycles(everything)]))
    arrows = sorted({(house.unit(a), house.unit(b)) for a, targets in everything.items() for b in targets})
    arrows = [(a, b) for a, b in arrows if a != b]
    show("top-level units (folders and single files)", len({house.unit(f) for f in house.lines}))
    show("imports that go up or sideways", *counted(house.wrong_ways(everything)))
    show("trainers in the core", *counted(house.trainers_in_the_core()))
    show("import arrows between top-level units", *counted([f"{a} -> {b}" for a, b in arrows]))
    unit_graph: dict[str, set[str]] = defaultdict(set)
    for a, b in arrows:
        unit_graph[a].add(b)
    show("cycles between top-level units", *counted([" ".join(c) for c in cycles(unit_graph)]))
    show("floors of top-level units", floors(unit_graph))
    bodies = house.host_overrides()
    show("trainer classes", *counted(house.trainer_classes()))
    show("host methods overridden", len(bodies), [f"{sum(map(len, bodies.values()))} bodies"])
    twice = {name: owners for name, owners in bodies.items() if len(owners) > 1}
    show(
        "host methods overridden in more than one class",
        *counted([f"{n}: {', '.join(o)}" for n, o in twice.items()]),
    )
    show("undeclared third-party imports", *counted(house.undeclared()))
    show("modules that do not import on Windows", *counted(house.posix_only()))
    show("method named outside methods/", *counted(house.method_mentions()))
    show("public names defined in more than one file", *counted(house.twins()))
    return show.num_above


class Show:
    """Prints a figure with the first few, or all, of what lies behind it, and counts those above their limits."""

    def __init__(self, everything: bool) -> None:
        self.limit = None if everything else 8
        self.num_above = 0

    def __call__(self, name: str, value: object, behind: list[str] | None = None) -> None:
        """Print one figure."""
        most = LIMITS.get(name)
        is_above = most is not None and isinstance(value, int) and value > most
        self.num_above += is_above
        print(f"{name}: {value}" + (f"  ABOVE THE LIMIT, {most}" if is_above else ""))
        for line in (behind or [])[: self.limit]:
            print(f"    {line}")
        if behind and self.limit and len(behind) > self.limit:
            print(f"    ... {len(behind) - self.limit} more (--all)")


class House:
    """The package's files, parsed once."""

    def __init__(self, package: Path) -> None:
        self.package = package
        self.name = package.name
        files = sorted(p for p in package.rglob("*.py"))
        texts = {self._key(p): p.read_text(encoding="utf-8") for p in files}
        self.lines = {key: text.count("\n") for key, text in texts.items()}
        self.trees = {key: ast.parse(text) for key, text in texts.items()}

    def _key(self, path: Path) -> str:
        return path.relative_to(self.package).as_posix()

    def unit(self, file: str) -> str:
        """Return the top-level folder or file that a file belongs to."""
        return file.split("/")[0]

    def lines_by_unit(self) -> list[str]:
        """Return lines per top-level unit, largest first."""
        sums: Counter[str] = Counter()
        for file, number in self.lines.items():
            sums[self.unit(file)] += number
        return [f"{number:6d} {unit}" for unit, number in sums.most_common()]

    def long_functions(self) -> list[str]:
        """Return functions over LONG_FUNCTION lines, docstring and signature included."""
        found = [
            (node.end_lineno - node.lineno + 1, f"{file}:{node.lineno} {node.name}")
            for file, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
        ]
        return [
            f"{size} {place}"
            for size, place in sorted(found, reverse=True)
            if size > LONG_FUNCTION and not place.startswith(OPERATORS)
        ]

    # ---------------------------------------------------------------- imports

    def _imports(self, file: str) -> Iterator[tuple[str, str | None, bool]]:
        """Yield (module, imported name or None, under TYPE_CHECKING) of every import of a file."""
        type_only = {
            id(inner)
            for node in ast.walk(self.trees[file])
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for statement in node.body
            for inner in ast.walk(statement)
        }
        folder = [self.name, *file.split("/")[:-1]]
        for node in ast.walk(self.trees[file]):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name, None, id(node) in type_only
            elif isinstance(node, ast.ImportFrom):
                base = folder[: len(folder) - node.level + 1] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                for alias in node.names:
                    yield module, alias.name, id(node) in type_only

    def _file_of(self, module: str) -> str | None:
        parts = module.split(".")
        if parts[0] != self.name:
            return None
        stem = "/".join(parts[1:])
        candidates = [f"{stem}.py", f"{stem}/__init__.py"] if stem else ["__init__.py"]
        return next((c for c in candidates if c in self.lines), None)

    def file_graph(self, *, type_only: bool) -> dict[str, set[str]]:
        """Return which file imports which of the package's own files."""
        graph: dict[str, set[str]] = defaultdict(set)
        for file in self.trees:
            for module, name, is_type_only in self._imports(file):
                if is_type_only and not type_only:
                    continue
                target = (name and self._file_of(f"{module}.{name}")) or self._file_of(module)
                if target and target != file:
                    graph[file].add(target)
        return graph

    def wrong_ways(self, graph: dict[str, set[str]]) -> list[str]:
        """Return imports of another unit on the same or a higher floor, and of one command by another."""
        floor_of = {unit: number for number, units in enumerate(FLOORS) for unit in units}
        found = []
        for file, targets in sorted(graph.items()):
            for target in sorted(targets):
                unit, other = self.unit(file), self.unit(target)
                if (
                    unit != other
                    and floor_of.get(other, 99) >= floor_of.get(unit, -1)
                    and "__init__.py"
                    not in (
                        unit,
                        other,
                    )
                ):
                    found.append(f"{file} -> {target}")
                if unit == other == "commands" and command(file) != command(target) not in SHARED_COMMANDS:
                    found.append(f"{file} -> {target}")
        return found

    def trainers_in_the_core(self) -> list[str]:
        """Return imports of TRL, or of a trainer, by what is to stand without one."""
        return [
            f"{file}: {module} {name or ''}".rstrip()
            for file in self.trees
            if self.unit(file) in CORE
            for module, name, _type_only in self._imports(file)
            if module.split(".")[0] == "trl" or (module.startswith("transformers") and name == "Trainer")
        ]

    def _third_party(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for file in self.trees:
            for module, _name, is_type_only in self._imports(file):
                root = module.split(".")[0]
                if root and root != self.name and root not in sys.stdlib_module_names and not is_type_only:
                    found.setdefault(root, file)
        return found

    def undeclared(self) -> list[str]:
        """Return third-party modules whose distribution no dependency or extra in pyproject.toml names."""
        project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = [r for group in project.get("optional-dependencies", {}).values() for r in group]
        declared = {
            normal(re.split(r"[\s\[<>=!~;]", r, maxsplit=1)[0]) for r in [*project["dependencies"], *extras]
        }
        of_module = packages_distributions()
        missing = []
        for module, file in sorted(self._third_party().items()):
            distributions = {normal(d) for d in of_module.get(module, [module])}
            if not distributions & declared:
                missing.append(f"{module} ({file})")
        return missing

    def posix_only(self) -> list[str]:
        """Return files that import, at module level, a standard module that Windows lacks."""
        lacking = {"resource", "fcntl", "pwd", "grp", "termios"}
        return [
            f"{file}: {name}"
            for file, tree in self.trees.items()
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            if name in lacking
        ]

    # ---------------------------------------------------------------- the host trainer

    def _classes(self) -> dict[str, tuple[str, ast.ClassDef]]:
        return {
            node.name: (file, node)
            for file, tree in self.trees.items()
            for node in tree.body
            if isinstance(node, ast.ClassDef)
        }

    def trainer_classes(self) -> list[str]:
        """Return the package's classes that descend from TRL's GRPOTrainer or transformers' Trainer."""
        classes = self._classes()

        def descends(name: str) -> bool:
            if name in ("GRPOTrainer", "Trainer"):
                return True
            return name in classes and any(
                descends(ast.unparse(b).split(".")[-1]) for b in classes[name][1].bases
            )

        return [name for name in classes if descends(name)]

    def host_overrides(self) -> dict[str, list[str]]:
        """Return, per method of the host trainer but __init__, the classes that override it."""
        host = host_methods("trl.trainer.grpo_trainer", "GRPOTrainer") - {"__init__"}
        classes = self._classes()
        owners: dict[str, list[str]] = defaultdict(list)
        for name in self.trainer_classes():
            for node in classes[name][1].body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in host:
                    owners[node.name].append(name)
        return dict(sorted(owners.items()))

    # ---------------------------------------------------------------- names

    def method_mentions(self) -> list[str]:
        """Return places outside methods/ where the code (no docstring) names a method or a `Route`."""
        names = METHODS | {
            Path(f).stem for f in self.lines if f.startswith("methods/") and Path(f).stem not in NO_METHODS
        }
        found = []
        for file, tree in self.trees.items():
            if file.startswith("methods/"):
                continue
            tags = {
                id(inner)
                for node in ast.walk(tree)
                if isinstance(node, ast.Assign)
                and ast.unparse(node.targets[0]) == "_tag_names"  # the hub's tags
                for inner in ast.walk(node)
            }
            for node in ast.walk(tree):
                if id(node) in tags:
                    continue
                is_literal = (
                    isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
                )
                is_route = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "Route"
                if is_literal or is_route:
                    found.append(f"{file}:{node.lineno} {ast.unparse(node)}")
        return found

    def twins(self) -> list[str]:
        """Return public top-level names that more than one file defines, the backends of `ops/` aside."""
        homes: dict[str, set[str]] = defaultdict(set)
        for file, tree in self.trees.items():
            if OPERATORS in file:
                continue
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    homes[node.name].add(file)
        return [
            f"{name}: {', '.join(sorted(files))}" for name, files in sorted(homes.items()) if len(files) > 1
        ]


def command(file: str) -> str:
    """Return the command that a file of commands/ belongs to."""
    return file.removeprefix("commands/").split("/")[0].removesuffix(".py")


def host_methods(module: str, name: str) -> set[str]:
    """Return the methods of a class and its bases, read from their source; nothing is imported."""
    path = source_of(module)
    if path is None:
        return set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = next((n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == name), None)
    if node is None:
        return set()
    methods = {f.name for f in node.body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)}
    origin = {
        alias.asname or alias.name: (absolute(module, path, statement), alias.name)
        for statement in ast.walk(tree)
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    for base in map(ast.unparse, node.bases):
        if base in origin:
            parent, original = origin[base]
            parent = "transformers.trainer" if (parent, original) == ("transformers", "Trainer") else parent
            methods |= host_methods(parent, original)
        elif base != name:
            methods |= host_methods(module, base)
    return methods


def absolute(module: str, path: Path, statement: ast.ImportFrom) -> str:
    """Return the absolute module of a `from ... import`."""
    if not statement.level:
        return statement.module or ""
    parts = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    parts = parts[: len(parts) - statement.level + 1]
    return ".".join([*parts, *([statement.module] if statement.module else [])])


def source_of(module: str) -> Path | None:
    """Return a module's source file without importing it or its package."""
    root, *rest = module.split(".")
    spec = importlib.util.find_spec(root)
    if spec is None or not spec.submodule_search_locations:
        return None
    place = Path(next(iter(spec.submodule_search_locations))).joinpath(*rest)
    return next((p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()), None)


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one node (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for start in sorted({*graph, *(t for targets in graph.values() for t in targets)}):
        if start not in index:
            visit(start)
    return found


def floors(graph: dict[str, set[str]]) -> object:
    """Return the longest chain of imports, in units; nothing where there is a cycle."""
    if cycles(graph):
        return "none (cycle)"
    height: dict[str, int] = {}

    def up(node: str) -> int:
        if node not in height:
            height[node] = 1 + max(map(up, graph.get(node, ())), default=0)
        return height[node]

    return max(map(up, list(graph)), default=1)


def counted(items: list[str]) -> tuple[int, list[str]]:
    """Return how many, and which."""
    return len(items), items


def normal(name: str) -> str:
    """Return a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.setrecursionlimit(10_000)
    sys.exit(bool(main()))
