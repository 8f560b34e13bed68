"""Benchmarks of srpo_trl beside its peers; results in `RESULTS.md`.

`python -m benchmarks` runs all of them; `python -m benchmarks.loss` one. Every one has `--device`, `--quick` and
`--json PATH`.
`python -m benchmarks.gpu` is the one command for a GPU that is at hand for minutes.
"""
