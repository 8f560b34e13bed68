"""What each method's file says of itself: `srpo-trl methods` and the options' help read it."""

import inspect
import re

import pytest

from srpo_trl.commands.methods import HEADING, describe
from srpo_trl.methods import METHODS

RELIABILITY = ("the paper", "the authors' code", "secondary sources", "the abstract alone", "ours")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_its_name_its_paper_and_its_source(name):
    factory = METHODS[name].factory
    first = inspect.getdoc(inspect.getmodule(factory)).partition("\n")[0]
    assert HEADING.fullmatch(first), first
    said = describe(factory)
    assert said.title == "A control" or "(" in first
    assert "(" not in said.title  # what stands in parentheses is a paper
    *formula, source = said.paragraphs
    assert formula
    sources = source.partition(".")[0].removeprefix("Source: ")
    assert source.startswith("Source: ")
    assert sources.startswith(RELIABILITY), sources


@pytest.mark.parametrize("name", METHODS)
def test_a_method_explains_each_of_its_options(name):
    factory = METHODS[name].factory
    text = " ".join(describe(factory).paragraphs)
    explained = {found.partition("[")[0] for found in re.findall(r"`([^`]+)`", text)}
    assert set(inspect.signature(factory).parameters) <= explained
