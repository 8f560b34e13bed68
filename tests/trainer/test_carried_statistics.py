"""The log-sum-exp that the loss is given is that of the teacher it is given, however weights move meanwhile."""

import pytest
import torch
from peft import LoraConfig

from harness import LORA, make_trainer, tiny_model
from srpo_trl.loss.head import STUDENT_HEAD, lm_head_of

RUNS = {
    "ema": {},
    "live": {"teacher_model_kind": "live"},
    "initial weights": {"teacher_model_kind": "base"},
    "states on the host": {"teacher_states_on_cpu": True},
    "adapter": {"peft_config": LORA},
    "head saved beside an adapter": {
        "model": lambda: tiny_model(tie_word_embeddings=False),
        "peft_config": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    },
    "temperature": {"temperature": 0.7},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_it_is_the_requested_teachers_in_every_step(tmp_path, options):
    """Four optimizer steps, two of each rollout batch, at a rate that moves every weight far."""
    options = dict(options)
    if "model" in options:
        options["model"] = options["model"]()
    trainer = make_trainer(
        tmp_path,
        max_steps=4,
        num_iterations=2,
        learning_rate=0.5,
        teacher_update_rate=0.5,
        **options,
    )
    original, carried = trainer._request, []

    def request(routed):
        made = original(routed)
        (teacher,) = made.teachers
        head = lm_head_of(trainer.student) if teacher.head is STUDENT_HEAD else teacher.head
        weight_VD = head.weight_VD.detach().double()
        logits_NV = teacher.hidden_ND.double() @ weight_VD.T / trainer.args.temperature
        torch.testing.assert_close(
            teacher.log_sum_exp_N.double(), logits_NV.logsumexp(dim=1), rtol=1e-5, atol=1e-5
        )
        carried.append(teacher.log_sum_exp_N.clone())
        return made

    trainer._request = request
    trainer.train()
    assert len(carried) == 4
    assert all(len(log_sum_exp_N) for log_sum_exp_N in carried)
    # The teacher has moved between the batches, never within one.
    if options.get("teacher_model_kind") != "base":
        assert not torch.equal(carried[0].sort().values, carried[2].sort().values)
    assert torch.equal(carried[0].sort().values, carried[1].sort().values)
