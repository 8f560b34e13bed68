"""The report: from the logs of runs to one page that is whole, escaped, right in its numbers, and not blank."""

import csv
import json
import math
import os
import re
import subprocess
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import image

from harness import make_trainer
from report_pages import CHROMIUM, Page, example_record, report, write_examples, write_run
from srpo_trl.cli import main
from srpo_trl.commands.curves_plot import COLORS
from srpo_trl.commands.report import command
from srpo_trl.commands.report.drawing import draw, marks, run_style, running_mean, svgs, whole
from srpo_trl.commands.report.examples import (
    NUM_LEVELS,
    Example,
    decimals,
    full_color,
    level,
    pieces,
    read_example,
)
from srpo_trl.commands.report.figures import FIGURES, FigureSpec, Panel, accuracy_figure
from srpo_trl.commands.report.tables import differing_options, usual_budgets
from srpo_trl.runs.log import LOG_FILE, RunLog
from srpo_trl.runs.read import RunHistory
from srpo_trl.runs.scores import Budget

HOSTILE = """</script><script>alert(1)</script><img src=x onerror="alert(1)">' onmouseover='alert(1)"""


@pytest.fixture
def few_figures(monkeypatch):
    """For tests of the page around the figures, which take seconds to draw."""
    monkeypatch.setattr(command, "FIGURES", [spec for spec in FIGURES if spec.name == "routes"])


# ---------------------------------------------------------------- reading runs


def test_a_folder_that_is_no_run_is_refused_with_what_was_looked_for(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "broken" / "checkpoint-3" / "trainer_state.json").write_text('{"log_history": ')
    run = write_run(tmp_path / "fine")
    folders = [tmp_path / "empty", run, tmp_path / "none", tmp_path / "broken"]
    assert main(["report", *map(str, folders), "-o", str(tmp_path / "report.html")]) == 2
    told = capsys.readouterr().err
    for part in (f"{tmp_path}/empty holds no log", "log.jsonl", "trainer_state.json", "checkpoint-*"):
        assert part in told
    assert f"{tmp_path}/none is not a folder" in told
    assert "broken/checkpoint-3/trainer_state.json is no trainer state" in told
    assert "fine" not in told
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("arguments", [["-o", "FOLDER"], ["--figures", "FILE"], ["-o", "FILE/report.html"]])
def test_a_place_that_cannot_be_written_is_named(tmp_path, arguments, capsys, few_figures):
    run = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    places = {"FOLDER": tmp_path / "folder", "FILE": tmp_path / "file"}
    words = [str(Path(places.get(Path(w).parts[0], w), *Path(w).parts[1:])) for w in arguments]
    assert main(["report", str(run), "-o", str(tmp_path / "report.html"), *words]) == 2
    told = capsys.readouterr().err
    assert re.fullmatch(r"srpo-trl report: \S+ (is a folder|cannot be written).*\n", told)
    assert not (tmp_path / "report.html").exists()


# ---------------------------------------------------------------- numbers


def test_page_shows_the_best_of_each_budget(tmp_path, few_figures):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, values in ((first, [0.9, 0.6, 0.4, 0.5]), (second, [0.2, 0.3, 0.7])):
        log = RunLog(folder / LOG_FILE)
        for i, value in enumerate(values):
            log.append({"step": 10 * i, "logs": {"eval_reward": value, "training_seconds": 1800.0 * i}})
    html = report(tmp_path, first, second, arguments=("--budgets", "5h", "30m", "90min", "1m"))
    rows = re.findall(r"<tr>(.*?)</tr>", html[html.index('id="best"') :].split("</table>")[0], re.DOTALL)
    cells = [re.findall(r"<td( class=\"best\")?>([\d.]*)<small>(.*?)</small>", row) for row in rows[1:]]
    assert re.findall(r"<th scope=\"col\">(.*?)</th>", rows[0]) == [
        *("run", "within 1 min", "within 30 min", "within 90 min", "within 5 h", "at all")
    ]
    assert [[value for _, value, _ in row] for row in cells] == [
        ["", "0.600", "0.600", "", "0.600"],  # the start's 0.9 does not count
        ["", "0.300", "", "", "0.700"],
    ]
    assert [[bool(best) for best, _, _ in row] for row in cells] == [
        [False, True, True, False, False],
        [False, False, False, False, True],
    ]
    assert cells[1][1][2] == "step 10, 30 min"
    assert [note for _, value, note in cells[1] if not value] == [
        "nothing measured",
        *["the run has not come so far"] * 2,
    ]


