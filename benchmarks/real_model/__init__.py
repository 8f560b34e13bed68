"""GRPO, SDPO and SRPO on a pretrained model, from one start: `python -m benchmarks.real_model --model DIR_OR_ID`.

`weights` reads the model, `task` makes the questions, `start` warms the model up where it needs that, and `headroom`
measures it and its teacher and says whether there is anything to learn. `seed` trains the methods in turns, in a
process for each seed that `study` starts; `tables` reads the runs' folders. Results: benchmarks/REAL_MODEL.md.
"""
