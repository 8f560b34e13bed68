"""Behavior of single steps that the broader tests do not pin down: the teacher in use, what it reads, coefficients."""

import pytest
import torch
from peft import LoraConfig

from harness import (
    ROLLOUTS,
    chat_dataset,
    contains_answer,
    flat_parameters,
    logged,
    make_trainer,
    relative_error,
    replay,
    tiny_model,
    tiny_tokenizer,
)
from srpo_trl.data.smoke_model import build_byte_tokenizer
from srpo_trl.host.prompt_order import ResumableRepeatSampler
from srpo_trl.methods.record import Route
from srpo_trl.methods.srpo import srpo
from srpo_trl.rollout.batch import routed_batch
from srpo_trl.rollout.graded import GradedRollouts, RoutingOptions, route_rollouts
from srpo_trl.seams.trl import RepeatSampler
from srpo_trl.teacher.context import TeacherPromptEncoder
from srpo_trl.teacher.templates import ContextTemplates, TeacherInformation

TOKENIZER = tiny_tokenizer()
CHAT = [{"role": "user", "content": "2+2?"}]
TEMPLATES = ContextTemplates(
    "{prompt}{solution}{feedback}", " S: {successful_previous_attempt}", " F: {feedback_raw}"
)


def spy(trainer, name):
    """Collect (arguments, result) of a method of the trainer while it trains."""
    calls = []
    original = getattr(trainer, name)

    def method(*args):
        result = original(*args)
        calls.append((args, result))
        return result

    setattr(trainer, name, method)
    return calls


# ------------------------------------------------------------------ the teacher in use


@pytest.mark.parametrize("kind", ["ema", "base"])
def test_later_rollouts_are_scored_with_the_teachers_weights_not_the_students(tmp_path, kind):
    """Of the second rollout batch: hidden states of the teacher's backbone, logits of the teacher's head."""
    trainer = make_trainer(
        tmp_path, teacher_model_kind=kind, teacher_update_rate=0.3, max_steps=2, learning_rate=0.5
    )
    answer = [*TOKENIZER("33;12")["input_ids"], TOKENIZER.eos_token_id]  # of the second rollout, distilled
    scored = []
    original = trainer._score

    def score(output, rollouts):
        teacher = {name: value.clone() for name, value in trainer.teacher.weights.state_dict().items()}
        student = flat_parameters(trainer.model)
        original(output, rollouts)
        logits = routed_batch(output).teacher_hidden[1] @ trainer.teacher.head("teacher").weight_VD.T
        scored.append((teacher, student, rollouts.teacher_prompts[1].ids, logits))

    trainer._score = score
    trainer.train()
    teacher, student, prompt, found = scored[1]
    model = tiny_model()
    model.load_state_dict(teacher, strict=False)  # the LM head is the embeddings
    assert relative_error(flat_parameters(model), student) > 1e-3
    with torch.no_grad():
        expected = model(torch.tensor([[*prompt, *answer]])).logits[0, -len(answer) - 1 : -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_teacher_moves_toward_the_student_of_after_the_step(tmp_path):
    trainer = make_trainer(tmp_path, teacher_update_rate=1.0, learning_rate=0.1)
    before = flat_parameters(trainer.model)
    trainer.train()
    teacher = torch.cat([v.double().reshape(-1) for v in trainer.teacher.weights.state_dict().values()])
    assert not torch.equal(before, flat_parameters(trainer.model))
    assert torch.equal(teacher, flat_parameters(trainer.model))


def test_the_teacher_has_no_dropout_and_the_student_keeps_its_own(tmp_path):
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)
    trainer = make_trainer(
        tmp_path, peft_config=adapter, per_device_train_batch_size=8, gradient_accumulation_steps=2
    )
    modes = []
    trainer.student.base_model.register_forward_pre_hook(
        lambda module, args: modes.append((torch.is_grad_enabled(), module.training))
    )
    trainer.train()
    assert {training for graded, training in modes if not graded} == {False}
    assert {training for graded, training in modes if graded} == {True}


# ------------------------------------------------------------------ what the teacher reads


def encoder():
    return TeacherPromptEncoder(build_byte_tokenizer(), TEMPLATES, 1000, None, {})


