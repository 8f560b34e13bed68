"""Programs against tests: grades and feedback, and that hostile programs get 0 and harm nothing."""

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import venv

import pytest

from srpo_trl.rewards import code_reward, get_code_reward, sandbox
from srpo_trl.rewards.code import matches
from srpo_trl.rewards.sandbox import Execution, Isolation, Limits, Task, isolation, run_python

LIMITS = Limits(seconds=1.0, memory_mb=512)
SUM = json.dumps({"inputs": ["1 2\n", "40 2\n"], "outputs": ["3\n", "42\n"]})
REVERSE = json.dumps({"fn_name": "reverse", "inputs": [[[1, 2]], [["a"]]], "outputs": [[2, 1], ["a"]]})
RIGHT = "print(sum(map(int, input().split())))"


def block(program):
    return f"Here it is.\n```python\n{program}\n```\nDone."


def graded(program, tests=SUM, **options):
    """Reward and feedback of one completion."""
    feedback = []
    reward = get_code_reward(limits=LIMITS, **options)
    rewards = reward([block(program)], [tests], log_extra=lambda name, texts: feedback.extend(texts))
    return rewards[0], feedback[0]


def test_a_right_program_passes_all_tests():
    assert graded(RIGHT) == (1.0, "")
    assert graded(
        "class Solution:\n    def reverse(self, rows):\n        print('x')\n        return rows[::-1]",
        REVERSE,
    ) == (
        1.0,
        "",
    )
    assert graded("def reverse(rows):\n    return tuple(rows[::-1])", REVERSE) == (1.0, "")


def test_feedback_names_input_output_and_where_asked_what_was_expected():
    assert graded("input()\nprint(3)") == (
        0.0,
        "With the input 40 2\n: the output was 3, which is wrong.",
    )
    assert graded("print(3)", reveal_answer=True)[1].endswith("which is wrong. Expected: 42")
    assert graded("print(3)", share=True)[0] == 0.5
    assert graded("print(3)", max_tests=1) == (1.0, "")
    reward, said = graded("numbers = input().split()\nprint(numbers[2])")
    assert reward == 0.0
    assert said == "With the input 1 2\n: IndexError: list index out of range (line 2: print(numbers[2]))"
    assert graded("def reverse(rows):\n    return rows", REVERSE)[1].startswith(
        "reverse([1, 2]): the output was [1, 2]"
    )
    assert len(graded(f"print('y' * {10**5})")[1]) < 600


def test_completions_without_a_block_and_rows_without_tests():
    assert code_reward(["no block", "```python\nprint(1)"], [SUM, SUM]) == [0.0, 0.0]
    assert code_reward([block(RIGHT)], ["no tests"]) == [None]
    assert code_reward([block(RIGHT)], [json.dumps({"inputs": [], "outputs": []})]) == [None]
    assert code_reward([block(RIGHT)], [json.dumps({"inputs": ["1"], "outputs": []})]) == [None]
    no_list = json.dumps({"fn_name": "f", "inputs": [1], "outputs": [1]})
    assert code_reward([block("def f(x): return 0")], [no_list]) == [None]


@pytest.mark.parametrize(
    ("output", "expected", "is_right"),
    [
        ("3 \n\n", "3", True),
        ("3.0", "3", True),
        ("3 4", "3\n4", False),
        ("yes", "Yes", False),
        ("", "0", False),
        ("1e400000000", "2", False),
        ("1_0", "10", False),
        ("-.5 1e2", "-0.50 100", True),
    ],
)
def test_printed_output_is_compared_line_by_line_and_numbers_by_value(output, expected, is_right):
    assert matches(output, expected, is_value=False) is is_right


def test_values_are_compared_as_json():
    assert matches("[1, 2]", (1, 2), is_value=True)
    assert not matches("3", [3], is_value=True)
    assert not matches("[1, 2]", [[1, 2]], is_value=True)
    assert not matches("[1]", [True], is_value=True)
    assert matches('{"a": [1.0, null]}', {"a": (1, None)}, is_value=True)
    assert not matches("[3, 4]", [3], is_value=True)
    assert not matches("9" * 10_000, 9, is_value=True)
    assert not matches("[" * 10_000, 9, is_value=True)


