"""README and docs against the code: options, metrics, names, links, commands, and snippets that really run."""

import ast
import dataclasses
import importlib
import json
import re
import shlex
from functools import cache, reduce
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from trl import GRPOConfig, ModelConfig

from method_names import PAPER
from srpo_trl import SRPOConfig
from srpo_trl.commands import evaluate as command
from srpo_trl.commands.compare import command as compare_command
from srpo_trl.commands.launch import launcher_options, profile_path, read_launch
from srpo_trl.commands.methods import describe
from srpo_trl.commands.plan import arguments as memory_arguments
from srpo_trl.commands.report import command as report_command
from srpo_trl.commands.train import TrainArguments, read_arguments
from srpo_trl.config.options import TEACHER_SOURCES
from srpo_trl.config.rules import JOINT_DENOMINATOR_LOSSES
from srpo_trl.data.smoke_model import save_tiny_random_qwen3
from srpo_trl.host.callbacks import PEAK_MEMORY
from srpo_trl.logs.metrics import RATIOS, SUMS, metrics_from_sums
from srpo_trl.methods import METHODS, WEIGHTED
from srpo_trl.methods.record import ROUTE_NAMES, Graded
from srpo_trl.methods.routers import ROUTERS, scored_routes
from srpo_trl.runs.log import TRAINING_SECONDS
from srpo_trl.version import __version__

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
ROUTINGS = get_args(get_type_hints(SRPOConfig)["routing"])
PACKAGE = ROOT / "src" / "srpo_trl"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

Table = list[dict[str, str]]


def by_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(path: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(path.read_text(encoding="utf-8")) if kind == language]


def tables(name: str) -> list[Table]:
    """Every table of a page, rows by column heading."""
    found = []
    for text in re.findall(r"(?:^\|.*\|\n)+", FENCE.sub("", page(name)), re.MULTILINE):
        head, rule, *rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line[1:-1])] for line in text.splitlines()
        ]
        assert all(set(cell) <= set("-:") for cell in rule), head
        assert all(len(row) == len(head) for row in rows), f"{name}: a row of {head} has another width"
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def rows_with(name: str, *columns: str) -> Table:
    return [row for table in tables(name) if table and set(columns) <= set(table[0]) for row in table]


def code(cell: str) -> str:
    """The cell's first code span."""
    return re.findall(r"`([^`]+)`", cell)[0]


def default_of(config: type, name: str) -> Any:
    if config is SRPOConfig and name in WEIGHTED:
        return WEIGHTED[name]
    field = config.__dataclass_fields__[name]
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


# ------------------------------------------------------------------ options


def test_every_option_is_documented_with_its_default():
    documented = {
        code(row["option"]): ast.literal_eval(code(row["default"]))
        for row in rows_with("docs/options.md", "option", "default", "range", "reason")
    }
    ours = {f.name for f in dataclasses.fields(SRPOConfig)} - set(GRPOConfig.__dataclass_fields__)
    assert documented == {name: default_of(SRPOConfig, name) for name in ours}


def test_every_changed_default_is_documented():
    documented = {
        code(row["option"]): tuple(
            ast.literal_eval(code(row[f"{whose} default"])) for whose in ("TRL's", "SRPO's")
        )
        for row in rows_with("docs/options.md", "TRL's default")
    }
    changed = {}
    for name in GRPOConfig.__dataclass_fields__:
        theirs, ours = default_of(GRPOConfig, name), default_of(SRPOConfig, name)
        if theirs != ours:
            changed[name] = (theirs, ours)
    assert documented == changed


def test_every_training_option_is_documented_with_its_default():
    documented = {
        code(row["option"]): ast.literal_eval(code(row["default"]))
        for row in rows_with("docs/options.md", "option", "default", "meaning")
    }
    assert documented == {
        f.name: default_of(TrainArguments, f.name) for f in dataclasses.fields(TrainArguments)
    }


def test_values_of_choices_are_documented():
    ranges = {
        code(row["option"]): re.findall(r'`"([^"]+)"`', row["range"])
        for row in rows_with("docs/options.md", "option", "range")
    }
    assert ranges["routing"] == list(ROUTERS)
    assert ranges["teacher_context"] == list(TEACHER_SOURCES)


