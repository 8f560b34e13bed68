"""What a user installs: the lines that say how, the wheel, its page on a package index, and commands from it alone."""

import email
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from email.message import Message
from html.parser import HTMLParser
from pathlib import Path

import pytest
from packaging.requirements import InvalidRequirement, Requirement

from srpo_trl.data.smoke_model import save_tiny_random_qwen3

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
GIT = f"git+{REPOSITORY}"
RAW = REPOSITORY.replace("github.com", "raw.githubusercontent.com") + "/main/"
PLACES = [
    "README.md",
    "CONTRIBUTING.md",
    "Makefile",
    "docs/*.md",
    "notebooks/*.ipynb",
    "configs/**/*",
    "src/**/*.py",
]
TEXTS = sorted(file for place in PLACES for file in ROOT.glob(place) if file.is_file())
WORD = r"""'[^']+'|\\?"[^"]+"|[\w./\[\]=<>~@+:$,-]*[\w/\]]|\."""
INSTALL = re.compile(rf"pip install((?: +(?:{WORD}))+)")
PROSE = ("and", "or", "into", "in")  # go on after the line's last word
# Packages of the index that instructions name, beside those of pyproject.toml.
OTHERS = {"trackio", "wandb", "tensorboard", "flash-attn"}


def by_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ------------------------------------------------------------------ the lines that say how


def declared() -> set[str]:
    """Names of what pyproject.toml requires, extras included."""
    extras = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    return {Requirement(text).name for text in [*PROJECT["dependencies"], *extras]} - {"srpo-trl"}


def wrong(arguments: list[str], *, is_installed: bool) -> str:
    """What keeps the arguments of `pip install` from working; empty where nothing does."""
    if any("$" in word for word in arguments):
        return ""  # of the Makefile
    takes_value = False
    for word in arguments:
        if takes_value or word.startswith("-"):
            takes_value = word in ("-c", "--constraint", "--target", "--index-url")
            continue
        if word.startswith(".") or word.endswith(".whl"):
            continue
        try:
            requirement = Requirement(word)
        except InvalidRequirement as error:
            return str(error)
        if requirement.name == "srpo-trl":
            if requirement.extras - PROJECT["optional-dependencies"].keys():
                return f"{word}: no such extra"
            is_added_extra = is_installed and requirement.extras and requirement.url is None
            if requirement.url != GIT and not is_added_extra:
                return f"{word}: the package is not on an index; its address is {GIT}"
        elif requirement.name not in declared() | OTHERS:
            return f"{word}: is it on the index?"
    return ""


def install_lines(file: Path) -> list[list[str]]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    lines = [shlex.split(line.replace("\\", "")) for line in INSTALL.findall(text.replace("\\\n", ""))]
    return [list(itertools.takewhile(lambda word: word not in PROSE, words)) for words in lines]


@pytest.mark.parametrize(
    "file", [file for file in TEXTS if "pip install" in file.read_text("utf-8")], ids=by_name
)
def test_install_lines_name_what_there_is(file: Path) -> None:
    # A message of the package, and a recipe, are read where the package is: there an extra is added to it.
    is_installed = by_name(file).startswith(("src/", "configs/"))
    for arguments in install_lines(file):
        assert wrong(arguments, is_installed=is_installed) == "", arguments


def test_lines_are_found_and_wrong_ones_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        'Do `pip install srpo-trl`, or\n```sh\npip install "srpo-trl[vllm] @ git+https://github.com/x/y"\n'
        "pip install -c constraints.txt -e '.[dev]'   # all\n```\n",
        encoding="utf-8",
    )
    lines = install_lines(page)
    assert lines == [
        ["srpo-trl"],
        ["srpo-trl[vllm] @ git+https://github.com/x/y"],
        ["-c", "constraints.txt", "-e", ".[dev]"],
    ]
    assert [bool(wrong(line, is_installed=False)) for line in lines] == [True, True, False]
    assert wrong(["srpo-trl[vlm]"], is_installed=True)
    assert wrong(["torhc"], is_installed=True)
    assert not wrong([f"srpo-trl[vllm,qlora] @ {GIT}"], is_installed=False)