def kinds():
    """Every isolation that works here: the strongest, and those that stand in for it elsewhere."""
    found = [Isolation(kind, own) for kind in ("bubblewrap", "namespaces", "limits") for own in (True, False)]
    return [one for one in found if os.name == "posix" and sandbox._works(one)]


@pytest.fixture(params=[0, *(pytest.param(number, marks=pytest.mark.slow) for number in range(1, 6))])
def kind(request, monkeypatch):
    found, number = kinds(), request.param
    if number >= len(found):
        pytest.skip(f"this machine has {len(found)} ways to keep programs apart")
    monkeypatch.setattr(sandbox, "isolation", lambda: found[number])
    return found[number]


HOSTILE = {
    "endless output": ("while True: print('x' * 1000)", "wrote more than"),
    "endless errors": (
        "import sys\nwhile True: sys.stderr.write('x' * 10**5)",
        "more than 64 MB",
    ),
    "leaves without a word": ("import os; os._exit(0)", "the output was empty"),
    "a power that holds the interpreter": ("x = 9 ** 9 ** 9", "did not end within 1 seconds"),
    "sleeps": ("import time; time.sleep(60)", "did not end within 1 seconds"),
    "takes the memory": ("rows = [0] * 10 ** 9", "MemoryError"),
    "fills the disk": (
        "with open('big', 'w') as f:\n    while True: f.write('x' * 10 ** 6)",
        "File too large",
    ),
    "threads": (
        "import threading, time\nfor _ in range(99): threading.Thread(target=time.sleep, args=(1,)).start()",
        "",
    ),
    "reads the tests": (
        "import gc, sys\nprint([o for o in gc.get_objects() if isinstance(o, dict) and 'outputs' in o], sys.argv)",
        "the output was [] ['-c']",
    ),
    "ends its parent": ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)", ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_get_0(name, kind):
    program, said = HOSTILE[name]
    if name == "ends its parent" and kind == Isolation("limits", False):
        pytest.skip("that would end this process")
    start = time.perf_counter()
    reward, feedback = graded(program)
    assert reward == 0.0
    assert said in feedback
    assert time.perf_counter() - start < 30
    assert graded(RIGHT) == (1.0, "")


def test_what_a_harness_prints_is_an_answer_like_any_other(kind):
    forged = "import os\nfor number in range(3, 9):\n    try: os.write(number, b'[2, 1]')\n    except OSError: pass\n"
    assert graded(forged + "print('passed')\nprint(1.0)")[0] == 0.0
    assert graded(forged + "def reverse(rows):\n    return 0", REVERSE)[0] == 0.0


def test_a_fork_bomb_ends(kind):
    if not kind.has_own_user and (kind.kind == "limits" or os.geteuid() == 0):
        pytest.skip("processes are not counted")
    assert graded("import os\nwhile True: os.fork()")[0] == 0.0
    assert graded(RIGHT) == (1.0, "")


def test_no_network_and_no_writes_outside_the_scratch_folder(kind, tmp_path):
    if kind.kind == "limits":
        pytest.skip("which this machine's limits alone do not give")
    run = run_python(Task("import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=1)"), LIMITS)
    assert "OSError" in run.error or "Error" in run.error
    names = run_python(Task("import socket\nprint([name for _, name in socket.if_nameindex()])"), LIMITS)
    assert names.output.strip() in ("['lo']", "[]")
    if kind.kind == "bubblewrap":
        mine = tmp_path / "mine"
        mine.write_text("secret", encoding="utf-8")
        assert "FileNotFoundError" in run_python(Task(f"print(open({str(mine)!r}).read())"), LIMITS).error
        assert "Read-only" in run_python(Task("open('/usr/lib/own', 'w')"), LIMITS).error
        assert (
            run_python(Task("open('own', 'w').write('x')\nprint(open('own').read())"), LIMITS).output == "x\n"
        )


def test_a_child_that_leaves_its_session_does_not_hold_the_run(kind):
    program = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(8)\nprint(3)"
    start = time.perf_counter()
    assert run_python(Task(program), LIMITS) == Execution("3\n")
    assert time.perf_counter() - start < 6


