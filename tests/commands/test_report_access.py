"""Whom the report reaches: contrast by WCAG 2 AA, keyboard and touch, screen readers, and small screens."""

import json
import re
import subprocess

import pytest

from report_pages import CHROMIUM, Page, example_record, report, write_examples, write_run
from srpo_trl.commands.curves_plot import COLORS
from srpo_trl.commands.report import command
from srpo_trl.commands.report.drawing import run_style
from srpo_trl.commands.report.examples import NUM_LEVELS
from srpo_trl.commands.report.figures import FIGURES

TEXT, GRAPHICS = 4.5, 3.0
Color = tuple[float, float, float]  # 0 to 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page about two runs lies, which has few figures and one example."""
    folder = tmp_path_factory.mktemp("report")
    runs = [write_run(folder / "a", options={"gradient_accumulation_steps": 4}), write_run(folder / "b")]
    write_examples(runs[0], example_record())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "FIGURES", [spec for spec in FIGURES if spec.name == "routes"])
        report(folder, *runs)
    return folder


@pytest.fixture
def page(folder):
    return (folder / "out" / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def css(page):
    return page.split("<style>")[1].split("</style>")[0]


# ---------------------------------------------------------------- contrast


def from_hex(text: str) -> Color:
    digits = text[1:] if len(text) == 7 else "".join(2 * digit for digit in text[1:])
    return tuple(bytes.fromhex(digits))


def luminance(color: Color) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = [value / 255 for value in color]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Color, other: Color) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def over(color: Color, alpha: float, background: Color) -> Color:
    return tuple(alpha * c + (1 - alpha) * b for c, b in zip(color, background, strict=True))


def variables(css: str) -> dict[str, Color]:
    """The colors in the first `:root` of a piece of CSS."""
    block = re.search(r":root \{(.*?)\}", css, re.DOTALL)[1]
    found = {name: from_hex(text) for name, text in re.findall(r"--(\w+): (#\w+);", block)}
    (accent,) = re.findall(r"--accent: (\d+), (\d+), (\d+);", block)
    return found | {"accent": tuple(map(int, accent))}


def schemes(css: str) -> dict[str, dict[str, Color]]:
    dark, printed = css.index("prefers-color-scheme: dark"), css.index("@media print")
    return {"light": variables(css), "dark": variables(css[dark:]), "print": variables(css[printed:])}


def levels(css: str) -> list[float]:
    return [
        float(alpha)
        for alpha in re.findall(r"\.level\d \{ background: rgba\(var\(--accent\), ([\d.]+)\)", css)
    ]


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_text_and_graphics_have_their_contrast(css, scheme):
    colors, alphas = schemes(css)[scheme], levels(css)
    assert len(alphas) == NUM_LEVELS
    assert alphas == sorted(alphas)
    for text in ("ink", "soft"):
        assert contrast(colors[text], colors["paper"]) >= TEXT
        assert contrast(colors[text], colors["panel"]) >= TEXT
    tokens = [over(colors["accent"], alpha, colors["paper"]) for alpha in alphas]
    assert [contrast(colors["ink"], token) >= TEXT for token in tokens] == [True] * NUM_LEVELS
    assert contrast(tokens[-1], colors["paper"]) >= GRAPHICS  # the deepest against no color
    for index in range(12):
        assert contrast(from_hex(run_style(index)["color"]), colors["paper"]) >= GRAPHICS


def test_nothing_changes_a_contrast_behind_the_colors_back(css):
    assert "opacity" not in css
    assert "filter" not in css
    used = re.findall(r"(?<![-\w])color: ([^;}]+)", css)
    assert set(used) <= {"var(--ink)", "var(--soft)", "inherit"}


def test_every_color_of_a_picture_is_seen_on_white():
    assert [color for color in COLORS if contrast(from_hex(color), (255, 255, 255)) < GRAPHICS] == []


def test_contrast_is_that_of_the_standard():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast(from_hex("#777777"), (255, 255, 255)) == pytest.approx(4.48, abs=0.005)
    assert contrast(from_hex("#E69F00"), (255, 255, 255)) == pytest.approx(2.25, abs=0.005)