def test_one_address() -> None:
    """Every address of the repository, of its raw files and of its site is the one of pyproject.toml."""
    site = PROJECT["urls"]["Documentation"]
    known = (REPOSITORY, RAW, site)
    texts = [
        *TEXTS,
        ROOT / "mkdocs.yml",
        ROOT / "CITATION.cff",
        ROOT / "pyproject.toml",
        *ROOT.glob("scripts/*.py"),
    ]
    for file in texts:
        for address in re.findall(r"https://[\w./-]*srpo[-_]trl[\w./-]*", file.read_text(encoding="utf-8")):
            if "colab.research.google.com/github/" in address:
                address = "https://github.com/" + address.partition("/github/")[2]
            assert address.startswith(known) or address + "/" == site, f"{by_name(file)}: {address}"


def git_lines() -> list[str]:
    lines = [line for file in TEXTS for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted({line for line in lines if re.match(r"pip install .*git\+https", line)})


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository's history")
@pytest.mark.parametrize("line", git_lines())
def test_the_git_line_installs(line: str, tmp_path: Path) -> None:
    """As it stands, with git led from the address to this clone, and without what the package needs."""
    instead = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{ROOT.as_uri()}.insteadOf"}
    pip = {
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_NO_INDEX": "1",
        "PIP_TARGET": str(tmp_path / "there"),
    }
    found = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | instead | pip | {"GIT_CONFIG_VALUE_0": REPOSITORY, "PATH": found}
    subprocess.run(["bash", "-euc", line], env=environment, cwd=tmp_path, check=True, timeout=600)
    assert (tmp_path / "there" / "srpo_trl" / "recipes" / "smoke_cpu.yaml").is_file()


# ------------------------------------------------------------------ the wheel and its page


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def page(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_recipes_types_and_templates(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {
        f"srpo_trl/recipes/{file.relative_to(ROOT / 'configs')}" for file in ROOT.glob("configs/**/*.yaml")
    }
    assert len(recipes) > 60
    assert {name for name in names if name.startswith("srpo_trl/recipes/")} == recipes
    templates = {
        f"srpo_trl/{file.relative_to(ROOT / 'src' / 'srpo_trl')}" for file in ROOT.glob("src/**/templates/*")
    }
    assert templates
    assert names >= {"srpo_trl/py.typed", *templates}
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"srpo_trl"}


def test_metadata_names_addresses_and_what_it_runs_on(page: Message) -> None:
    urls = dict(line.split(", ") for line in page.get_all("Project-URL", []))
    assert urls.keys() >= {"Homepage", "Documentation", "Repository", "Issues", "Changelog", "Paper"}
    assert urls["Issues"].startswith(REPOSITORY)
    assert urls["Changelog"].startswith(REPOSITORY)
    classifiers = page.get_all("Classifier", [])
    assert {line.split(" :: ")[1] for line in classifiers if line.startswith("Operating System")} == {
        *("MacOS", "Microsoft", "POSIX")
    }
    assert page["Author"]
    assert page["License-Expression"] == "Apache-2.0"
    assert page["Description-Content-Type"] == "text/markdown"


class Addresses(HTMLParser):
    """Where the HTML of a Markdown text leads, and its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[str] = re.findall(r"!\[[^\]]*\]\(([^)\s]+)", text)
        self.links: list[str] = re.findall(r"(?<!!)\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\]\(([^)\s]+)", text)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset"):
                self.pictures.append(str(value).split()[0])
            elif name == "href":
                self.links.append(str(value))


CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.M | re.S)


def converted(text: str) -> str:
    """A README as its package page, by the project's settings."""
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    for rule in hatch["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    return text


def test_the_page_has_absolute_links_and_pictures_alone(page: Message) -> None:
    text, readme = str(page.get_payload()), (ROOT / "README.md").read_text(encoding="utf-8")
    found, before = Addresses(CODE.sub("", text)), Addresses(CODE.sub("", readme))
    assert (len(found.links), len(found.pictures)) == (len(before.links), len(before.pictures))
    for address in (*found.links, *found.pictures):
        assert address.startswith("https://"), address
    for address in found.links:
        path = address.removeprefix(f"{REPOSITORY}/blob/main/").partition("#")[0]
        assert path == address.partition("#")[0] or (ROOT / path).exists(), address
    for address in found.pictures:
        assert not address.startswith(RAW) or (ROOT / address.removeprefix(RAW)).is_file(), address
    assert re.findall(r"^```.*?^```$", text, re.M | re.S) == re.findall(r"^```.*?^```$", readme, re.M | re.S)


BLOB = f"{REPOSITORY}/blob/main/"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("![a b](docs/x.png)", f"![a b]({RAW}docs/x.png)"),
        ("[page](docs/a.md#part) [x](./b.md)", f"[page]({BLOB}docs/a.md#part) [x]({BLOB}b.md)"),
        ("[`code`](tests/a.py)", f"[`code`]({BLOB}tests/a.py)"),
        ("[up](#install)", f"[up]({REPOSITORY}#install)"),
        ('[out](https://a.b/c.md) <a href="mailto:a@b">', '[out](https://a.b/c.md) <a href="mailto:a@b">'),
        ("[![badge](https://a.b/c.svg)](LICENSE)", f"[![badge](https://a.b/c.svg)]({BLOB}LICENSE)"),
        ('<source media="(x)" srcset="docs/d.svg">', f'<source media="(x)" srcset="{RAW}docs/d.svg">'),
        ('<img alt="x" src="docs/l.svg" width="80%">', f'<img alt="x" src="{RAW}docs/l.svg" width="80%">'),
        ('<a href="docs/a.md">', f'<a href="{BLOB}docs/a.md">'),
    ],
)
def test_links_of_all_kinds_become_absolute(text: str, expected: str) -> None:
    assert converted(text) == expected


# ------------------------------------------------------------------ the wheel alone, from an empty folder


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel and nothing else; other packages come from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder),
    ]
    subprocess.run([*pip, str(wheel)], check=True, timeout=300)
    return folder


