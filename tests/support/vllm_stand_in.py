"""In place of vLLM, on a CPU: the engine of TRL's colocate mode and the client of its server mode.

TRL's own `VLLMGeneration` runs on top, so that prompts, log-probabilities and weights take TRL's way. The stand-in
"samples" given completions, and scores them with the weights it was sent: a weight that is not the student's shows
as an importance ratio that is not 1.
"""

from types import SimpleNamespace

import torch
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient

from harness import ROLLOUTS, tiny_model, tiny_tokenizer


class ScoringEngine:
    """A model with weights of its own, and what was done to it.

    Args:
        rollouts: each prompt's completions.
        model: before the first weights arrive; others than the student's by default.
        noise: what a completion's log-probabilities are off by, token by token; by completion text.
    """

    def __init__(self, rollouts=ROLLOUTS, model=None, noise=None):
        self.model = model or tiny_model(seed=1)
        self.noise = noise or {}
        self.events = []  # "weights" or "generate", in order
        self.probes = []  # the model's logits of `PROBE` at each generation
        tokenizer = tiny_tokenizer()
        self._completions = {}
        for prompt, answers in rollouts:
            chat = [{"role": "user", "content": prompt}]
            prompt_ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
            completions = [([*tokenizer(a)["input_ids"], tokenizer.eos_token_id], a) for a in answers]
            self._completions[tuple(prompt_ids)] = completions

    def receive(self, weights):
        parameters = dict(self.model.named_parameters())
        for name, value in weights:
            with torch.no_grad():
                parameters[name].copy_(value)  # a name that vLLM would not know is a KeyError
            self.events.append(name)

    def weights_arrived(self):
        """Fold the names since the last event into one event, after making sure that none was left out."""
        names = {name for name, _ in self.model.named_parameters()}
        received = self.events[len(self.events) - len(names) :]
        assert set(received) == names
        del self.events[len(self.events) - len(names) :]
        self.events.append("weights")

    def sample(self, prompt_ids, number, temperature):
        """Return a completion's token ids and their log-probabilities at the temperature."""
        completion_ids, answer = self._completions[tuple(prompt_ids)][number]
        logits_TV = probe(self.model, [*prompt_ids, *completion_ids])[len(prompt_ids) - 1 : -1] / temperature
        logps_T = logits_TV.log_softmax(-1).gather(1, torch.tensor(completion_ids).unsqueeze(1)).squeeze(1)
        noise = self.noise.get(answer, [0.0] * len(completion_ids))
        return completion_ids, [float(logp) - off for logp, off in zip(logps_T, noise, strict=True)]

    def note_generation(self):
        self.events.append("generate")
        self.probes.append(probe(self.model, PROBE))


PROBE = list(range(12))


def probe(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double()


class ColocatedEngine:
    """As much of `vllm.LLM` as TRL uses."""

    def __init__(self, engine, process_index=0):
        self._engine = engine
        self._process_index = process_index
        self.asleep = set()
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self._load_weights))
        worker = SimpleNamespace(model_runner=runner)
        self.llm_engine = SimpleNamespace(
            model_executor=SimpleNamespace(driver_worker=worker),
            model_config=SimpleNamespace(max_model_len=512),
        )

    def _load_weights(self, weights):
        assert "weights" not in self.asleep
        self._engine.receive(weights)

    def reset_prefix_cache(self):
        self._engine.weights_arrived()

    def generate(self, prompts, sampling_params, use_tqdm):
        assert not self.asleep
        assert (sampling_params.n, sampling_params.logprobs) == (1, 0)
        self._engine.note_generation()
        num_generations = len(next(iter(self._engine._completions.values())))
        first_row = self._process_index * len(prompts)
        outputs = []
        for row, prompt in enumerate(prompts, start=first_row):
            ids, logps = self._engine.sample(
                prompt["prompt_token_ids"], row % num_generations, sampling_params.temperature
            )
            logprobs = [{i: SimpleNamespace(rank=1, logprob=p)} for i, p in zip(ids, logps, strict=True)]
            output = SimpleNamespace(token_ids=ids, logprobs=logprobs)
            outputs.append(SimpleNamespace(prompt_token_ids=prompt["prompt_token_ids"], outputs=[output]))
        return outputs

    def sleep(self, level):
        assert level == 2  # which discards the weights
        self.asleep = {"weights", "kv_cache"}
        with torch.no_grad():
            for parameter in self._engine.model.parameters():
                parameter.fill_(torch.nan)

    def wake_up(self, tags):
        self.asleep -= set(tags)


class ServerClient(VLLMClient):
    """TRL's client of a vLLM server, without the server."""

    def __init__(self, engine):
        self._engine = engine

    def init_communicator(self, device=0):
        """Take part in no process group."""

    def get_server_info(self):
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def update_named_params(self, metadata, named_params):
        received = []
        for announced, (name, value) in zip(metadata, named_params, strict=True):
            assert announced == (name, str(value.dtype).removeprefix("torch."), list(value.shape))
            received.append((name, value.clone()))
        self._engine.receive(received)

    def reset_prefix_cache(self):
        self._engine.weights_arrived()

    def generate(self, prompts, features=None, n=1, temperature=1.0, logprobs=0, **sampling):
        assert (features, logprobs) == (None, 0)
        self._engine.note_generation()
        samples = [self._engine.sample(ids, number, temperature) for ids in prompts for number in range(n)]
        return {
            "prompt_ids": prompts,
            "completion_ids": [ids for ids, _ in samples],
            "logprobs": [[[logp] for logp in logps] for _, logps in samples],
        }


def install(monkeypatch, engine, process_index=0):
    """Let `VLLMGeneration` find the stand-in where it looks for vLLM."""
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(
        vllm_generation, "LLM", lambda **options: ColocatedEngine(engine, process_index), raising=False
    )
    monkeypatch.setattr(
        vllm_generation, "SamplingParams", lambda **options: SimpleNamespace(**options), raising=False
    )
    monkeypatch.setattr(vllm_generation, "VLLMClient", lambda **options: ServerClient(engine))
    monkeypatch.setattr(vllm_generation, "empty_cache", lambda: None)
