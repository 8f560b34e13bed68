"""Public functions of TRL that the core takes; no trainer is imported for them."""

from trl import prepare_multimodal_messages
from trl.rewards import get_soft_overlong_punishment

__all__ = ["get_soft_overlong_punishment", "prepare_multimodal_messages"]