def test_the_deepest_tokens_are_told_without_color(css):
    (rule,) = re.findall(rf"\.level{NUM_LEVELS - 1}, \.level{NUM_LEVELS} \{{(.*?)\}}", css)
    assert "text-decoration: underline" in rule
    assert "font-weight: 700" in rule


# ---------------------------------------------------------------- keyboard, touch, screen readers


def test_numbers_of_tokens_need_no_pointer(page, css):
    """Every colored token takes the focus by a tap, none is a stop of the tab key, and a table has the same numbers."""
    elements = Page(page).elements
    colored = [
        a for tag, a in elements if tag == "span" and a.get("class", "").startswith("level") and "title" in a
    ]
    assert colored
    assert {a["tabindex"] for a in colored} == {"-1"}
    assert "Numbers of the colored tokens (2)" in Page(page).text
    table = page[page.index("Numbers of the colored tokens (2)") :].split("</table>")[0]
    assert re.findall(r"<td>([^<]*)", table) == [
        *("2", "‘ is’", "0.05", "0.10", "0.50", "0.20", "0.90", "the same (0.50)"),
        *("3", "‘ 5’", "0.90", "0.60", "1.50", "0.10", "0.80", "‘ 4’ (0.97)"),
    ]
    assert re.search(r'\[class\^="level"\]:focus::after \{\s*content: attr\(title\)', css)


def test_a_completion_stands_before_its_prompt_which_is_folded(page):
    example = page[page.index("<article") : page.index("</article>")]
    assert example.index("<h4>Completion</h4>") < example.index("<summary>Prompt</summary>")
    assert re.search(r"<details[^>]*><summary>Prompt</summary><pre>2\+2</pre></details>", example)


def test_charts_and_tables_have_names(page):
    elements = Page(page).elements
    charts = [a for tag, a in elements if tag == "svg" and a.get("role") == "img"]
    assert len(charts) == len([tag for tag, _ in elements if tag == "figure"]) > 5
    assert all(a.get("aria-label") for a in charts)
    assert (
        "Held-out accuracy, over steps (eval_reward): a from 0 at step 0 to 0.909 at step 40; b from " in page
    )
    others = [a for tag, a in elements if tag == "svg" and a.get("role") != "img"]
    assert {a.get("aria-hidden") for a in others} == {"true"}
    regions = [a for _, a in elements if a.get("tabindex") == "0"]
    assert all(a.get("aria-label") and a.get("role") == "region" for a in regions)
    assert {a.get("scope") for tag, a in elements if tag == "th"} == {"col"}


# ---------------------------------------------------------------- small screens

MEASURE = """<iframe id="page" src="PAGE" width="WIDTH" height="900"></iframe>
<script>onload = () => {
  const page = document.getElementById("page").contentDocument;
  const boxes = (query) => [...page.querySelectorAll(query)].map((element) => element.getBoundingClientRect());
  document.title = JSON.stringify({
    width: page.documentElement.scrollWidth,
    figures: boxes("figure svg").map((box) => [Math.round(box.left), Math.round(box.right)]),
    lines: [...page.querySelectorAll("#options td:first-child code")].map((name) => name.getClientRects().length),
  });
}</script>"""


def measured(folder, width: int) -> dict:
    """How wide the page is in a window of that width, where its figures lie, and over how many lines option names."""
    wrapper = folder / "out" / "wrapper.html"
    text = MEASURE.replace("PAGE", "report.html").replace("WIDTH", str(width))
    wrapper.write_text(text, encoding="utf-8")
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--allow-file-access-from-files",
    )
    command_line = [
        str(CHROMIUM),
        *options,
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
        wrapper.as_uri(),
    ]
    done = subprocess.run(command_line, check=True, capture_output=True, text=True, timeout=300)
    return json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium in the PATH: the page is not rendered")
def test_panels_stack_on_a_small_screen_and_nothing_is_cut(folder):
    small, large = measured(folder, 420), measured(folder, 1300)
    assert small["width"] <= 420
    assert len({left for left, _ in small["figures"]}) == 1
    assert all(right <= 420 for _, right in small["figures"])
    assert len({left for left, _ in large["figures"]}) == 2
    assert set(small["lines"]) == {1}  # no name of an option is broken
