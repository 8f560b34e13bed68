"""Methods: what each rollout and each token is trained by. A new one is a file here and a line in `METHODS`."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from srpo_trl.methods import (
    advantage_mix,
    apo,
    clip_cov,
    cord,
    decoupling,
    dgpo,
    distil,
    dmpo,
    dph_rl,
    eksft,
    ema_anchor,
    erpd,
    f_dpg,
    fg_expo,
    g_opd,
    grpo,
    gtpo,
    hdpo,
    kdrl,
    kl_cov,
    lightning,
    mad_opd,
    many_faces,
    negative_control,
    opd,
    opd_then_rl,
    opsd,
    opsd_zhao,
    paced,
    pi_distill,
    rapo,
    rlad,
    rlsd,
    salsa,
    sc_sdpo,
    scope,
    sdpo,
    sdpo_correct,
    sdpo_failed,
    sdpo_then_grpo,
    selfci,
    skill_sd,
    srpo,
    srpo_both,
    srpo_stable,
    srpo_unweighted,
    tcod,
    tip,
    trace,
    uni_opd,
    va_opd,
    vla_opd,
    vopd,
)
from srpo_trl.methods.record import Method

# Options that are None until the method is known, as the paper has them (SRPO, table 3 and section 3.3): first
# inherited ones, then sampled evaluation and the extras.
PAPER_DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-6,
    "epsilon_high": 0.28,
    "scale_rewards": "none",
    "vllm_importance_sampling_mode": "token_truncate",
    "vllm_importance_sampling_clip_max": 2.0,
    "num_generations_eval": 16,
    "eval_temperature": 0.6,
    "eval_top_p": 0.95,
    "eval_tokens_per_batch": 65536,
    "max_nonfinite_steps": 3,
    "guard_action": "warn",
    "run_log": True,
}
WEIGHTED = PAPER_DEFAULTS | {"entropy_weight_beta": 1.0}
UNWEIGHTED = PAPER_DEFAULTS | {"entropy_weight_beta": 0.0}
WITHOUT_EXTRAS = {"guard_action": "off", "run_log": False}


class Entry(NamedTuple):
    """A method by name.

    Attributes:
        factory: makes the method. A parameter with the name of an option takes that option's value; the others are
            given in `method_options`.
        title: as tables and figures name it.
        defaults: of options that are None until the method is known; one that is missing here has TRL's default, or
            stays None.
    """

    factory: Callable[..., Method]
    title: str
    defaults: Mapping[str, Any] = WEIGHTED

    @property
    def help(self) -> str:
        """The method in one line."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]