def test_a_run_that_finished_before_a_budget_has_its_best_there(tmp_path, few_figures):
    for name, max_steps in (("finished", 20), ("running", 30)):
        log = RunLog(tmp_path / name / LOG_FILE)
        log.begin(0, max_steps=max_steps)
        for step, value in ((10, 0.7), (20, 0.5)):
            log.append({"step": step, "logs": {"eval_reward": value, "training_seconds": 0.945 * step}})
    runs = [tmp_path / "finished", tmp_path / "running"]
    html = report(tmp_path, *runs, arguments=("--budgets", "20s"))
    rows = html[html.index('id="best"') :].split("</table>")[0].split("<tr>")[2:]
    cells = [re.findall(r"<td[^>]*>([\d.]*)<small>(.*?)</small>", row)[0] for row in rows]
    assert cells == [
        ("0.700", "step 10, 9.45 s; finished after 18.9 s"),
        ("", "the run has not come so far"),
    ]


def timed_run(name: str, seconds: float, num_evaluations: int = 10) -> RunHistory:
    times = [seconds * (i + 1) / num_evaluations for i in range(num_evaluations)]
    records = [{"step": i + 1, "seconds": t, "logs": {"acc": 0.5}} for i, t in enumerate(times)]
    return RunHistory(name, Path(name), records)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([360.0], ["1 min", "2 min", "5 min"]),
        ([115.0, 35.0], ["20 s", "30 s", "1 min"]),
        ([11 * 3600.0], ["5 h", "10 h"]),  # the paper's, but before the first hour nothing was measured
        ([7 * 3600.0], ["1 h", "2 h", "5 h"]),
        ([math.nan], []),
    ],
)
def test_budgets_follow_from_the_length_of_the_runs(seconds, expected):
    runs = [timed_run(str(length), length) for length in seconds]
    budgets = usual_budgets(runs, "acc")
    assert [budget.name for budget in budgets] == expected
    assert usual_budgets(runs, "other") == usual_budgets(runs, None) == []


def test_runs_of_a_folder_are_all_shown_and_named(tmp_path, few_figures, capsys):
    for method in ("srpo", "grpo"):
        write_run(tmp_path / "quickstart" / method, method=method)
    shared = tmp_path / "shared"
    for method in ("grpo", "sdpo", "sdpo"):
        write_run(shared, method=method)
    (shared / "guards.jsonl").write_text('{"step": 1, "guard": "length"}\n')
    text = Page(report(tmp_path, tmp_path / "quickstart", shared)).text
    assert "about grpo, srpo, shared (grpo), shared (sdpo)." in capsys.readouterr().out
    assert "SRPO report: grpo, srpo, shared (grpo), shared (sdpo)" in text
    assert (
        "shared (sdpo) was started 2 times in the same folder with the same options. The last start is shown."
        in text
    )
    assert "shared (grpo), shared (sdpo) have one guards.jsonl" in text


def test_standard_errors_are_drawn_as_bands():
    spec = accuracy_figure("n", "N", "acc", "Read it.")
    records = [
        {"step": i, "seconds": 7.0 * i, "logs": {"acc": 0.5 + i / 10, "acc_stderr": 0.25}} for i in range(3)
    ]
    by_step, by_time = whole(draw(spec, [RunHistory("r", Path("r"), records)], [])).get_axes()
    for axes, across in ((by_step, [0, 1, 2]), (by_time, [0, 7, 14])):
        (band,) = axes.collections
        corners = {(round(x, 6), round(y, 6)) for x, y in band.get_paths()[0].vertices}
        edges = {(x, round(0.5 + i / 10 + side, 6)) for i, x in enumerate(across) for side in (-0.25, 0.25)}
        assert edges <= corners


def test_running_mean_is_the_mean_of_the_neighbors():
    values = np.random.default_rng(0).normal(size=11)
    expected = [np.mean(values[max(i - 3, 0) : i + 4]) for i in range(11)]
    np.testing.assert_allclose(running_mean(values, 3), expected, rtol=1e-12)
    np.testing.assert_allclose(running_mean(values, 0), values, rtol=1e-12)


