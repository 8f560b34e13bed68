"""The names of `METHODS`: of SRPO's own comparison, and of the family around it. Imports no trainer."""

from srpo_trl.methods import METHODS, VARIANTS

PAPER = tuple(dict.fromkeys(options["method"] for options in VARIANTS.values()))
FAMILY = tuple(name for name in METHODS if name not in PAPER)
