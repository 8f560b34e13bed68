"""`python -m benchmarks.gpu`: sections that fail, hang or die leave the others and lose no figure."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # benchmarks are no part of the installed package

from benchmarks import tables
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import runner, sections
from benchmarks.gpu.record import Record, write_whole
from benchmarks.gpu.runner import Options, run

import gpu_parts
from gpu_parts import section

ROOT = Path(__file__).resolve().parents[2]
MINUTES = sections.FULL_MINUTES


@pytest.fixture
def log(tmp_path, monkeypatch):
    """What was begun, in order, by all processes."""
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "begun.txt"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "support"))
    (tmp_path / "begun.txt").touch()
    return tmp_path / "begun.txt"


def begun(log):
    """The parts begun since the last look."""
    names = log.read_text().split()
    log.write_text("")
    return names


def options(tmp_path, **changes):
    return Options(tmp_path / "out", MINUTES, "cpu", True, None)._replace(**changes)


def statuses(tmp_path, name):
    return {part: facts["status"] for part, facts in Record(tmp_path / "out", name).parts.items()}


def measured(tmp_path, name):
    return [row["part"] for facts in Record(tmp_path / "out", name).parts.values() for row in facts["rows"]]


def is_alive(pid):
    """Whether it runs; one that has ended and that nobody has asked for does not."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


# --- A section that goes wrong ---


def test_a_failing_section_says_why_and_the_next_one_runs(tmp_path, log, capsys):
    assert run([section("a_bad", "fails"), section("b_good", "good")], options(tmp_path)) == 1
    assert begun(log) == ["first", "second", "third"] * 2
    assert statuses(tmp_path, "a_bad") == {"first": "done", "second": "failed", "third": "done"}
    assert set(statuses(tmp_path, "b_good").values()) == {"done"}
    assert "second: failed, ValueError: the second part went wrong" in capsys.readouterr().out

    assert run([section("a_bad", "good"), section("b_good", "good")], options(tmp_path)) == 0
    assert begun(log) == ["second"]  # what is missing, and nothing else
    assert measured(tmp_path, "a_bad") == ["first", "second", "third"]


def test_a_second_call_does_nothing_where_all_is_there(tmp_path, log, monkeypatch):
    assert run([section("a_good", "good")], options(tmp_path)) == 0
    begun(log)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(runner, "_Child", lambda *arguments: pytest.fail("a process was started"))
    assert run([section("a_good", "good")], options(tmp_path)) == 0
    assert begun(log) == []
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_section_over_its_limit_is_stopped_and_keeps_its_figures(tmp_path, log, capsys):
    started = time.monotonic()
    assert run([section("a_slow", "hangs"), section("b_good", "good")], options(tmp_path)) == 1
    assert time.monotonic() - started < 60
    assert statuses(tmp_path, "a_slow") == {"first": "done", "second": "cut off", "third": "not yet"}
    assert measured(tmp_path, "a_slow") == ["first"]
    assert measured(tmp_path, "b_good") == ["first", "second", "third"]
    assert "a slow: cut off (over its time)" in capsys.readouterr().out
    assert not any(map(is_alive, map(int, log.with_suffix(".pid").read_text().split())))

    begun(log)
    assert run([section("a_slow", "good")], options(tmp_path)) == 0
    assert begun(log) == ["third", "second"]  # what hung may hang again, so it comes last
    assert measured(tmp_path, "a_slow") == ["first", "second", "third"]


def test_a_section_whose_process_dies_loses_that_part_alone(tmp_path, log):
    assert run([section("a_bad", "dies"), section("b_good", "good")], options(tmp_path)) == 1
    assert [name for name in begun(log)[:4]] == ["first", "second", "third", "first"]
    assert statuses(tmp_path, "a_bad") == {"first": "done", "second": "failed", "third": "done"}
    assert "SIGSEGV" in Record(tmp_path / "out", "a_bad").parts["second"]["reason"]


def test_a_section_that_cannot_be_imported_says_so(tmp_path, log, capsys):
    missing = replace(section("a_bad", "good"), module="no_such_module")
    assert run([missing, section("b_good", "good")], options(tmp_path)) == 1
    assert "No module named 'no_such_module'" in capsys.readouterr().out
    assert set(statuses(tmp_path, "b_good").values()) == {"done"}


