"""Python blocks of the docs run, page by page, without a GPU, or say in their first line what they need."""

import ast
import builtins
import json
import re
from pathlib import Path

import pytest

from srpo_trl import SRPOTrainer
from srpo_trl.data.smoke_model import save_tiny_random_qwen3

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```py(?:thon)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HUB_MODEL = re.compile(r'"[\w.-]+/[\w.-]+-\d[\d.]*[BM][\w.-]*"')
PAGES = [page for page in sorted(DOCS.glob("*.md")) if BLOCK.search(page.read_text(encoding="utf-8"))]
NEEDS, GPU = "# needs ", "# needs a GPU with bf16"


def names(block):
    """Names that a block reads, and those that it makes."""
    read, made = set(), set()
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).split(".")[0])
    return read, made


def missing(block, known):
    """Names that a block reads and neither makes nor finds."""
    read, made = names(block)
    return read - made - known - set(dir(builtins))


def test_names_that_a_block_lacks_are_found():
    assert missing("import a.b\nfrom c import d as e\nx = [n for n in a(e)]\nprint(x, y)", {"k"}) == {"y"}
    assert missing("def f(p, *q, **r):\n    return p + z\nf(k)", {"k"}) == {"z"}


@pytest.fixture
def one_step(monkeypatch):
    """Trainers stop after one optimizer step."""
    train = SRPOTrainer.train
    trained = []

    def once(self, *args, **kwargs):
        self.args.max_steps, self.max_completion_length = 1, 8
        result = train(self, *args, **kwargs)
        trained.append(self.state.global_step)
        return result

    monkeypatch.setattr(SRPOTrainer, "train", once)
    return trained


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The current folder, with rows in the form of the published benchmarks, and of GSM8K for the hub's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *_, **__: [{"question": "1 + 1?", "answer": "#### 2"}] * 8
    )
    chemistry = tmp_path / "data" / "sciknoweval" / "chemistry"
    chemistry.mkdir(parents=True)
    row = {"system": "Answer with a letter.", "prompt": "How many?\n\nA: 1\nB: 2", "answer": "A"}
    (chemistry / "train.json").write_text((json.dumps(row) + "\n") * 8)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_or_say_what_they_need(page, data, monkeypatch, one_step):
    model = data / "model"
    known: dict[str, object] = {}
    expected = 0
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        first = block.splitlines()[0]
        needed = set(re.findall(r"\w+", first)) if first.startswith(NEEDS) else set()
        assert missing(block, set(known)) <= needed, f"{page.name} does not say that it needs these"
        if needed and not first.startswith(GPU):
            continue
        if HUB_MODEL.search(block) and not model.exists():
            save_tiny_random_qwen3(model)
        expected += block.count(".train(")
        with monkeypatch.context() as patched:
            if first.startswith(GPU):
                for module in ("srpo_trl.config.inherited", "transformers.training_args"):
                    patched.setattr(f"{module}.is_torch_bf16_gpu_available", lambda: True)
            exec(compile(HUB_MODEL.sub(repr(str(model)), block), page.name, "exec"), known)
    assert one_step == [1] * expected
