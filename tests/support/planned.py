"""Plans of `srpo-trl plan` for published models, whose shapes the package knows."""

from srpo_trl.commands.plan.arguments import read_request
from srpo_trl.commands.plan.phases import estimate_memory
from srpo_trl.commands.plan.published import PublishedSizes
from srpo_trl.commands.plan.step import FakeModels


def fitting_plan(arguments, memory, name):
    """A run and its plan, once it fits a GPU of so many GiB; the hub is out of reach in tests."""
    request, problems = read_request([*arguments, "--gpu_memory", memory])
    assert not problems
    run = request.run
    assert isinstance(run.model, PublishedSizes)
    plan = estimate_memory(run, FakeModels(), run.training.per_device_train_batch_size)
    print(f"{name}: {plan.peak / 2**30:.1f} GiB, {plan.peak_phase}, of {request.room / 2**30:.1f}")
    assert 0 < plan.peak <= request.room
    return run, plan
