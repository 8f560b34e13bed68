"""In place of vLLM, on a CPU: TRL's own `VLLMGeneration` runs on top.

Completions follow from a generator with a fixed seed; a model that is sent the weights scores them.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient

NUM_SPECIAL = 6  # tokens before the first ordinary one


class Sampler:
    """Draws completions and scores them with the weights that it was sent last."""

    def __init__(self, model: Any, eos_id: int, max_length: int) -> None:
        self._model = model
        self._eos_id, self._max_length = eos_id, max_length
        self._generator = torch.Generator().manual_seed(0)

    def receive(self, weights: Any) -> None:
        parameters = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, value in weights:
                parameters[name].copy_(value)

    def sample(self, prompt_ids: Sequence[int], temperature: float) -> tuple[list[int], list[float]]:
        """Return token ids and their log-probabilities, a little off as a real sampler's are."""
        length = int(torch.randint(1, self._max_length, (), generator=self._generator))
        ordinary = (NUM_SPECIAL, self._model.config.vocab_size)
        ids = [*torch.randint(*ordinary, (length,), generator=self._generator).tolist(), self._eos_id]
        with torch.no_grad():
            logits_TV = self._model(torch.tensor([[*prompt_ids, *ids]])).logits[0, len(prompt_ids) - 1 : -1]
        logps_T = (logits_TV / temperature).log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        return ids, (logps_T + 0.1 * torch.randn(len(ids), generator=self._generator)).tolist()


class ColocatedEngine:
    """As much of `vllm.LLM` as TRL uses."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=sampler.receive))
        executor = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        self.llm_engine = SimpleNamespace(
            model_executor=executor, model_config=SimpleNamespace(max_model_len=512)
        )

    def reset_prefix_cache(self) -> None: ...

    def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool) -> list[SimpleNamespace]:
        outputs = []
        for prompt in prompts:
            ids, logps = self._sampler.sample(prompt["prompt_token_ids"], sampling_params.temperature)
            scores = [{i: SimpleNamespace(rank=1, logprob=p)} for i, p in zip(ids, logps, strict=True)]
            output = SimpleNamespace(token_ids=ids, logprobs=scores)
            outputs.append(SimpleNamespace(prompt_token_ids=prompt["prompt_token_ids"], outputs=[output]))
        return outputs


class ServerClient(VLLMClient):
    """TRL's client of a vLLM server, without the server."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def init_communicator(self, device: Any = 0) -> None: ...

    def get_server_info(self) -> dict[str, Any]:
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def update_named_params(self, metadata: Any, named_params: Any) -> None:
        self._sampler.receive(list(named_params))

    def reset_prefix_cache(self) -> None: ...

    def generate(
        self, prompts: Any, features: Any = None, n: int = 1, temperature: float = 1.0, **_: Any
    ) -> dict[str, Any]:
        samples = [self._sampler.sample(ids, temperature) for ids in prompts for _ in range(n)]
        return {
            "prompt_ids": prompts,
            "completion_ids": [ids for ids, _ in samples],
            "logprobs": [[[logp] for logp in logps] for _, logps in samples],
        }


@contextmanager
def in_place_of_vllm(model: Any, eos_id: int, max_length: int) -> Iterator[None]:
    """Let `VLLMGeneration` find the stand-in where it looks for vLLM."""
    sampler = Sampler(model, eos_id, max_length)
    replacements = {
        "is_vllm_available": lambda: True,
        "LLM": lambda **_: ColocatedEngine(sampler),
        "SamplingParams": lambda **options: SimpleNamespace(**options),
        "VLLMClient": lambda **_: ServerClient(sampler),
        "empty_cache": lambda: None,
    }
    with ExitStack() as stack:
        for name, replacement in replacements.items():
            stack.enter_context(mock.patch.object(vllm_generation, name, replacement, create=True))
        yield
