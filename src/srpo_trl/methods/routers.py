"""Routers: functions from graded rollouts to routes, (P, G) int64 of `Route`. A method has one of its own."""

from collections.abc import Callable

import torch
from torch import Tensor

from srpo_trl.loss.float64 import back_from_float64, beside_float64
from srpo_trl.methods import groups
from srpo_trl.methods.record import Graded, Method, Route, is_distilled, is_trained


def policy(graded: Graded) -> Tensor:
    """Policy loss everywhere."""
    return torch.full_like(graded.is_correct_PG, Route.POLICY, dtype=torch.int64)


def policy_with_context(graded: Graded) -> Tensor:
    """Policy loss on rollouts with context, exclude the others."""
    return torch.where(graded.has_context_PG, Route.POLICY, Route.SKIPPED)


def sample_routed(graded: Graded) -> Tensor:
    """Distill failed rollouts with context: `z_sdpo = (1 - c) * m`, `z_grpo = 1 - z_sdpo` (SRPO, section 3.1)."""
    return torch.where(~graded.is_correct_PG & graded.has_context_PG, Route.DISTILLED, Route.POLICY)


def distilled(graded: Graded) -> Tensor:
    """Distill rollouts with context, exclude the others."""
    return torch.where(graded.has_context_PG, Route.DISTILLED, Route.SKIPPED)


def distilled_failed(graded: Graded) -> Tensor:
    """Distill failed rollouts with context, exclude the others."""
    return torch.where(graded.has_context_PG & ~graded.is_correct_PG, Route.DISTILLED, Route.SKIPPED)


def distilled_correct(graded: Graded) -> Tensor:
    """Distill correct rollouts with context, exclude the others."""
    return torch.where(graded.has_context_PG & graded.is_correct_PG, Route.DISTILLED, Route.SKIPPED)


def both(graded: Graded) -> Tensor:
    """Policy loss everywhere, and distillation of rollouts with context."""
    return torch.where(graded.has_context_PG, Route.BOTH, Route.POLICY)


def both_with_context(graded: Graded) -> Tensor:
    """Policy loss and distillation of rollouts with context, exclude the others."""
    return torch.where(graded.has_context_PG, Route.BOTH, Route.SKIPPED)


def both_where_all_failed(graded: Graded) -> Tensor:
    """Policy loss everywhere; in groups without a correct rollout, distillation as well, where there is context."""
    is_distilled_PG = groups.has_failed(graded) & graded.has_context_PG
    return torch.where(is_distilled_PG, Route.BOTH, Route.POLICY)


def both_failed(graded: Graded) -> Tensor:
    """Policy loss everywhere, and distillation of failed rollouts with context."""
    return torch.where(~graded.is_correct_PG & graded.has_context_PG, Route.BOTH, Route.POLICY)


def by_step(
    first: Callable[[Graded], Tensor], then: Callable[[Graded], Tensor], at_step: int
) -> Callable[[Graded], Tensor]:
    """Return the router that is `first` for so many optimizer steps, then another."""
    return lambda graded: first(graded) if graded.step < at_step else then(graded)


# Values of the option `routing`, which takes the place of a method's own router.
ROUTERS: dict[str, Callable[[Graded], Tensor]] = {
    "srpo": sample_routed,
    "sdpo": distilled,
    "sdpo_failed": distilled_failed,
    "sdpo_correct": distilled_correct,
}


def needs_context(method: Method, graded: Graded) -> Tensor:
    """Return which rollouts would be scored if there were a prompt for each, (P, G) bool.

    Those that would be distilled; with scorers that only observe, all that would train.
    """
    everywhere = graded._replace(has_context_PG=torch.ones_like(graded.has_context_PG))
    return graded.is_scored_PG & is_rescored(method, _asked(method.route, everywhere))


def is_rescored(method: Method, route: Tensor) -> Tensor:
    """Return where the scorers of a method are asked: bool, of the routes' shape."""
    return (is_distilled if method.distilling else is_trained)(route) & bool(method.scorers)


def scored_routes(router: Callable[[Graded], Tensor], graded: Graded) -> Tensor:
    """Return the routes, (P, G) int64, with every rollout that has no score excluded from the loss."""
    return torch.where(graded.is_scored_PG, _asked(router, graded), Route.SKIPPED)


def _asked(router: Callable[[Graded], Tensor], graded: Graded) -> Tensor:
    """Return the router's answer, which may be computed in float64, on the rollouts' device."""
    device = graded.is_scored_PG.device
    return back_from_float64(router(beside_float64(graded, device)), device)