def test_options_that_differ():
    first = RunHistory(
        "a", Path("a"), [], {"options": {"method": "srpo", "seed": 1, "beta": [1], "disable_tqdm": True}}
    )
    second = RunHistory("b", Path("b"), [], {"options": {"method": "grpo", "seed": 1}})
    assert differing_options([first, second]) == {"beta": ["[1]", "default"], "method": ["srpo", "grpo"]}
    assert differing_options([second]) == {"method": ["grpo"], "seed": ["1"]}
    assert differing_options([RunHistory("c", Path("c"), [], {"options": "none"})]) == {}


# ---------------------------------------------------------------- figures

TWO_PANELS = FigureSpec(
    "two", "Two", (Panel("a", "a", "unit"), Panel("a", "a", "unit", against="time")), "Read it."
)


def run_of(name: str, metric: str, values: list[float], seconds: float = 10.0) -> RunHistory:
    records = [{"step": i, "seconds": i * seconds, "logs": {metric: value}} for i, value in enumerate(values)]
    return RunHistory(name, Path(name), records)


def lines_of(axes) -> list[tuple[str, list[float], list[float]]]:
    return [
        (line.get_color(), list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.get_lines()
        if line.get_color() in COLORS
    ]


def test_lines_hold_the_logged_values_in_each_runs_own_color():
    runs = [
        run_of("first", "b", [1.0]),
        run_of("second", "a", [3.0, 1.0]),
        run_of("third", "a", [2.0], math.nan),
    ]
    picture = draw(
        TWO_PANELS, runs, budgets=[Budget("5 s", 5.0, is_time=True), Budget("1 min", 60.0, is_time=True)]
    )
    by_step, by_time = whole(picture).get_axes()
    assert lines_of(by_step) == [(COLORS[1], [0, 1], [3, 1]), (COLORS[2], [0], [2])]
    assert lines_of(by_time) == [(COLORS[1], [0, 10], [3, 1])]
    assert [text.get_text() for text in by_time.texts] == ["5 s"]  # 60 s lie beyond the run
    assert (by_step.get_xlabel(), by_time.get_xlabel()) == ("optimizer step", "training time (s)")
    assert by_step.get_ylabel() == "unit"
    assert picture.missing == [
        "a, the clock of a: not in the logs of first.",
        "the clock of a: not in the logs of third.",
    ]
    assert picture.rows == [
        ("second", 0, 0.0, "a", 3.0),
        ("second", 1, 10.0, "a", 1.0),
        ("third", 0, "", "a", 2.0),
    ]


def test_more_runs_than_colors_have_other_lines():
    styles = [tuple(run_style(i).values()) for i in range(12)]
    assert len(set(styles)) == len(styles)


def test_runs_are_told_apart_without_color():
    """Each short or long curve has its run's marker, and two of one marker differ in their lines."""
    looks = {(marks(i, 10)["marker"], run_style(i)["linestyle"]) for i in range(12)}
    assert len(looks) == 12
    runs = [run_of(name, "a", [1.0] * num) for name, num in (("short", 5), ("longer", 50), ("longest", 400))]
    axes = whole(draw(TWO_PANELS, runs, budgets=[])).get_axes()[0]
    marked = [
        (line.get_marker(), line.get_markevery()) for line in axes.get_lines() if line.get_marker() != "None"
    ]
    assert marked == [("o", (0, 1)), ("s", (1, 4)), ("^", (22, 33))]


def test_long_curves_are_drawn_with_their_running_mean():
    picture = draw(TWO_PANELS, [run_of("long", "a", list(np.arange(400.0)))], budgets=[])
    raw, smooth = lines_of(whole(picture).get_axes()[0])
    assert len(raw[2]) == len(smooth[2]) == 400
    assert raw[2] != smooth[2]
    assert len(picture.rows) == 400


def test_optional_panels_are_left_out_where_they_say_nothing():
    spec = FigureSpec("o", "O", (Panel("a", "a", "u"), Panel("b", "b", "u", is_optional=True)), "")
    run = RunHistory("r", Path("r"), [{"step": 1, "seconds": 1.0, "logs": {"a": 1.0, "b": 0.0}}])
    assert [panel.title for panel in draw(spec, [run], []).panels] == ["a"]
    other = RunHistory("r", Path("r"), [{"step": 1, "seconds": 1.0, "logs": {"a": 1.0, "b": 0.1}}])
    picture = draw(spec, [other], [])
    assert [axes.get_title(loc="left") for axes in whole(picture).get_axes()] == ["a", "b"]


def test_figures_are_written_as_png_and_csv_with_the_numbers_of_the_log(tmp_path):
    run = write_run(tmp_path / "run")
    write_examples(run, example_record())
    report(tmp_path, run, arguments=("--figures", str(tmp_path / "figures")))
    names = {"accuracy", "training_accuracy", "weight_distribution", *(spec.name for spec in FIGURES)}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("png", "csv")
    }
    for name in names:
        pixels = image.imread(tmp_path / "figures" / f"{name}.png")
        assert pixels.shape[1] > 1000
        assert pixels[..., :3].std() > 0.01
    with (tmp_path / "figures" / "accuracy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["metric"] for row in rows] == ["eval_reward"] * 9
    assert [float(row["value"]) for row in rows] == [math.sin(step / 20) for step in range(0, 41, 5)]
    assert [float(row["seconds"]) for row in rows] == [3.0 * step for step in range(0, 41, 5)]
    with (tmp_path / "figures" / "weight_distribution.csv").open(newline="") as file:
        shares = [float(row["share_of_tokens"]) for row in csv.DictReader(file)]
    assert sum(shares) == pytest.approx(1)
    assert sorted(shares)[-3:] == pytest.approx([1 / 3] * 3)


def test_every_metric_of_the_catalogue_is_documented():
    documented = Path(__file__).parents[2].joinpath("docs", "metrics.md").read_text(encoding="utf-8")
    for spec in FIGURES:
        for panel in spec.panels:
            for metric in filter(None, (panel.metric, panel.spread)):
                assert not metric.startswith("srpo/") or f"`{metric}`" in documented, metric


# ---------------------------------------------------------------- examples


def test_an_examples_tokens_have_their_numbers():
    example = read_example(example_record())
    assert [token.correction for token in example.tokens] == [0.0, 0.05, pytest.approx(0.9), None]
    assert example.tokens[2].choice == (" 4", 0.97)
    assert example.tokens[2].note(3).startswith("‘ 5’: correction 0.900 = divergence 0.600 x weight 1.50; ")
    assert "teacher's choice ‘ 4’ (0.97)" in example.tokens[2].note(2)
    assert "teacher's choice the same (0.50)" in example.tokens[1].note(2)
    assert example.tokens[2].cells(2) == ["‘ 5’", "0.90", "0.60", "1.50", "0.10", "0.80", "‘ 4’ (0.97)"]
    assert [place for place, _ in example.colored(0.9)] == [3]  # the other one has no color there
    assert [place for place, _ in example.colored(0.1)] == [2, 3]
    negative = read_example(example_record(divergence=[-1.0, 0.1, 0.6, None]))  # of a single sampled token
    assert negative.tokens[0].correction == 0.0


def test_a_token_that_the_teacher_keeps_is_no_correction():
    """` is` has a color, but the teacher's choice is ` is`, too."""
    assert [t.correction_text for t in read_example(example_record()).strongest(0.1)] == ["‘ 5’ to ‘ 4’"]
    kept = read_example(example_record(teacher_choices=[[2, " 5", 0.97], [1, " is", 0.5]]))
    assert kept.strongest(0.1) == []
    assert len(kept.colored(0.1)) == 2
    unknown = read_example(example_record(teacher_choices=[]))
    assert [token.correction_text for token in unknown.strongest(0.1)] == ["‘ 5’", "‘ is’"]


def test_small_corrections_show_their_digits(tmp_path, few_figures):
    assert [decimals(full) for full in (30.0, 0.9, 0.031, 0.0031, 1e-30)] == [2, 2, 3, 4, 9]
    run = write_run(tmp_path / "run")
    write_examples(run, example_record(divergence=[0.0, 0.0001, 0.0031, None], weight=[1.0, 1.0, 1.0, None]))
    text = Page(report(tmp_path, run)).text
    assert "Strongest corrections: ‘ 5’ to ‘ 4’ 0.0031" in text


def test_depth_of_a_color_follows_the_correction():
    assert [level(c, 0.9) for c in (None, 0.0, 0.04, 0.06, 0.45, 0.9, 5.0)] == [0, 0, 0, 1, 4, 9, NUM_LEVELS]
    example = read_example(example_record())
    assert full_color([example]) == pytest.approx(np.quantile([0.05, 0.9], 0.95))
    assert full_color([]) == 1.0
    found = pieces(example, 0.9)
    assert [(piece.look, piece.text) for piece in found] == [
        ("plain", "it is"),  # half a level and less has no color
        ("level9", " 5"),
        ("undistilled", "\n"),
    ]
    assert "".join(piece.text for piece in pieces(example, 1e9)) == "it is 5\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": None},
        {"tokens": "text"},
        {"tokens": []},
        {"tokens": [1, 2, 3, 4]},
    ],
)
def test_a_record_without_tokens_is_no_example(changes):
    assert read_example(example_record(**changes)) is None