def srpo_trl(installed: Path, folder: Path, *words: str) -> str:
    """What the command prints, in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [str(installed / "bin" / "srpo-trl"), *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_recipes_are_listed_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    assert "qwen3_0.6b_lora_16gb" in srpo_trl(installed, tmp_path, "recipes")
    copied = srpo_trl(installed, tmp_path, "recipes", "opsd", "--copy", "mine").split()
    assert [Path(file).name for file in copied][-1] == "qwen3_0.6b.yaml"
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]


@pytest.mark.slow
def test_a_recipe_is_planned_and_trained_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    save_tiny_random_qwen3(tmp_path / "model")
    rows = [{"question": f"What is {n} + {n}?", "answer": f"Twice.\n#### {2 * n}"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = ["--config", "qwen3_0.6b_lora_16gb", "--model_name_or_path", "model", "--use_cpu", "true"]
    planned = srpo_trl(
        *(installed, tmp_path, "plan", *recipe, "--gpu_memory", "16", "--prompt_length", "64"),
        *("--max_completion_length", "64"),
    )
    assert "fits" in planned
    small = ["--bf16", "false", "--max_steps", "1", "--max_completion_length", "8", "--warmup_steps", "0"]
    sizes = [
        "--gradient_accumulation_steps",
        "2",
        "--steps_per_generation",
        "2",
        "--per_device_train_batch_size",
        "8",
    ]
    printed = srpo_trl(installed, tmp_path, "train", *recipe, *small, *sizes, "--dataset_name", "rows.jsonl")
    assert "[srpo-trl] model saved to outputs/qwen3_0.6b_lora_16gb" in printed
    assert (tmp_path / "outputs" / "qwen3_0.6b_lora_16gb" / "adapter_model.safetensors").is_file()


# ------------------------------------------------------------------ make


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., str]:
    """Runs make in a folder with what it reads, and returns what it prints; `-n` executes nothing."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")

    def run(*words: str) -> str:
        outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # of the make that runs the tests
        environment = {name: value for name, value in os.environ.items() if name not in outer}
        done = subprocess.run(
            ["make", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    return run


def test_make_quickstart_installs_what_a_user_needs_and_test_adds_the_tools(
    make: Callable[..., str], tmp_path: Path
) -> None:
    printed = make("-n", "quickstart")
    assert "--editable ." in printed
    assert "[dev]" not in printed
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".setup").touch()
    assert "install" not in make("-n", "quickstart")
    printed = make("-n", "lint")
    assert "--editable '.[dev]'" in printed
    assert "--editable .\n" not in printed  # is there already
    (tmp_path / ".venv" / ".setup-dev").touch()
    assert "install" not in make("-n", "lint")
    os.utime(tmp_path / ".venv" / ".setup", (0, 0))  # older than pyproject.toml
    assert make("-n", "lint").count(" install ") == 3


def test_make_says_what_to_do_without_a_fitting_python(make: Callable[..., str], tmp_path: Path) -> None:
    missing = make("setup", "PYTHON=python9")
    assert "There is no python9 here." in missing
    assert "make setup PYTHON=/path/to/python3.12" in missing
    assert not (tmp_path / ".venv").exists()