def test_the_page_of_methods_has_each_once_with_its_source():
    named = [
        (name, row["source"])
        for row in rows_with("docs/methods.md", "`method`", "source")
        for name in re.findall(r"`(\w+)`", row["`method`"])
    ]
    assert sorted(name for name, _ in named) == sorted(METHODS)
    words = {"F": "the paper", "C": "the authors' code", "S": "secondary sources", "A": "the abstract alone"}
    for name, source in named:
        said = describe(METHODS[name].factory)
        assert re.findall(r"\d{4}\.\d{5}", source) == re.findall(r"\d{4}\.\d{5}", said.paper), name
        sources = said.paragraphs[-1].partition(".")[0]
        tags = {tag for tag, word in words.items() if word in sources}
        assert set(re.findall(r"\[([FCSA])\]", source)) == tags, name


def test_accepted_loss_types_are_the_documented_ones():
    refused = next(r for r in rows_with("docs/options.md", "what", "with") if "loss_type" in r["what"])
    assert tuple(re.findall(r'`"(\w+)"`', refused["what"])) == JOINT_DENOMINATOR_LOSSES
    for loss_type in re.findall(r'`"(\w+)"`', refused["why, and the remedy"].split("have no")[0]):
        with pytest.raises(ValueError, match="joint token denominator"):
            SRPOConfig(output_dir="unused", use_cpu=True, bf16=False, loss_type=loss_type)


@pytest.mark.parametrize("row", range(len(PAPER)))
def test_table_of_routes_is_what_the_router_does(row):
    import torch

    documented = rows_with("docs/options.md", "`method`", "no score")[row]
    words = {"policy": "GRPO", "distilled": "distilled", "both": "both", "skipped": "nothing"}
    cases = {
        "correct, teacher information": (True, True, True),
        "correct, none": (True, True, False),
        "failed, teacher information": (True, False, True),
        "failed, none": (True, False, False),
        "no score": (False, False, True),
    }
    for column, (is_scored, is_correct, has_teacher) in cases.items():
        cell = documented[column].split(",")[0]
        if cell == "as `GRPOTrainer`":
            continue  # no routes there
        verdicts = [torch.tensor([[verdict]]) for verdict in (is_scored, is_correct, has_teacher)]
        name = code(documented["`method`"]).strip('"')
        method = SRPOConfig("unused", use_cpu=True, bf16=False, method=name).method_record
        route = scored_routes(method.route, Graded(torch.tensor([[0.0]]), *verdicts, step=0))
        assert cell == words[ROUTE_NAMES[route.item()]], (documented["`method`"], column)


# ------------------------------------------------------------------ metrics


@cache
def known_metrics() -> frozenset[str]:
    """Those of `RATIOS`, those that are derived from several sums, and the cost of the run."""
    return frozenset(metrics_from_sums(dict.fromkeys(SUMS, 1.0))) | {TRAINING_SECONDS, PEAK_MEMORY}


def test_every_metric_is_documented_once():
    assert set(RATIOS) < known_metrics()
    documented = [code(row["metric"]) for row in rows_with("docs/metrics.md", "metric", "unit", "formula")]
    assert sorted(documented) == sorted(known_metrics())
    for row in rows_with("docs/metrics.md", "metric", "unit", "formula"):
        assert row["unit"], row
        assert row["formula"], row
        assert row["what moves it"], row


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_no_unknown_metric_is_named(path):
    named = set(re.findall(r"\bsrpo/[a-z_]+(?:/[a-z_]+)?", path.read_text(encoding="utf-8")))
    assert named <= known_metrics()


# ------------------------------------------------------------------ names, links, commands


