"""A compiled model makes the update of the plain one; a file of its own, because compiling may take minutes."""

import pytest

from harness import make_trainer, relative_error, update


@pytest.mark.slow
def test_compiled_model_makes_the_same_update(tmp_path, device):
    """On a CPU without Inductor, which would compile C++ for a minute."""
    plain = update(make_trainer(tmp_path / "plain", use_cpu=device == "cpu"))
    backend = "aot_eager" if device == "cpu" else "inductor"
    options = {"torch_compile": True, "torch_compile_backend": backend}
    compiled = update(make_trainer(tmp_path / "compiled", use_cpu=device == "cpu", **options))
    assert relative_error(compiled, plain) < 1e-3
