"""The paper's five benchmarks and GSM8K as datasets for TRL."""

from srpo_trl.data.benchmarks import BENCHMARKS, Benchmark, load_benchmark
from srpo_trl.data.gsm8k import load_gsm8k

__all__ = ["BENCHMARKS", "Benchmark", "load_benchmark", "load_gsm8k"]
