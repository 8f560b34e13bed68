"""The paper's five benchmarks as datasets for TRL."""

from srpo_trl.data.benchmarks import BENCHMARKS, Benchmark, load_benchmark

__all__ = ["BENCHMARKS", "Benchmark", "load_benchmark"]