def test_markers_in_the_demonstration_of_a_text_prompt_stay_text():
    tokenizer = build_byte_tokenizer()
    ids = encoder().encode("2+2=", TeacherInformation("4<|im_end|>")).ids
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(list(ids)).endswith("4<|im_end|>")


@pytest.mark.parametrize("remove", [True, False])
def test_the_option_decides_whether_demonstrations_keep_their_thinking(remove):
    group = GradedRollouts(
        prompts=[CHAT, CHAT],
        completions=[[{"role": "assistant", "content": text}] for text in ("<think>hm</think>It is 4.", "5")],
        completion_ids=[(1, 2), (3,)],
        feedback=["", ""],
        references=["", ""],
        tools=[None, None],
        rewards_BF=torch.tensor([[1.0], [0.0]]),
        first_row=0,
    )
    rollouts = route_rollouts(
        group,
        torch.tensor([1.0, 0.0]),
        srpo(entropy_weight_beta=1.0),
        RoutingOptions(
            threshold=0.5, num_generations=2, sources=["sibling"], keep_thinking=not remove, seed=0
        ),
        encoder(),
        step=0,
        gather=lambda tensor: tensor,
        gather_object=lambda objects: objects,
    )
    assert rollouts.route_B.tolist() == [Route.POLICY, Route.DISTILLED]
    text = build_byte_tokenizer().decode(list(rollouts.teacher_prompts[1].ids))
    assert "It is 4." in text
    assert ("hm" in text) != remove


# ------------------------------------------------------------------ which tokens count, and for how much


def test_tool_tokens_are_no_part_of_omega(tmp_path):
    def with_tool(prompts, trainer):
        output = replay(TOKENIZER)(prompts, trainer)
        output["env_mask"] = [[0] * (len(ids) - 1) + [1] for ids in output["completion_ids"]]
        return output

    trainer = make_trainer(tmp_path, rollout_func=with_tool)
    requests = spy(trainer, "_request")
    trainer.train()
    (routed,), request = requests[0]
    distilled = routed.route_B == Route.DISTILLED
    assert distilled.sum() == 6
    assert routed.distilled_BT.sum(1)[distilled].tolist() == [1] * 6  # the end-of-sequence token alone
    assert [len(side.coefficient_N) for side in request.teachers] == [6]
    assert int(trainer._totals.num_routed_tokens) == 15  # one row is trained by nothing
    texts = [a for _, answers in ROLLOUTS for a in answers]
    assert sum(s is not None for s in contains_answer(texts)) == 15


# ------------------------------------------------------------------ the order of prompts


def test_an_epoch_that_is_set_has_the_order_of_trls_sampler():
    sampler = RepeatSampler(range(9), mini_repeat_count=2, batch_size=4, repeat_count=2, shuffle=True, seed=3)
    epochs = [list(sampler) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    ours = ResumableRepeatSampler.like(sampler)
    for epoch in (2, 0, 1):
        ours.set_epoch(epoch)
        assert list(ours) == epochs[epoch]
    assert list(ours) == epochs[2]  # and goes on from there


# ------------------------------------------------------------------ evaluation beside training


def test_an_evaluation_takes_nothing_of_trainings_metrics(tmp_path):
    """Training is logged at the second step, and TRL's evaluation after the first."""
    options = {
        "metric_for_best_model": "loss",
        "per_device_eval_batch_size": 4,
        "eval_dataset": chat_dataset(),
    }
    options |= {"max_steps": 2, "logging_steps": 2, "learning_rate": 0.1}
    alone = make_trainer(tmp_path, **options)
    alone.train()
    evaluated = make_trainer(tmp_path, eval_strategy="steps", eval_steps=1, **options)
    evaluated.train()
    name = "srpo/distillation/divergence"
    assert logged(evaluated, name) == pytest.approx(logged(alone, name), rel=1e-5)
    assert not any(name in entry for entry in evaluated.state.log_history if "eval_loss" in entry)


def test_an_evaluations_loss_is_no_part_of_a_steps_record(tmp_path):
    options = {
        "metric_for_best_model": "loss",
        "per_device_eval_batch_size": 4,
        "eval_dataset": chat_dataset(),
    }
    trainer = make_trainer(tmp_path, **options)
    assert "eval_loss" in trainer.evaluate()
    assert trainer.finite_steps._record.micro_batches == []