@cache
def definitions(path: Path) -> frozenset[str]:
    """Names of functions, classes and imported names of a Python file, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
    return frozenset(names)


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_every_link_leads_to_a_file_that_has_what_it_names(path):
    for text, target in re.findall(
        r"\[([^\]]+)\]\(([^)\s]+)\)", FENCE.sub("", path.read_text(encoding="utf-8"))
    ):
        if target.startswith("https://"):
            continue
        file = (path.parent / target.split("#")[0]).resolve()
        assert file.is_relative_to(ROOT), target
        assert file.exists(), target
        named = text.strip("`")
        if file.suffix == ".py":
            name = named.rpartition(".")[2]
            assert name in definitions(file), f"{target} does not define {name}"


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_every_path_in_code_spans_exists(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for span in re.findall(r"`((?:configs|tests|docs|src)/[\w./]+)`", text):
        assert (ROOT / span).exists(), span


def resolve(name: str) -> Any:
    """The object of a dotted name: the longest module of it, then attributes."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[length:], module)
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_every_dotted_name_of_the_package_exists(path):
    for name in set(re.findall(r"`(srpo_trl(?:\.\w+)+)`", path.read_text(encoding="utf-8"))):
        resolve(name)


def test_every_formula_has_a_function_and_a_test():
    rows = rows_with("docs/maths.md", "function", "test")
    assert len(rows) > 30
    for row in rows:
        assert re.search(r"\[`srpo_trl\.[\w.]+`\]\(\.\./src/srpo_trl/", row["function"]), row
        assert re.search(r"\[`test_\w+`\]\(\.\./tests/\w+/test_\w+\.py\)", row["test"]), row


def test_the_tree_has_a_line_for_every_file_of_the_package():
    tree = blocks(ROOT / "CONTRIBUTING.md", "")[0]
    outside, inside = tree.split("src/srpo_trl/\n")
    described = re.findall(r"^  (\S+)  +\S", inside, re.MULTILINE)
    entries = [p for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    assert sorted(described) == sorted(p.name + ("/" if p.is_dir() else "") for p in entries)
    assert len(inside.splitlines()) == len(described)
    for line in outside.splitlines():
        for name in line.split("  ")[:1] if not line.startswith("README") else line.split():
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_make_targets_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", page("Makefile"), re.MULTILINE))
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"`make ([a-z-]+)", text)
    named += [
        target
        for block in blocks(path, "sh")
        for target in re.findall(r"^make ([a-z-]+)", block, re.MULTILINE)
    ]
    assert set(named) <= targets
    if path == README:
        assert {"quickstart", "test"} <= set(named)


