"""`SRPOConfig`: every option, with its default, its range and its reason."""

from srpo_trl.config.options import (
    FEEDBACK_TEMPLATE,
    REPROMPT_TEMPLATE,
    SOLUTION_TEMPLATE,
    SRPOConfig,
)

__all__ = ["FEEDBACK_TEMPLATE", "REPROMPT_TEMPLATE", "SOLUTION_TEMPLATE", "SRPOConfig"]
