"""The Triton kernels on GPUs that are not here: what a training run launches is compiled, and fits."""

import ast
import importlib.util
import os
import sys
from pathlib import Path

import pytest

import srpo_trl

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if "TRITON_INTERPRET" in os.environ:
    pytest.skip("the interpreter does not compile", allow_module_level=True)

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # benchmarks are no part of the installed package

from benchmarks import kernels

PACKAGE = Path(srpo_trl.__file__).parent


@pytest.fixture(scope="module")
def launches():
    return kernels.recorded(kernels.usual_cases())


def assert_fits(launches, capability):
    found = kernels.compiled(launches, capability)
    for launch, resources, ptx in found:
        assert resources.spill_stores == resources.spill_loads == 0, resources
        assert resources.shared <= kernels.SHARED_MEMORY[capability], resources
        if launch.keywords.get("NARROW"):  # all of a block is read before any of it is overwritten
            assert "bar.sync" in ptx or "bar.warp.sync" in ptx, resources
    return {resources.kernel for _, resources, _ in found}


def test_every_kernel_is_launched(launches):
    launched = {launch.kernel.fn.__name__ for launch in launches}
    missing = set(kernels.kernels()) - launched
    assert not missing, f"no case of benchmarks.kernels launches {missing}: add one that does"
    assert len(launched) >= 5


@pytest.mark.parametrize("capability", kernels.SHARED_MEMORY)
def test_no_kernel_spills_and_its_shared_memory_fits(launches, capability):
    assert assert_fits(launches, capability) == set(kernels.kernels())


@pytest.fixture(scope="module")
def all_launches():
    return kernels.recorded(kernels.all_cases())


@pytest.mark.slow
@pytest.mark.parametrize("capability", kernels.SHARED_MEMORY)
def test_no_kernel_spills_with_any_choice(all_launches, capability):
    assert assert_fits(all_launches, capability) == set(kernels.kernels())


def test_what_spills_is_seen(launches):
    launch = next(each for each in launches if each.kernel.fn.__name__ == "softmax_gradient")
    crowded = launch._replace(keywords=launch.keywords | {"BLOCK": 16_384, "num_warps": 1})
    (found,) = kernels.compiled([crowded], 75)
    assert found.resources.spill_stores > 0
    assert found.resources.spill_loads > 0


def test_table_shows_each_kernel_once(capsys, monkeypatch):
    monkeypatch.setattr(kernels, "usual_cases", lambda: [kernels.Case(kernels.DistillationSpec())])
    assert kernels.main(["--arch", "90"]) == 0
    printed = capsys.readouterr().out
    assert "### sm_90, Hopper (H100)" in printed
    assert "0 of them spill" in printed
    assert printed.count("| topk_loss | ratio divergence=jsd support=tail block=128 |") == 1


# --- Turing ---


def jit_functions():
    """(file, tree) of each function below the package with the decorator `triton.jit`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any(
                "jit" in ast.unparse(d) for d in node.decorator_list
            ):
                yield path.name, node


def test_no_kernel_takes_matrix_products():
    """Newer Triton compiles `tl.dot` for Ampere and later alone."""
    functions = list(jit_functions())
    assert {name for name in kernels.kernels()} <= {node.name for _, node in functions}
    for name, function in functions:
        called = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
        dots = {each for each in called if each.split(".")[-1].startswith("dot")}
        assert not dots, f"{name}: {function.name} calls {dots}"
