"""SRPO (Sample-Routed Policy Optimization, arXiv:2604.02288) for Hugging Face TRL.

`SRPOTrainer` extends `trl.GRPOTrainer`: correct rollouts take GRPO's update, failed rollouts with a correct
sibling (or feedback) are distilled from the same model that has been shown that sibling.
"""

from typing import TYPE_CHECKING, Any

from srpo_trl.version import __version__

if TYPE_CHECKING:
    from srpo_trl.config import SRPOConfig
    from srpo_trl.trainer import SRPOTrainer

__all__ = ["SRPOConfig", "SRPOTrainer", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the trainer and its config when first asked for, so that `import srpo_trl` stays light."""
    if name == "SRPOTrainer":
        from srpo_trl.trainer import SRPOTrainer

        return SRPOTrainer
    if name == "SRPOConfig":
        from srpo_trl.config import SRPOConfig

        return SRPOConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
