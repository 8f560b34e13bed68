"""Everything that is to be measured on a GPU, in one command that may be cut off: docs/gpu.md.

    python -m benchmarks.gpu --minutes 8 --out DIR

`sections` lists what is measured, in order of worth; `runner` runs each section in a process of its own, `child`,
which writes a `record` after every part. The other modules are one section each.
"""