def test_a_damaged_record_shows_what_it_has():
    damaged = {
        "divergence": [1.0],
        "weight": "x",
        "teacher_choices": [[0, "a"], 7, ["0", "a", 1]],
        "prompt": None,
    }
    example = read_example(example_record(is_correct="no", **damaged))
    assert isinstance(example, Example)
    assert all(token.correction is None for token in example.tokens)
    assert (example.prompt, example.is_correct) == ("", None)


def test_page_shows_each_example_with_its_demonstration_and_its_colors(tmp_path, few_figures):
    run = write_run(tmp_path / "run")
    write_examples(run, *(example_record(step) for step in range(1, 41)))
    page = Page(report(tmp_path, run, arguments=("--examples", "3")))
    shown = [attributes for tag, attributes in page.elements if tag == "article"]
    assert len(shown) == 3
    steps = [int(step) for step in re.findall(r"step (\d+) failed answer", page.text)]
    assert steps == [1, 21, 40]  # from the whole run
    assert "3 of 40 logged examples, from the whole run" in page.text
    for text in ("2+2", "it is 4", "not 5", "‘ 5’ to ‘ 4’"):
        assert page.text.count(" ".join(text.split())) >= 3
    strongest = [a for _, a in page.elements if a.get("class") == f"level{NUM_LEVELS}" and a.get("title")]
    assert len(strongest) == 3
    assert strongest[0]["title"].startswith("‘ 5’: correction 0.90 = divergence 0.60 x weight 1.50; ")
    none = Page(report(tmp_path, run, arguments=("--examples", "0")))
    assert not [tag for tag, _ in none.elements if tag == "article"]