def test_citation_has_the_packages_version_and_the_papers_title():
    citation = yaml.safe_load(page("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == __version__
    assert citation["license"] == "Apache-2.0"
    assert {"message", "title", "authors"} <= set(citation)
    reference = citation["references"][0]
    assert f"{{{{{reference['title']}}}}}" in page("README.md")
    assert reference["url"] in page("README.md")
    for author in reference["authors"]:
        assert f"{author['given-names']} {author['family-names']}" in " ".join(page("README.md").split())


# ------------------------------------------------------------------ what can be run


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_python_blocks_compile(path):
    for block in blocks(path, "python"):
        compile(block, by_name(path), "exec")


def test_the_readmes_six_lines_train(tmp_path, monkeypatch):
    snippet = blocks(README, "python")[0]
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 6
    row = {"question": "What is 1 + 1?", "answer": "Twice 1.\n#### 2"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    replaced = {
        '"train"': f"name_or_path={str(tmp_path / 'rows.jsonl')!r}",
        '"Qwen/Qwen2.5-0.5B-Instruct"': repr(str(save_tiny_random_qwen3(tmp_path / "model"))),
    }
    for text, stand_in in replaced.items():
        assert snippet.count(text) == 1, text
        snippet = snippet.replace(text, stand_in)
    from srpo_trl import SRPOTrainer

    trained = []
    train = SRPOTrainer.train

    def remember(self, *args, **kwargs):
        trained.append(self)
        self.args.max_steps, self.max_completion_length = 1, 8
        return train(self, *args, **kwargs)

    monkeypatch.setattr(SRPOTrainer, "train", remember)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})
    assert trained[0].state.global_step == 1
    assert trained[0].args.method == "srpo"


def test_reward_example_runs_as_it_says(capsys):
    reward_block = blocks(ROOT / "docs" / "rewards.md", "python")[0]
    names: dict[str, Any] = {}
    exec(compile(reward_block, "rewards.md", "exec"), names)
    call, expected = re.findall(r"^print\((.*)\)  # (.*)$", reward_block, re.MULTILINE)[0]
    assert capsys.readouterr().out.strip() == expected
    logged: dict[str, list] = {}
    chat = [[{"role": "assistant", "content": "level up"}], [{"role": "assistant", "content": "42"}]]
    rewards = names["palindrome_reward"](chat, [1, 1], log_extra=logged.__setitem__, prompts=["", ""])
    assert rewards == [0.0, 0.0]
    assert logged == {"feedback": ["Read backwards it is 'pulevel'.", "The answer has no letters."]}
    assert call.startswith("palindrome_reward(")


def test_the_pages_rubric_grades():
    (block,) = blocks(ROOT / "docs" / "rewards.md", "py")
    names: dict[str, Any] = {}
    exec(compile(block, "rewards.md", "exec"), names)
    assert names["by_rubric"](["?"] * 2, ["The law says 3 meter.", "By law."]) == [1.0, 0.75]


def commands(path: Path) -> list[list[str]]:
    """Words of each `srpo-trl` command of a page, in shell blocks and code spans."""
    text = path.read_text(encoding="utf-8")
    lines = [line for block in blocks(path, "sh") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    return [
        shlex.split(line, comments=True)
        for line in lines
        if re.match(
            r"(srpo-trl train --config (?!NAME|FILE|grpo_config)\w|srpo-trl (eval|plan|compare|report) .) ?",
            line,
        )
    ]


READERS = {"train": read_arguments, "eval": command.read_evaluation}


def check_words(words: list[str]) -> None:
    """Every option is known and every file is there; what is trained or evaluated on is left to the reader."""
    if words[0] == "report":
        report_command._parse(words[1:])
        return
    if words[0] == "plan":
        given, training = memory_arguments._parser().parse_known_args(words[1:])
        assert given.accelerate_config is None or profile_path(given.accelerate_config).is_file()
        assert read_arguments([*training, "--config", given.config, "--use_cpu", "true"])[3] == []
        return
    if words[0] == "compare":
        cut = words.index("--") if "--" in words else len(words)
        given = compare_command._parser().parse_args(words[1:cut])
        for path in given.configs:
            assert read_arguments([*words[cut + 1 :], "--config", str(path), "--use_cpu", "true"])[3] == []
        return
    assert read_launch(words[0], words[1:])[1] == []
    script, config, model_config, problems = READERS[words[0]]([*words[1:], "--use_cpu", "true"])
    assert problems == []
    assert config is not None
    assert model_config is not None
    assert script.data_dir == (None if script.benchmark == "gsm8k" else "DIR")


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_commands_parse(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # recipes are found by name, from any folder
    found = commands(path)
    for words in found:
        check_words(words[1:])
    if path == README:  # the first command needs nothing but the hub
        assert found[0] == ["srpo-trl", "train", "--config", "qwen3_0.6b_lora_16gb"]
        assert len(found) >= 6


def test_no_command_needs_a_clone_or_accelerates_launcher():
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert "accelerate launch --config_file" not in text, path
        assert not re.search(r"--(config|accelerate_config) configs/", text), path


@pytest.mark.parametrize("path", ["README.md", "docs/quickstart.md"])
def test_quickstart_leaves_its_results_where_the_page_says(path):
    from srpo_trl.commands.quickstart import run

    assert "`srpo-trl quickstart --seeds 3`" in page(path)
    assert run._parse(["--seeds", "3"]).seeds == 3
    assert f"`{run._parse([]).output_dir}`" in page(path)
    source = "".join(path.read_text(encoding="utf-8") for path in Path(run.__file__).parent.glob("*.py"))
    for name in ("curves.png", "report.html", "results.json"):
        assert f"`{name}`" in page(path)
        assert f'"{name}"' in source


@pytest.mark.parametrize("path", PAGES, ids=by_name)
def test_yaml_blocks_hold_known_options(path):
    known = {f.name for kind in (TrainArguments, SRPOConfig, ModelConfig) for f in dataclasses.fields(kind)}
    known |= {"base", *launcher_options()}
    for block in blocks(path, "yaml"):
        values = yaml.safe_load(block)
        assert set(values) <= known


def test_quickstart_page_grades_as_it_says():
    (block,) = blocks(ROOT / "docs" / "quickstart.md", "python")
    names: dict[str, Any] = {}
    exec(compile(block.split("args = ")[0], "quickstart.md", "exec"), names)
    texts = ["101", "100", "103.", "a prime", "111"]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    logged: dict[str, list] = {}
    assert names["is_prime"](chats, [100] * 5, log_extra=logged.__setitem__) == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert [bool(text) for text in logged["feedback"]] == [False, True, False, True, True]


def test_two_changed_imports_make_a_grpo_script_an_srpo_one():
    block = blocks(ROOT / "docs" / "coming_from.md", "python")[0]
    names: dict[str, Any] = {}
    exec(compile(block, "coming_from.md", "exec"), names)
    import srpo_trl

    assert names["GRPOTrainer"] is srpo_trl.SRPOTrainer
    assert names["GRPOConfig"] is srpo_trl.SRPOConfig


@pytest.mark.filterwarnings("ignore")
def test_options_of_trls_sdpo_are_those_that_the_page_names(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.sdpo import SDPOConfig

    known = set(SDPOConfig.__dataclass_fields__)
    rows = rows_with("docs/coming_from.md", "TRL's `SDPOConfig`")
    named = [name for row in rows for name in re.findall(r"`(\w+)[`=]", row["TRL's `SDPOConfig`"])]
    assert set(named) <= known
    for row in rows:
        for name, default in re.findall(r"`(\w+)=([^`]+)`", row["TRL's `SDPOConfig`"]):
            if "topk_logits" not in default:
                assert repr(SDPOConfig.__dataclass_fields__[name].default).replace("'", '"') == default
    ours = [name for row in rows for name in re.findall(r"`([a-z]\w+)[`=]", row["`SRPOConfig`"])]
    assert set(ours) <= set(SRPOConfig.__dataclass_fields__)


def test_thresholds_on_the_page_of_guards_are_the_codes():
    from srpo_trl.runs.guards import GuardThresholds

    page = (ROOT / "docs" / "guards.md").read_text(encoding="utf-8")
    limits = GuardThresholds()
    for text in (
        f"compares the last {limits.window} logs",
        f"is {limits.format_drop} below its best.",
        f"is {limits.length_growth:.0f} times the first logs', or a third",
        f"or {limits.entropy_growth:.0f} times as much",
        f"below {limits.distilled_low:.0%}".replace("%", " %"),
        f"less than {limits.mostly_correct:.0%}".replace("%", " %"),
        f"above {limits.distilled_high:.0%}".replace("%", " %"),
        f"is {limits.teacher_growth:.0f} times the first logs'",
        f"is {limits.score_drop} below its best while `reward`",
        f"is below {limits.effective_share}",
    ):
        assert text in page, text


def test_every_address_of_the_site_is_that_of_a_page():
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    site = re.search(r"^site_url: (.*)$", settings, re.MULTILINE)[1]
    pages = set(re.findall(r"[\w/]+\.md$", settings, re.MULTILINE))  # of docs/ or, like tested.md, built
    written = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".html")]
    written += [
        *PAGES,
        *ROOT.glob("configs/**/*.yaml"),
        *ROOT.glob("notebooks/*.ipynb"),
        ROOT / "CHANGELOG.md",
    ]
    found = {
        (path.name, address)
        for path in written
        for address in re.findall(rf"{re.escape(site)}([\w/.-]*\w)", path.read_text(encoding="utf-8"))
    }
    assert {"help.py", "summary.py"} <= {name for name, _ in found}
    for name, address in found:
        assert Path(address).suffix == ".html", (name, address)
        assert f"{Path(address).with_suffix('.md')}" in pages, (name, address)
