"""A method of each kind makes one process's update with two, under DDP, FSDP2 and ZeRO: scorers of every kind.

On CPUs: gloo in place of NCCL. Each run first says that the engine ran, and that the external teachers are sharded.
"""

import pytest

from engine_launch import launch
from engine_options import ENGINES
from engine_processes import FAMILY, family
from harness import relative_error


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    made = {}

    def run(name):
        if name not in made:
            made[name] = family(tmp_path_factory.mktemp(name), 1, name)
        return made[name]

    return run


def assert_same(found, expected, engine):
    name, is_sharded = ENGINES[engine]
    assert (found["engine"], found["num_processes"]) == (name, 2)
    assert found["held"] == [pytest.approx(0.5, abs=0.01) if is_sharded else 1.0] * len(found["held"])
    assert expected["update"].norm() > 0
    assert relative_error(found["update"], expected["update"]) < 1e-5
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4, abs=1e-5)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


def test_two_processes_make_the_update_of_one(tmp_path, alone):
    names = ["kdrl", "selfci", "rapo"]
    for rank in launch("ddp", tmp_path, *names):
        for name in names:
            assert_same(rank["family"][name], alone(name), "ddp")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero2", "zero3"])
def test_every_engine_makes_the_update_of_one_process(tmp_path, alone, engine):
    ranks = launch(engine, tmp_path, *FAMILY)
    for name in FAMILY:
        for rank in ranks:
            assert_same(rank["family"][name], alone(name), engine)
