"""The paper's five benchmarks, GSM8K and LiveCodeBench as datasets for TRL."""

from srpo_trl.data.benchmarks import BENCHMARKS, Benchmark, load_benchmark
from srpo_trl.data.gsm8k import load_gsm8k
from srpo_trl.data.livecodebench import load_livecodebench

__all__ = ["BENCHMARKS", "Benchmark", "load_benchmark", "load_gsm8k", "load_livecodebench"]
