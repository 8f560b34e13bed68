"""The first run: a tiny model that learns 4-digit addition with GRPO, SDPO and SRPO in minutes on a CPU."""
