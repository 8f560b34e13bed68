"""Which block of a completion is its program."""

import pytest

from srpo_trl.rewards.code import extract_program, follows_code_format

RIGHT = "Here it is.\n```python\nprint(3)\n```\nDone."


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```text\n3\n```\nSo:\n```python\nA\n```", "A\n"),
        ("```cpp\nint x;\n```\nSo:\n```\nA\n```", "A\n"),
        ("```python\nA\n```\nIt prints\n```\n9\n```", "A\n"),
        ("```Python\nA\n```", "A\n"),
        ("```python\r\nA\r\n```\r\n", "A\n"),
        ("1. So\n   ```python\n   if A:\n       B\n   ```", "if A:\n    B\n"),
        ("So: ```py\nA```", "A\n"),
        ("````python\nA = '''\n```\n'''\n````", "A = '''\n```\n'''\n"),
        ('```python\n"""\n```\nx\n```\n"""\nA\n```', '"""\n```\nx\n```\n"""\nA\n'),
        ("```python\nA = '''\n```\nor\n```python\nB\n```", "B\n"),
        ("```python\nA  # it's '''\n```\n```python\nB\n```", "B\n"),
        ("```python\nA\n```\nor\n```python\nB", "A\n"),
        ("```java\nA\n```", None),
        ("Write it in ``` fences.", None),
    ],
)
def test_the_program_is_the_last_block_of_python(text, program):
    assert extract_program(text) == program


def test_format_is_one_complete_block():
    assert follows_code_format(RIGHT)
    for wrong in (RIGHT * 2, "no block", "```python\nA", RIGHT + "\n```", "```java\nA\n```"):
        assert not follows_code_format(wrong)
