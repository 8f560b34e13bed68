"""SC-SDPO (arXiv:2605.27765): SDPO weighted by how undecided the group is."""

from srpo_trl.methods import paced
from srpo_trl.methods.record import Method


def sc_sdpo(power: float = 0.5) -> Method:
    """w = (p (1 - p))^`power` with the group's pass rate p, mean 1 over the optimizer step's distilled tokens.

    Source: secondary sources. D is that of the `distillation_*` options.
    """
    method = paced.paced(powers=(power, power))
    return method._replace(divergence={}, mean_one=True)
