"""What sampled evaluation makes of options that TRL and transformers read in another way."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from srpo_trl.config import SRPOConfig


def fit_evaluation(config: "SRPOConfig") -> None:
    """Set what follows from sampled evaluation, before TRL and transformers check and derive options.

    `metric_for_best_model` becomes avg@n where none is given, so that the best checkpoint is kept; transformers' own
    default is a loss, which is not computed. `per_device_eval_batch_size` becomes n: batches hold a token budget
    instead, and TRL would refuse a number that n does not divide.
    """
    num_samples = config.num_generations_eval or config.num_generations
    if config.metric_for_best_model is None and config.eval_strategy != "no":
        config.metric_for_best_model = f"eval_avg@{num_samples}"
    if isinstance(num_samples, int):
        config.per_device_eval_batch_size = num_samples