METHODS: dict[str, Entry] = {
    "srpo": Entry(srpo.srpo, "SRPO"),
    "grpo": Entry(grpo.grpo, "GRPO", WITHOUT_EXTRAS),
    "sdpo": Entry(sdpo.sdpo, "SDPO", UNWEIGHTED),
    "sdpo_failed": Entry(sdpo_failed.sdpo_failed, "SDPO on failed", UNWEIGHTED),
    "sdpo_correct": Entry(sdpo_correct.sdpo_correct, "SDPO on correct", UNWEIGHTED),
    "advantage_mix": Entry(advantage_mix.advantage_mix, "advantage mix", UNWEIGHTED),
    "hdpo": Entry(hdpo.hdpo, "HDPO", UNWEIGHTED),
    "opsd": Entry(opsd.opsd, "OPSD", UNWEIGHTED),
    "opsd_zhao": Entry(opsd_zhao.opsd_zhao, "OPSD (Zhao)", UNWEIGHTED),
    "paced": Entry(paced.paced, "PACED", UNWEIGHTED),
    "sc_sdpo": Entry(sc_sdpo.sc_sdpo, "SC-SDPO", UNWEIGHTED),
    "distil": Entry(distil.distil, "DistIL", UNWEIGHTED),
    "decoupling": Entry(decoupling.decoupling, "Decoupling", UNWEIGHTED),
    "many_faces": Entry(many_faces.many_faces, "Many Faces", UNWEIGHTED),
    "sdpo_then_grpo": Entry(sdpo_then_grpo.sdpo_then_grpo, "SDPO, then GRPO", UNWEIGHTED),
    "clip_cov": Entry(clip_cov.clip_cov, "Clip-Cov", UNWEIGHTED),
    "kl_cov": Entry(kl_cov.kl_cov, "KL-Cov", UNWEIGHTED),
    "negative_control": Entry(negative_control.negative_control, "negative control", UNWEIGHTED),
    "kdrl": Entry(kdrl.kdrl, "KDRL", UNWEIGHTED),
    "opd": Entry(opd.opd, "OPD", UNWEIGHTED),
    "opd_then_rl": Entry(opd_then_rl.opd_then_rl, "OPD, then RL", UNWEIGHTED),
    "rlsd": Entry(rlsd.rlsd, "RLSD", UNWEIGHTED),
    "rlad": Entry(rlad.rlad, "RLAD", UNWEIGHTED),
    "g_opd": Entry(g_opd.g_opd, "G-OPD", UNWEIGHTED),
    "uni_opd": Entry(uni_opd.uni_opd, "Uni-OPD", UNWEIGHTED),
    "scope": Entry(scope.scope, "SCOPE", UNWEIGHTED),
    "tip": Entry(tip.tip, "TIP", UNWEIGHTED),
    "dmpo": Entry(dmpo.dmpo, "DMPO", UNWEIGHTED),
    "rapo": Entry(rapo.rapo, "RAPO", UNWEIGHTED),
    "f_dpg": Entry(f_dpg.f_dpg, "f-DPG", UNWEIGHTED),
    "salsa": Entry(salsa.salsa, "SALSA", UNWEIGHTED),
    "ema_anchor": Entry(ema_anchor.ema_anchor, "EMA anchor", UNWEIGHTED),
    "va_opd": Entry(va_opd.va_opd, "VA-OPD", UNWEIGHTED),
    "eksft": Entry(eksft.eksft, "EKSFT", UNWEIGHTED),
    "apo": Entry(apo.apo, "APO", UNWEIGHTED),
    "fg_expo": Entry(fg_expo.fg_expo, "FG-ExPO", UNWEIGHTED),
    "erpd": Entry(erpd.erpd, "ERPD", UNWEIGHTED),
    "vopd": Entry(vopd.vopd, "vOPD", UNWEIGHTED),
    "selfci": Entry(selfci.selfci, "SELFCI", UNWEIGHTED),
    "mad_opd": Entry(mad_opd.mad_opd, "MAD-OPD", UNWEIGHTED),
    "vla_opd": Entry(vla_opd.vla_opd, "VLA-OPD", UNWEIGHTED),
    "skill_sd": Entry(skill_sd.skill_sd, "Skill-SD", UNWEIGHTED),
    "gtpo": Entry(gtpo.gtpo, "GTPO", UNWEIGHTED),
    "dgpo": Entry(dgpo.dgpo, "DGPO", UNWEIGHTED),
    "lightning": Entry(lightning.lightning, "Lightning OPD", UNWEIGHTED),
    "dph_rl": Entry(dph_rl.dph_rl, "DPH-RL", UNWEIGHTED),
    "srpo_unweighted": Entry(srpo_unweighted.srpo_unweighted, "SRPO, unweighted", UNWEIGHTED),
    "pi_distill": Entry(pi_distill.pi_distill, "pi-Distill", UNWEIGHTED),
    "tcod": Entry(tcod.tcod, "TCOD", UNWEIGHTED),
    "cord": Entry(cord.cord, "CORD", UNWEIGHTED),
    "trace": Entry(trace.trace, "TRACE", UNWEIGHTED),
    "srpo_stable": Entry(srpo_stable.srpo_stable, "SRPO-stable"),
    "srpo_both": Entry(srpo_both.srpo_both, "SRPO-both"),
}
DEFAULT = "srpo"
GRPO = "grpo"  # `GRPOTrainer` itself
TABLE_1 = ("grpo", "sdpo", "srpo")  # of the paper

# The variants of the paper's tables 1 and 2 and of figure 1b, each as the options that make it of any configuration.
_UNWEIGHTED = {"entropy_weight_beta": "0"}
VARIANTS: dict[str, dict[str, str]] = {
    "grpo": {"method": "grpo"},
    "sdpo": {"method": "sdpo", **_UNWEIGHTED},
    "srpo": {"method": "srpo"},
    "srpo_beta0": {"method": "srpo", **_UNWEIGHTED},
    "advantage_mix": {"method": "advantage_mix", **_UNWEIGHTED},
    "sdpo_failed": {"method": "sdpo_failed", **_UNWEIGHTED},
    "sdpo_correct": {"method": "sdpo_correct", **_UNWEIGHTED},
}
# What distillation must beat to be worth its while, and every comparison has beside the paper's variants.
CONTROLS = ("ema_anchor", "negative_control")
# By the names that a comparison takes: these, and every other method with the defaults of its options.
COMPARABLE: dict[str, dict[str, str]] = {name: {"method": name} for name in METHODS} | VARIANTS


def factory_of(name: Any) -> Callable[..., Any]:
    """Return what makes the method of this name.

    Args:
        name: a key of `METHODS`, or "module:factory".
    Raises:
        ValueError: there is none.
    """
    if isinstance(name, str) and name in METHODS:
        return METHODS[name].factory
    if isinstance(name, str) and ":" in name:
        module, _, attribute = name.partition(":")
        try:
            factory: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"method={name!r} cannot be imported: {error}") from error
        if callable(factory):
            return factory
        raise ValueError(
            f"method={name!r} is a {type(factory).__name__}; a function that makes a method is required."
        )
    near = get_close_matches(name, METHODS, n=1) if isinstance(name, str) else []
    meant = f"Did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"method={name!r} is not a method. {meant}`srpo-trl methods` lists all; your own is 'module:factory'."
    )
