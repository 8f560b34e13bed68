"""Benchmarks of srpo_trl beside its peers; results in `RESULTS.md`.

`python -m benchmarks` runs all of them; `python -m benchmarks.loss` one. Every one has `--device`, `--quick` and
`--json PATH`. What they share is in `benchmarks.loss_table`, which `srpo-trl bench` needs, too.
"""
