"""MAD-OPD (arXiv:2605.01347): distil to several teachers at once, without their debate."""

from torch import Tensor

from srpo_trl.methods import routers, scorers
from srpo_trl.methods.record import Method, Tokens


def mad_opd(models: tuple[str, ...] = ("first", "second"), alpha: float = 0.5) -> Method:
    """Mean of the divergences of `alpha` to the models of `teacher_model` with the names `models`.

    Source: the authors' code, where the teachers debate first and weigh by their confidence; here all alike.
    """

    def weights(tokens: Tokens) -> tuple[Tensor, ...]:
        return (tokens.mask_BT / len(models),) * len(models)

    external = scorers.EXTERNAL._replace(distils=True)
    teachers = tuple(
        external._replace(name=f"teacher{n}" if n else "teacher", model=model)
        for n, model in enumerate(models)
    )
    return Method(routers.distilled, teachers, {"alpha": alpha}, weights=weights, mean_one=False)
