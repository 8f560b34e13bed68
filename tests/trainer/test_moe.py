"""Mixture-of-experts models: the router's load-balancing loss is part of SRPO's loss, on every row of both branches."""

import copy

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from harness import all_rows, logged, make_trainer, relative_error, tiny_moe_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
COEFFICIENT = 0.5


def all_sequences():
    """Token ids and mask of every rollout with its prompt, right-padded."""
    sequences = []
    for prompt, answer in all_rows():
        messages = [{"role": "user", "content": prompt}]
        prompt_ids = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        sequences.append(torch.tensor([*prompt_ids, *TOKENIZER(answer)["input_ids"], TOKENIZER.eos_token_id]))
    masks = [torch.ones_like(ids) for ids in sequences]
    return pad_sequence(sequences, batch_first=True), pad_sequence(masks, batch_first=True)


def changes(trainer, before):
    return {n: (p - dict(before.named_parameters())[n]).detach() for n, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("method", ["srpo", "sdpo", "advantage_mix"])
def test_update_holds_the_gradient_of_the_router_loss(tmp_path, method):
    """The model's own loss over the same sequences, in one step of plain gradient descent at rate 1."""
    model = tiny_moe_model()
    updates = {}
    for coefficient in (0.0, COEFFICIENT):
        trainer = make_trainer(
            tmp_path / str(coefficient),
            model=copy.deepcopy(model),
            method=method,
            router_aux_loss_coef=coefficient,
        )
        trainer.train()
        updates[coefficient] = changes(trainer, model)
    ids, mask = all_sequences()
    aux_loss = model(ids, attention_mask=mask, output_router_logits=True).aux_loss
    aux_loss.backward()
    assert logged(trainer, "aux_loss") == pytest.approx([float(aux_loss)], rel=1e-5)
    routers = [name for name in updates[0.0] if "gate.weight" in name]
    assert len(routers) == 2
    for name in routers:
        found = updates[COEFFICIENT][name] - updates[0.0][name]
        expected = -COEFFICIENT * dict(model.named_parameters())[name].grad
        assert relative_error(found, expected) < 1e-3
