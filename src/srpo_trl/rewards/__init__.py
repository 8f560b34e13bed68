"""Reward functions for TRL: graders of the paper's benchmarks with feedback, mathematics, code, rubrics, form.

Each `get_*_reward(options)` returns a reward function; `*_reward` is the one with default options, importable
by its dotted name from a YAML file or the command line (`srpo_trl.rewards.multiple_choice_reward`).
"""

from srpo_trl.rewards.code import code_reward, get_code_reward
from srpo_trl.rewards.grading import GradedReward
from srpo_trl.rewards.maths import get_math_reward, math_reward
from srpo_trl.rewards.multiple_choice import get_multiple_choice_reward, multiple_choice_reward
from srpo_trl.rewards.rubric import RubricReward
from srpo_trl.rewards.shape import format_reward, get_format_reward, get_length_reward, length_reward
from srpo_trl.rewards.tool_use import get_tool_use_reward, tool_use_reward

BENCHMARK_REWARDS: dict[str, GradedReward] = {
    "chemistry": multiple_choice_reward,
    "physics": multiple_choice_reward,
    "biology": multiple_choice_reward,
    "materials": multiple_choice_reward,
    "tooluse": tool_use_reward,
    "gsm8k": math_reward,
    "livecodebench": code_reward,
}

__all__ = [
    "BENCHMARK_REWARDS",
    "RubricReward",
    "code_reward",
    "format_reward",
    "get_code_reward",
    "get_format_reward",
    "get_length_reward",
    "get_math_reward",
    "get_multiple_choice_reward",
    "get_tool_use_reward",
    "length_reward",
    "math_reward",
    "multiple_choice_reward",
    "tool_use_reward",
]
