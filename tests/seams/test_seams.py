"""TRL's inside is named in one file, and whatever moves there is reported by name at import."""

import ast
import inspect
from pathlib import Path

import pytest
import trl
from trl import GRPOTrainer

import srpo_trl
from srpo_trl.seams import trl as trl_seams
from srpo_trl.trainer import SRPOTrainer

PACKAGE = Path(srpo_trl.__file__).parent
PUBLIC_MODULES = ("trl", "trl.rewards")  # what TRL documents
OUR_TRAINERS = SRPOTrainer.__mro__[: SRPOTrainer.__mro__.index(GRPOTrainer)]


def report(monkeypatch, source=None):
    """What `check` says about the installed TRL, or about one whose GRPOTrainer has the given source."""
    if source is not None:
        monkeypatch.setattr(inspect, "getsource", lambda owner: source)
    with pytest.raises(ImportError) as error:
        trl_seams.check()
    text = str(error.value)
    assert text.startswith("srpo_trl does not fit the installed TRL:\n- ")
    assert "Install TRL >=1.16.0,<1.17.0" in text
    return [line.removeprefix("- ") for line in text.splitlines()[1:-1]]


def test_installed_trl_has_every_seam():
    trl_seams.check()


@pytest.mark.parametrize("name", sorted(trl_seams.METHODS))
def test_a_method_that_is_gone_is_named(monkeypatch, name):
    class Without:
        def __get__(self, owner, kind=None):
            raise AttributeError(name)

    source = inspect.getsource(GRPOTrainer)
    monkeypatch.setattr(GRPOTrainer, name, Without())
    assert report(monkeypatch, source) == [f"GRPOTrainer.{name} is gone"]


@pytest.mark.parametrize("name", sorted(trl_seams.METHODS))
def test_a_changed_signature_is_shown_beside_the_expected_one(monkeypatch, name):
    def changed(self, something_else, **kwargs):
        pass

    source = inspect.getsource(GRPOTrainer)
    monkeypatch.setattr(GRPOTrainer, name, changed)
    (problem,) = report(monkeypatch, source)
    assert problem.startswith(f"GRPOTrainer.{name} takes ('self', 'something_else'")
    assert problem.endswith(f"expected {trl_seams.METHODS[name]}")


def test_a_further_optional_parameter_is_no_break(monkeypatch):
    def longer(self, generation_batch, more=None):
        pass

    monkeypatch.setattr(GRPOTrainer, "_prepare_inputs", longer)
    trl_seams.check()


@pytest.mark.parametrize("name", trl_seams.ATTRIBUTES)
def test_an_attribute_that_is_gone_is_named(monkeypatch, name):
    renamed = inspect.getsource(GRPOTrainer).replace(f"self.{name}", "self.moved")
    assert f"GRPOTrainer sets no self.{name}" in report(monkeypatch, renamed)


@pytest.mark.parametrize("key", trl_seams.BATCH_KEYS)
def test_a_batch_key_that_is_gone_is_named(monkeypatch, key):
    renamed = inspect.getsource(GRPOTrainer).replace(f'"{key}"', '"moved"')
    assert report(monkeypatch, renamed) == [f"GRPOTrainer's batch has no {key!r}"]


def test_a_head_whose_forward_is_made_otherwise_is_reported(monkeypatch):
    """A copy of the model would compute with the first one's weights."""

    def other_init(self):
        pass

    source = inspect.getsource(GRPOTrainer)
    monkeypatch.setattr(trl_seams, "add_fused_lm_head", lambda model: None)
    assert report(monkeypatch, source) == ["add_fused_lm_head keeps no 'original_forward'"]
    monkeypatch.undo()
    monkeypatch.setattr(GRPOTrainer, "__init__", other_init)
    assert report(monkeypatch, source) == [
        "cast_lm_head_to_fp32 gives the LM head no forward that keeps 'lm_head'"
    ]


@pytest.mark.parametrize(("name", "gone"), [("_TAKES_LABELLED", "_use_tiles"), ("_SCORING", "_ScoreTokens")])
def test_a_head_that_chooses_or_scores_its_positions_otherwise_is_reported(monkeypatch, name, gone):
    monkeypatch.setattr(trl_seams, name, gone)
    assert report(monkeypatch) == [f"add_fused_lm_head's forward uses no {gone!r}"]


def test_a_head_that_scores_from_other_inputs_is_reported(monkeypatch):
    class Other:
        @staticmethod
        def forward(ctx, weight, hidden, bias):
            pass

    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", Other)
    assert report(monkeypatch) == [
        "_ChunkedLogProbFunction does not take ('ctx', 'hidden', 'weight', 'bias')"
    ]


def test_a_loss_that_does_not_call_the_fused_head_is_reported(monkeypatch):
    renamed = inspect.getsource(GRPOTrainer).replace("fused_lm_head=True", "")
    assert report(monkeypatch, renamed) == ["GRPOTrainer does not call its fused LM head"]


@pytest.mark.parametrize("version", ["1.15.2", "1.16.0.dev0", "1.17.0", "2.3.1"])
def test_a_version_outside_the_range_is_named_with_the_range(monkeypatch, version):
    monkeypatch.setattr(trl, "__version__", version)
    assert report(monkeypatch) == [f"TRL {version} is outside the supported range >=1.16.0,<1.17.0"]


@pytest.mark.parametrize("version", ["1.16.0", "1.16.9"])
def test_a_version_inside_the_range_passes(monkeypatch, version):
    monkeypatch.setattr(trl, "__version__", version)
    trl_seams.check()


def test_all_breaks_come_in_one_message(monkeypatch):
    source = inspect.getsource(GRPOTrainer).replace('"completion_mask"', "").replace("self._step", "")
    monkeypatch.setattr(trl, "__version__", "9.0")
    assert len(report(monkeypatch, source)) == 3


# ------------------------------------------------------------------ nothing passes by this one file


def modules():
    return {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def trl_imports(path):
    """Every module and every name that a file imports of TRL, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == "trl")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "trl":
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("name", [name for name in modules() if name != "seams/trl.py"])
def test_no_other_module_imports_trls_inside(name):
    private = [
        f"{module}.{imported}" if imported else module
        for module, imported in trl_imports(modules()[name])
        if module not in PUBLIC_MODULES or (imported or "").startswith("_")
    ]
    assert not private, f"{name} imports {private}; import from srpo_trl.seams.trl, which checks them"


def test_the_seams_offer_what_they_import():
    imported = {
        name for module, name in trl_imports(PACKAGE / "seams" / "trl.py") if module != "trl" and name
    }
    assert imported
    assert imported <= set(trl_seams.__all__)


def test_every_overridden_method_is_a_seam():
    overridden = {
        name
        for trainer in OUR_TRAINERS
        for name, member in vars(trainer).items()
        if inspect.isfunction(member) and hasattr(GRPOTrainer, name) and name != "__init__"
    }
    assert overridden <= set(trl_seams.METHODS)


def test_every_private_attribute_that_is_read_is_ours_or_a_seam():
    read, ours = set(), set()
    for trainer in OUR_TRAINERS:
        ours |= set(vars(trainer))
        tree = ast.parse(inspect.getsource(trainer))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "self":
                read.add(node.attr)
                if isinstance(node.ctx, ast.Store):
                    ours.add(node.attr)
    private = {name for name in read if name.startswith("_") and not name.startswith("__")}
    assert private - ours <= set(trl_seams.ATTRIBUTES) | set(trl_seams.METHODS)
