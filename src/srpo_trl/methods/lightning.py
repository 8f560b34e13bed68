"""Lightning OPD (arXiv:2604.13010): on-policy distillation on rollouts that were sampled and scored before."""

from srpo_trl.methods import opd, routers
from srpo_trl.methods.record import OWN_CONTEXT, Method, Scorer


def lightning() -> Method:
    """A = d with the teacher's stored log-probabilities: no teacher is loaded while the student trains.

    Give `srpo_trl.rollout.offline.offline_rollouts(rows)` as rollout_func, rows made by `with_teacher_logps`.

    Source: the paper and the authors' code. It asks for one teacher for the fine-tuning before and for this.
    """
    stored = Scorer(weights="cached", context=OWN_CONTEXT, distils=False)
    return opd.opd()._replace(route=routers.policy_with_context, scorers=(stored,))