def test_a_machine_that_keeps_nothing_apart_is_told_loudly(monkeypatch, caplog):
    monkeypatch.setattr(sandbox, "_works", lambda found: found == Isolation("limits", False))
    isolation.cache_clear()
    try:
        assert isolation() == Isolation("limits", False)
        assert "WITH NETWORK AND FILES IN REACH" in caplog.text
        assert "bubblewrap" in caplog.text
    finally:
        isolation.cache_clear()


def elsewhere(task, limits):
    """Stands in for a remote sandbox."""
    return Execution("3") if task.stdin.startswith("1") else Execution("", "gone")


def test_another_executor_can_stand_in():
    assert graded("print(3)", executor=elsewhere) == (0.0, "With the input 40 2\n: gone")
    assert pickle.loads(pickle.dumps(get_code_reward(executor=elsewhere))).__name__ == "code_reward"


def test_rows_are_graded_at_once():
    both_run = threading.Barrier(2, timeout=60)

    def waits(task, limits):
        both_run.wait()
        return Execution("3")

    tests = json.dumps({"inputs": ["1 2"], "outputs": ["3"]})
    assert get_code_reward(executor=waits, num_threads=2)([block("")] * 2, [tests] * 2) == [1.0, 1.0]


def test_no_file_stays_behind(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert graded("open('left', 'w').write('x')\n" + RIGHT)[0] == 1.0
    assert list(tmp_path.iterdir()) == []


ESCAPE = """
import ctypes, os, sys
bind_writable = 32 | 4096  # MS_REMOUNT | MS_BIND without MS_RDONLY
for folder in (sys.prefix, "/usr"):
    print(ctypes.CDLL(None).mount(b"none", folder.encode(), None, ctypes.c_ulong(bind_writable), None))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["CapEff"], 16), int(status["CapBnd"], 16))
"""


def test_a_program_cannot_mount_anew_what_is_read_only(kind):
    if kind.kind == "limits" or sys.platform != "linux":
        pytest.skip("nothing is read-only there")
    assert run_python(Task(ESCAPE), LIMITS) == Execution("-1\n-1\n0 0\n")


def test_a_program_runs_in_this_very_interpreter(kind):
    assert run_python(Task("import sys, numpy\nprint(sys.prefix)"), LIMITS).output.strip() == sys.prefix


OF_ANOTHER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("sandbox", sys.argv[1])
sandbox = sys.modules["sandbox"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sandbox)
print(tuple(sandbox.isolation()))
print(sandbox.run_python(sandbox.Task("import sys; print(sys.prefix)")).output.strip() == sys.prefix)
"""


def test_an_interpreter_in_a_closed_folder_below_tmp_is_reached():
    found = kinds()
    if not found or found[0].kind != "bubblewrap":
        pytest.skip("needs bubblewrap")
    with tempfile.TemporaryDirectory(dir="/tmp") as closed:
        venv.create(f"{closed}/own/venv", symlinks=True)
        command = [f"{closed}/own/venv/bin/python", "-I", "-c", OF_ANOTHER, sandbox.__file__]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.stderr) == (f"{tuple(found[0])}\nTrue\n", "")


def test_scratch_folders_are_small_and_nothing_else_takes_files(kind):
    if kind.kind != "bubblewrap":
        pytest.skip("which bubblewrap alone gives")
    program = """
for folder in ("/", "/dev", "/tmp", "/dev/shm"):
    written = 0
    try:
        for name in "ab":
            with open(f"{folder}/{name}", "wb") as file:
                written += file.write(bytes(10 << 20))
    except OSError as error:
        print(folder, written >> 20, error.errno)
"""
    assert run_python(Task(program), LIMITS).output == "/ 0 30\n/dev 0 30\n/tmp 10 28\n/dev/shm 10 28\n"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="for Linux's superuser")
def test_a_superuser_without_users_for_programs_is_told(monkeypatch, caplog):
    monkeypatch.setattr(sandbox, "_works", lambda found: found == Isolation("bubblewrap", False))
    isolation.cache_clear()
    try:
        assert isolation() == Isolation("bubblewrap", False)
        assert "run as the superuser" in caplog.text
    finally:
        isolation.cache_clear()


def test_a_tool_that_is_not_installed_rules_its_kind_out(monkeypatch):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    assert not sandbox._works(Isolation("bubblewrap", False))
    assert not sandbox._works(Isolation("limits", True))
    assert sandbox._works(Isolation("limits", False))


def test_starter_code_finds_the_usual_imports_and_no_function_among_them():
    tests = json.dumps({"fn_name": "gcd", "inputs": [[[4, 6]]], "outputs": [2]})
    program = "class Solution:\n    def gcd(self, a: List[int]) -> int:\n        return "
    assert graded(program + "reduce(math.gcd, deque(a)) * pow(1, 1, 2)", tests) == (1.0, "")
    assert "NameError: name 'nothing' is not defined (line 3: " in graded(program + "nothing", tests)[1]
    pair = json.dumps({"fn_name": "gcd", "inputs": [[4, 6]], "outputs": [2]})
    assert "KeyError: 'gcd'" in graded("x = 1", pair)[1]


def test_output_may_be_as_long_as_what_is_expected_and_errors_longer():
    tests = json.dumps({"inputs": [""], "outputs": ["\n".join(["1234567"] * 10**5)]})
    assert graded("print('1234567\\n' * 10**5)", tests) == (1.0, "")
    assert "wrote more than" in graded("print('1234567\\n' * 2 * 10**5)", tests)[1]
    assert graded("import sys\nsys.stderr.write('x\\n' * 10**6)\n" + RIGHT) == (1.0, "")
    said = graded("import sys\nsys.stderr.write('x\\n' * 10**6)\n1 // 0")[1]
    assert "ZeroDivisionError" in said
    big = json.dumps({"fn_name": "f", "inputs": [[]], "outputs": [[1234567] * 10**5]})
    assert graded("def f(): return [1234567] * 10**5", big) == (1.0, "")


def test_no_tests_at_all_cannot_be_asked_for():
    with pytest.raises(ValueError, match=r"max_tests is 0\. Give 1 or more"):
        get_code_reward(max_tests=0)


def test_standard_streams_can_be_opened_by_name(kind):
    program = "text = open('/dev/stdin').read()\nopen('/dev/stdout', 'w').write(text)"
    assert run_python(Task(program, "3\n"), LIMITS) == Execution("3\n")


def test_large_inputs_are_given_and_a_driver_without_its_task_ends():
    size = 30 * 10**6
    assert run_python(Task("print(len(input()))", "x" * size), LIMITS) == Execution(f"{size}\n")
    command = [sys.executable, "-I", "-c", sandbox._DRIVER]
    assert subprocess.run(command, input=b"0000", capture_output=True, timeout=60).returncode == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of processes")
def test_limits_stay_below_those_that_hold_already(kind):
    program = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
sys.argv = ["-c"]
exec({sandbox._DRIVER!r})
"""
    task = json.dumps(
        {"program": "print(3)", "function": None, "limits": sandbox._resource_limits(kind, Limits())}
    )
    command = [sys.executable, "-I", "-c", program]
    run = subprocess.run(command, input=f"{len(task):012d}{task}", capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.returncode) == ("3\n", 0)


def test_processes_are_counted_where_only_the_programs_count():
    counted = {
        found: "RLIMIT_NPROC" in sandbox._resource_limits(found, Limits())
        for found in (
            Isolation("bubblewrap", False),
            Isolation("namespaces", False),
            Isolation("limits", True),
        )
    }
    assert all(counted.values())
    assert "RLIMIT_NPROC" not in sandbox._resource_limits(Isolation("limits", False), Limits())


def test_the_processor_s_seconds_decide(kind):
    assert run_python(Task("import time\ntime.sleep(1.5)\nprint(3)"), Limits(seconds=1.0)).output == "3\n"
    start = time.perf_counter()
    busy = run_python(Task("while True: pass"), Limits(seconds=1.0))
    assert busy.error == "It did not end within 1 seconds."
    assert time.perf_counter() - start < 4.9


@pytest.mark.parametrize(("system", "has_limit"), [("linux", True), ("darwin", False)])
def test_macos_is_asked_for_no_limit_of_memory(monkeypatch, system, has_limit):
    monkeypatch.setattr(sandbox.sys, "platform", system)
    limits = sandbox._resource_limits(Isolation("limits", False), Limits())
    assert ("RLIMIT_AS" in limits) == has_limit