# ---------------------------------------------------------------- the page


def test_page_is_whole(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", method="grpo")]
    write_examples(runs[0], example_record())
    html = report(tmp_path, *runs)
    page = Page(html)
    loading = {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "audio",
        "video",
        "image",
    }
    assert not loading & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            if name in ("href", "xlink:href", "src", "srcset", "action", "data", "style"):
                assert value.startswith("#") or name == "style", (tag, name, value)
                assert "url(" not in value.replace("url(#", ""), (tag, name, value)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert len(set(page.ids)) == len(page.ids)  # several SVGs of one library in one page
    targets = {a["href"][1:] for tag, a in page.elements if tag == "a"}
    assert targets <= set(page.ids)
    used = set(re.findall(r"url\(#([^)]+)\)", html)) | set(re.findall(r'xlink:href="#([^"]+)"', html))
    assert used
    assert used <= set(page.ids)
    assert "#1a1b1e" not in html.split("</style>")[1]  # ink is the page's, for dark screens


@pytest.mark.skipif(os.name == "nt", reason="a folder cannot have such a name on Windows")
def test_text_of_a_run_is_text(tmp_path, few_figures):
    name = HOSTILE.replace("/", "") + " $\\frac{1}{$"
    run = write_run(
        tmp_path / "_hidden" / name,
        options={"correctness_reward": HOSTILE, HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
    )
    texts = {key: HOSTILE for key in ("prompt", "solution", "feedback")}
    write_examples(
        run,
        example_record(tokens=["it", HOSTILE, " 5", HOSTILE], teacher_choices=[[2, HOSTILE, 0.5]], **texts),
    )
    other = write_run(tmp_path / "_other")
    html = report(tmp_path, run, other, arguments=("--figures", str(tmp_path / "figures")))
    page = Page(html)
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") >= 7
    assert any("<script>" in (a.get("title") or "") for _, a in page.elements)
    runs = [run_of(name, "a", [1.0]), run_of("_other", "a", [1.0])]
    (legend,) = whole(draw(TWO_PANELS, runs, [])).legends
    texts = [(text.get_text(), text.get_parse_math()) for text in legend.get_texts()]
    assert texts == [(name, False), ("_other", False)]  # matplotlib hides labels that start so
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert written == {"_hidden", "_other", "out", "figures"}
    assert all(re.fullmatch(r"[a-z_]+\.(png|csv)", path.name) for path in (tmp_path / "figures").iterdir())


def test_grpo_run_renders_and_says_what_it_lacks(tmp_path):
    html = report(tmp_path, write_run(tmp_path / "plain", method="grpo"))
    page = Page(html)
    assert "srpo/teacher/entropy" in page.text
    assert (
        page.text.count("No run has logged anything of this.") == 4
    )  # routes, teacher, weights, their distribution
    assert "log_examples_steps" in page.text
    assert "not in the logs of plain" in page.text


@pytest.mark.parametrize("num_logs", [0, 1])
def test_a_run_that_has_just_begun_renders(tmp_path, num_logs, few_figures):
    log = RunLog(tmp_path / "run" / LOG_FILE)
    log.begin(0, options={"method": "srpo"})
    for _ in range(num_logs):
        log.append({"step": 1, "logs": {"reward": 0.0, "eval_reward": 0.0, "training_seconds": 0.0}})
    text = Page(report(tmp_path, tmp_path / "run")).text
    assert ("has not logged anything yet" in text) == (num_logs == 0)


def test_lines_that_could_not_be_read_are_told(tmp_path, few_figures):
    run = write_run(tmp_path / "run")
    with (run / LOG_FILE).open("a") as file:
        file.write('{"step": 45, "seco')
    assert "1 line(s) of the log of run could not be read" in Page(report(tmp_path, run)).text


def test_guards_are_heard(tmp_path, few_figures):
    run, quiet = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    assert "What the guards said" not in Page(report(tmp_path, run)).text
    finding = {"step": 7, "guard": "length", "message": HOSTILE, "advice": "Read some", "action": "warn"}
    (run / "guards.jsonl").write_text(json.dumps(finding) + "\n")
    page = Page(report(tmp_path, run, quiet))
    assert "a 7 length </script><script>alert(1)" in page.text
    assert "Read some warn" in page.text
    assert not {"script", "img"} & {tag for tag, _ in page.elements}


def test_accuracy_is_the_metric_that_is_asked_for(tmp_path, capsys, few_figures):
    run = write_run(tmp_path / "run")
    assert "The highest eval_reward within" in Page(report(tmp_path, run)).text
    assert "The highest grad_norm" not in Page(report(tmp_path, run, arguments=("--accuracy", "reward"))).text
    assert "The highest reward within" in Page(report(tmp_path, run, arguments=("--accuracy", "reward"))).text
    capsys.readouterr()
    assert main(["report", str(run), "-o", str(tmp_path / "r.html"), "--accuracy", "eval_acuracy"]) == 2
    told = capsys.readouterr().err
    assert "eval_acuracy: no run has logged it" in told
    assert "eval_reward, reward" in told


@pytest.mark.parametrize("arguments", [["--budgets", "5d"], ["--budgets", "5"], ["--examples", "-1"], []])
def test_wrong_arguments_end_with_status_2(tmp_path, arguments, capsys):
    words = [str(tmp_path), *arguments] if arguments else []
    with pytest.raises(SystemExit) as stopped:
        main(["report", *words])
    assert stopped.value.code == 2
    assert "usage: srpo-trl report" in capsys.readouterr().err


def test_a_report_needs_no_torch(tmp_path):
    run = write_run(tmp_path / "run")
    code = (
        "import sys; from srpo_trl.cli import main; "
        f"assert main(['report', {str(run)!r}, '-o', {str(tmp_path / 'r.html')!r}]) == 0; "
        "assert not {'torch', 'transformers', 'trl', 'pandas'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(__import__("sys").path)}
    subprocess.run([__import__("sys").executable, "-c", code], check=True, env=environment, timeout=300)


def test_a_real_run_is_reported(tmp_path):
    make_trainer(tmp_path / "srpo", max_steps=3, log_examples_steps=1, gradient_share_steps=1).train()
    make_trainer(tmp_path / "grpo", max_steps=3, method="grpo", run_log=True).train()
    html = report(
        tmp_path, tmp_path / "srpo", tmp_path / "grpo", arguments=("--figures", str(tmp_path / "f"))
    )
    page = Page(html)
    assert len([tag for tag, _ in page.elements if tag == "article"]) == 8
    drawn = {path.stem for path in (tmp_path / "f").glob("*.png")}  # without what only an evaluation logs
    expected = {spec.name for spec in FIGURES} - {"evaluation"} | {"training_accuracy", "weight_distribution"}
    assert drawn == expected
    for spec in (spec for spec in FIGURES if spec.name in drawn):
        with (tmp_path / "f" / f"{spec.name}.csv").open(newline="") as file:
            found = {row["metric"] for row in csv.DictReader(file) if row["run"] == "srpo"}
        assert {panel.metric for panel in spec.panels if not panel.is_optional} <= found, spec.name
    assert "not in the logs of srpo" not in page.text


# ---------------------------------------------------------------- in a browser


def render(page: Path, picture: Path, profile: Path, *arguments: str) -> tuple[np.ndarray, list[str]]:
    """A page in headless Chromium: its pixels (height, width, 3) from 0 to 1, and the addresses that it asked for.

    The browser's own requests have no origin and, as every other, no network.
    """
    net_log = profile.with_suffix(".json")
    subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *(
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
            ),
            *(
                "--host-resolver-rules=MAP * ~NOTFOUND",
                f"--log-net-log={net_log}",
                f"--user-data-dir={profile}",
            ),
            *("--window-size=1200,5000", f"--screenshot={picture}", *arguments, page.as_uri()),
        ],
        check=True,
        capture_output=True,
        timeout=300,
    )
    log = json.loads(net_log.read_text(encoding="utf-8"))
    started = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    requests = [event["params"] for event in log["events"] if event["type"] == started and "params" in event]
    asked = [r["url"] for r in requests if "url" in r and r.get("initiator") != "not an origin"]
    return image.imread(picture)[..., :3], asked


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium in the PATH: the page is not rendered")
def test_page_in_a_browser_is_not_blank_and_asks_for_nothing(tmp_path, few_figures):
    run, other = write_run(tmp_path / "a"), write_run(tmp_path / "b", method="grpo")
    write_examples(run, *(example_record(step) for step in range(1, 9)))
    report(tmp_path, run, other, arguments=("--budgets", "1m"))
    page = tmp_path / "out" / "report.html"
    for scheme, is_dark in ((1, False), (0, True)):
        pixels, asked = render(
            page,
            tmp_path / "page.png",
            tmp_path / f"profile{scheme}",
            f"--blink-settings=preferredColorScheme={scheme}",
        )
        assert asked == []
        assert pixels.shape == (5000, 1200, 3)
        assert (pixels[0, 0].mean() < 0.2) == is_dark
        is_written = np.abs(pixels - pixels[0, 0]).max(axis=2) > 0.3
        filled = is_written.reshape(50, 100, 1200).any(axis=(1, 2))  # bands of 100 pixels
        assert filled[:45].mean() > 0.8, "the upper part of the page is nearly blank"
        for color in (
            *COLORS[:2],
            "#DB7524" if not is_dark else "#A74D06",
        ):  # both runs, and a corrected token
            distance = np.abs(pixels - matplotlib.colors.to_rgb(color)).max(axis=2)
            assert (distance < 0.15).sum() > 50, color

    control = tmp_path / "control.html"
    control.write_text('<img src="http://report.invalid/x.png">', encoding="utf-8")
    pixels, asked = render(control, tmp_path / "control.png", tmp_path / "profile")
    assert asked == ["http://report.invalid/x.png"]


def test_svg_is_the_same_each_time():
    picture = draw(TWO_PANELS, [run_of("r", "a", [1.0, 2.0])], budgets=[])
    again = draw(TWO_PANELS, [run_of("r", "a", [1.0, 2.0])], budgets=[])
    assert svgs(picture) == svgs(again)
    assert len(set(svgs(picture))) == 2