def test_what_is_not_installed_is_skipped_and_looked_for_again(tmp_path, log):
    lacking = replace(section("a_vllm", "good"), lacks=lambda setting: "it is not installed")
    assert run([lacking], options(tmp_path)) == 0
    assert Record(tmp_path / "out", "a_vllm").status == "skipped"
    assert "it is not installed" in (tmp_path / "out" / "report.md").read_text()
    assert run([section("a_vllm", "good")], options(tmp_path)) == 0
    assert measured(tmp_path, "a_vllm") == ["first", "second", "third"]


# --- Time ---


def test_the_sections_share_the_time_that_is_given(tmp_path, log):
    """No section is begun without time, and a limit is of the whole time's size."""
    assert run([section("a_good", "good")], options(tmp_path, minutes=0.01)) == 1
    assert begun(log) == []
    assert Record(tmp_path / "out", "a_good").status == "not yet"


def test_limits_fit_eight_minutes_in_their_order():
    limits = [section.limit for section in sections.SECTIONS]
    assert all(0 < limit < 60 * MINUTES / 2 for limit in limits)
    assert sum(limits[:3]) < 60 * MINUTES  # card, kernels and loss are never short of time
    assert [section.name[0] for section in sections.SECTIONS] == list("abcdefgh")


# --- Cut off in the middle ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_goes_on_where_it_was(tmp_path, log, number):
    script = Path(gpu_parts.__file__)
    process = subprocess.Popen(
        [sys.executable, script, tmp_path / "out", "a_good=good", "b_slow=hangs", "c_good=good"]
    )
    wait_until(log.with_suffix(".pid").exists)
    wait_until(lambda: log.with_suffix(".pid").read_text())
    pids = [int(pid) for pid in log.with_suffix(".pid").read_text().split()]
    assert all(map(is_alive, pids))
    process.send_signal(number)
    process.wait(timeout=30)
    wait_until(lambda: not any(map(is_alive, pids)))
    for path in (tmp_path / "out").glob("*.json"):
        json.loads(path.read_text())
    assert measured(tmp_path, "a_good") == ["first", "second", "third"]
    assert measured(tmp_path, "b_slow") == ["first"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| a good | done | 3 of 3 |" in report
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number
        assert "| b slow | cut off | 1 of 3 |" in report

    begun(log)
    again = [section(name, "good") for name in ("a_good", "b_slow", "c_good")]
    assert run(again, options(tmp_path)) == 0
    assert begun(log) == ["third", "second", "first", "second", "third"]
    assert measured(tmp_path, "b_slow") == ["first", "second", "third"]


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "figures.json"
    write_whole(path, "old")

    def power_cut(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", power_cut)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text() == "old"


def test_a_section_whose_run_is_gone_before_it_began_measures_nothing(tmp_path, log):
    """Killed while its first section still imported: the parent that the section then sees is another one."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    command = [sys.executable, "-m", "benchmarks.gpu.child", str(gone.pid), "a_good", "gpu_parts"]
    line = json.dumps({"seconds": 60, "call": "1"}) + "\n"
    done = subprocess.run(
        [*command, str(tmp_path), "cpu", "1", ""], input=line, text=True, cwd=ROOT, start_new_session=True
    )
    assert done.returncode == -signal.SIGKILL
    assert begun(log) == []
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("text", ['{"section": "a_go', "[]", '{"x": 1}'])
def test_a_damaged_file_is_kept_aside_and_measured_anew(tmp_path, log, text):
    assert run([section("a_good", "good"), section("b_good", "good")], options(tmp_path)) == 0
    begun(log)
    (tmp_path / "out" / "a_good.json").write_text(text)
    (tmp_path / "out" / "notes.json").write_text('{"x": 1}')
    assert run([section("a_good", "good"), section("b_good", "good")], options(tmp_path)) == 0
    assert begun(log) == ["first", "second", "third"]
    assert (tmp_path / "out" / "a_good.json.damaged").read_text() == text
    assert "| a good | done | 3 of 3 |" in (tmp_path / "out" / "report.md").read_text()


# --- What is refused ---


@pytest.mark.parametrize(
    ("text", "why"), [("", "is damaged"), ('{"tiny": true}', "lacks card"), ("[1]", "is damaged")]
)
def test_what_the_figures_were_measured_on_must_be_known(tmp_path, log, capsys, text, why):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(text)
    assert run([section("a_good", "good")], options(tmp_path)) == 2
    assert why in capsys.readouterr().err
    assert begun(log) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path, log, capsys):
    (tmp_path / "out").write_text("a file")
    assert run([section("a_good", "good")], options(tmp_path)) == 2
    assert "Give another folder" in capsys.readouterr().err


def test_two_runs_do_not_share_a_folder(tmp_path, log, capsys):
    script = Path(gpu_parts.__file__)
    first = subprocess.Popen([sys.executable, script, tmp_path / "out", "a_slow=hangs"])
    wait_until(log.with_suffix(".pid").exists)
    assert run([section("a_slow", "good")], options(tmp_path)) == 2
    assert "Another run measures into" in capsys.readouterr().err
    first.send_signal(signal.SIGTERM)
    first.wait(timeout=30)
    assert run([section("a_slow", "good")], options(tmp_path)) == 0


def test_figures_of_two_models_are_not_mixed(tmp_path, log, capsys):
    assert run([section("a_good", "good")], options(tmp_path)) == 0
    assert run([section("a_good", "good")], options(tmp_path, model=Path("one"))) == 0
    assert run([section("a_good", "good")], options(tmp_path)) == 0
    assert run([section("a_good", "good")], options(tmp_path, model=Path("other"))) == 2
    assert "model 'one', now 'other'" in capsys.readouterr().err


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert tables.commit() == "unknown"


def test_figures_of_another_run_are_not_mixed(tmp_path, log, capsys):
    assert run([section("a_good", "good")], options(tmp_path)) == 0
    before = (tmp_path / "out" / "a_good.json").read_bytes()
    assert run([section("a_good", "good")], options(tmp_path, tiny=False)) == 2
    assert "tiny True, now False" in capsys.readouterr().err
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    (tmp_path / "out" / "run.json").write_text(json.dumps(facts | {"commit": "0000000"}))
    assert run([section("b_good", "good")], options(tmp_path)) == 2
    assert "commit '0000000'" in capsys.readouterr().err
    assert (tmp_path / "out" / "a_good.json").read_bytes() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_begun(tmp_path, log, capsys):
    assert run([section("a_good", "good")], options(tmp_path, device="cuda")) == 2
    assert "--device cpu --tiny" in capsys.readouterr().err
    assert begun(log) == []
    assert Record(tmp_path / "out", "a_good").status == "not yet"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--sections", "xy"], "no section x, y"),
        (["--model", "nowhere"], "no folder with a config.json"),
        (["--minutes", "0"], "must be a number above 0"),
        (["--minutes", "nan"], "must be a number above 0"),
    ],
)
def test_wrong_options_are_named(tmp_path, capsys, arguments, why):
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path), *arguments])
    assert why in capsys.readouterr().err


def test_the_process_that_starts_sections_loads_no_models():
    """It stays out of the way: the device, and minutes of imports, are the sections' own."""
    code = "import sys, benchmarks.gpu.__main__; print(*{'transformers', 'trl', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- The command itself ---


@pytest.mark.slow
def test_the_whole_command_at_tiny_sizes(tmp_path, log, monkeypatch, capsys):
    """Every section, with one that fails and one that hangs in their midst; then again, with both repaired."""
    from srpo_trl.data.smoke_model import save_tiny_random_qwen3

    model = save_tiny_random_qwen3(tmp_path / "model")
    fakes = [section("b2_bad", "fails"), section("c2_slow", "hangs")]
    whole = sorted([*sections.SECTIONS, *fakes], key=lambda section: section.name)
    monkeypatch.setattr(sections, "SECTIONS", whole)
    arguments = ["--out", str(tmp_path / "out"), "--device", "cpu", "--tiny", "--minutes", "12"]
    assert command.main([*arguments, "--model", str(model)]) == 1
    rows = {s.name: Record(tmp_path / "out", s.name).status for s in whole}
    assert rows.pop("b2_bad") == "failed"
    assert rows.pop("c2_slow") == "cut off"
    assert rows.pop("g_vllm") == "skipped"
    assert set(rows.values()) == {"done"}, rows
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "OFF" not in report
    assert "DIFFERS" not in report
    assert "| triton |" in report

    monkeypatch.setattr(
        sections, "SECTIONS", [replace(s, on_cpu={"FAKE": "good"}) if s in fakes else s for s in whole]
    )
    begun(log)
    assert command.main([*arguments, "--model", str(model)]) == 0
    assert begun(log) == ["second", "third", "second"]
    assert "done before" in capsys.readouterr().out
