"""What the trainer does around the objective: sources of information, faults, metrics, tables, tools, evaluation."""

import gc

import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

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
    tiny_moe_model,
    tiny_tokenizer,
    update,
)
from srpo_trl.logs.metrics import RATIOS, SUMS, metrics_from_sums
from srpo_trl.loss.head import STUDENT_HEAD
from srpo_trl.methods.record import Route
from srpo_trl.rollout.batch import routed_batch

TOKENIZER = tiny_tokenizer()
ALL_FAILED = (("1+1", ["3", "33;12", "0", "4;4"]), ("2+2", ["5", "6;6", "9", "8;8 wrong"]))


def teacher_prompts(trainer):
    """Decoded teacher prompts by rollout number, collected while the trainer trains."""
    prompts = {}
    original = trainer._score

    def score(output, rollouts):
        for row, prompt in enumerate(rollouts.teacher_prompts):
            if prompt is not None:
                prompts[row] = TOKENIZER.decode(list(prompt.ids))
        return original(output, rollouts)

    trainer._score = score
    return prompts


def on(rollouts, **columns):
    return {"train_dataset": chat_dataset(rollouts, **columns), "rollout_func": replay(TOKENIZER, rollouts)}


# ------------------------------------------------------------------ sources


def test_no_rollout_is_shown_itself_and_one_demonstration_serves_the_group(tmp_path):
    trainer = make_trainer(tmp_path, method="sdpo")
    prompts = teacher_prompts(trainer)
    trainer.train()
    answers = [answer for _, group in ROLLOUTS for answer in group]
    shown = {row: text.split("solution:\n\n")[1].split("\n\nCorrectly")[0] for row, text in prompts.items()}
    assert all(shown[row] != answers[row] for row in shown)
    assert len({shown[row] for row in (5, 6, 7) if row in shown} | {shown[4]}) <= 2
    assert {row for row in shown if row < 4} == {1, 2, 3}  # the group's only right one has no right sibling
    assert all("#" in text for text in shown.values())


def test_feedback_reaches_the_teacher_where_no_sibling_is_right(tmp_path):
    def graded(completions, log_extra, **kwargs):
        log_extra("feedback", [None if "#" in c[0]["content"] else "No answer after 4" for c in completions])
        return contains_answer(completions)

    trainer = make_trainer(tmp_path, reward_funcs=graded, teacher_context=["sibling", "feedback"])
    prompts = teacher_prompts(trainer)
    trainer.train()
    assert "Correct solution:\n\n2#2" in prompts[1]
    assert all("attempt:\n\nNo answer after 4\n\nCorrectly" in prompts[row] for row in (8, 9, 10, 11))
    assert logged(trainer, "srpo/teacher/available_frac") == [1.0]


def test_feedback_of_several_functions_is_joined_and_a_wrong_number_refused(tmp_path):
    def first(completions, log_extra, **kwargs):
        log_extra("feedback", [" wrong"] * len(completions))
        return [0.0] * len(completions)

    def second(completions, log_extra, **kwargs):
        log_extra("feedback", [None, *[" the answer"] * (len(completions) - 1)])
        return [0.0] * len(completions)

    def short(completions, log_extra, **kwargs):
        log_extra("feedback", ["wrong"])
        return [0.0] * len(completions)

    trainer = make_trainer(tmp_path, reward_funcs=[first, second], teacher_context=["feedback"])
    prompts = teacher_prompts(trainer)
    trainer.train()
    assert "attempt:\n\n wrong\n\nCorrectly" in prompts[0]
    assert "attempt:\n\n wrong\n the answer\n\nCorrectly" in prompts[1]

    def number(completions, log_extra, **kwargs):
        log_extra("feedback", ["wrong", 3.5] * (len(completions) // 2))
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match=r"got 3\.5 for rollout 1; give text"):
        make_trainer(tmp_path, reward_funcs=number, teacher_context=["feedback"]).train()
    with pytest.raises(ValueError, match="1 texts for 16 rollouts"):
        make_trainer(tmp_path, reward_funcs=short, teacher_context=["feedback"]).train()


def test_reference_column_is_the_last_resort(tmp_path):
    references = ["2", "4", "6 is the answer", None]
    trainer = make_trainer(
        tmp_path,
        teacher_context=["sibling", "reference"],
        reference_column="gold",
        train_dataset=chat_dataset(gold=references),
    )
    prompts = teacher_prompts(trainer)
    trainer.train()
    assert "solution:\n\n2#2\n\n" in prompts[1]
    assert "solution:\n\n6 is the answer\n\n" in prompts[8]


def test_ignored_feedback_stays_out_of_the_context(tmp_path):
    def graded(completions, log_extra, **kwargs):
        log_extra("feedback", ["wrong"] * len(completions))
        return contains_answer(completions)

    trainer = make_trainer(tmp_path, reward_funcs=graded)
    prompts = teacher_prompts(trainer)
    trainer.train()
    assert prompts
    assert not any("feedback" in text for text in prompts.values())


def test_correctness_by_one_named_reward(tmp_path):
    def style(completions, **kwargs):
        return [10.0] * len(completions)

    both = make_trainer(tmp_path, reward_funcs=[contains_answer, style])
    both.train()
    assert logged(both, "srpo/correct_frac") == [1.0]  # the sum is above the threshold everywhere
    named = make_trainer(
        tmp_path, reward_funcs=[contains_answer, style], correctness_reward="contains_answer"
    )
    named.train()
    assert logged(named, "srpo/correct_frac") == [5 / 16]
    assert logged(named, "srpo/route/skipped_frac") == [1 / 16]  # its own function could not score it


# ------------------------------------------------------------------ faults


def test_unscored_rollouts_are_excluded_from_the_loss(tmp_path):
    """The text of a rollout that nothing scores, and of infinite rewards, has no influence on the update."""

    def variant(marker):
        return [(p, [a if a != "=" else marker for a in answers]) for p, answers in ROLLOUTS]

    def endless(completions, **kwargs):
        return [float("inf") if score is None else score for score in contains_answer(completions)]

    one = update(make_trainer(tmp_path, **on(variant("="))))
    other = update(make_trainer(tmp_path, **on(variant("=1234567 the answer"))))
    infinite = update(make_trainer(tmp_path, reward_funcs=endless, **on(variant("="))))
    assert relative_error(other, one) < 1e-6
    assert relative_error(infinite, one) < 1e-6


@pytest.mark.parametrize("method", ["srpo", "sdpo", "advantage_mix"])
def test_a_batch_that_fails_as_a_whole_trains_on(tmp_path, method):
    trainer = make_trainer(tmp_path, method=method, per_device_train_batch_size=8, **on(ALL_FAILED))
    change = update(trainer)
    assert torch.isfinite(flat_parameters(trainer.model)).all()
    assert not change.any()  # equal rewards: no advantage, and no teacher
    assert logged(trainer, "srpo/route/distilled_frac") == [0.0]
    assert "srpo/distillation/divergence" not in trainer.state.log_history[0]


def test_truncated_completions_are_masked_in_both_branches(tmp_path):
    rollouts = (("1+1", ["2#2", "33;12", "0", "4;4"]), ("2+2", ["4#4", "4;#4", "9", "8;8"]))
    cut = {"max_completion_length": 3, "mask_truncated_completions": True, "per_device_train_batch_size": 8}

    def without_end(prompts, trainer):
        output = replay(TOKENIZER, rollouts)(prompts, trainer)
        output["completion_ids"] = [ids[:3] for ids in output["completion_ids"]]
        return output

    trainer = make_trainer(tmp_path, **cut, **(on(rollouts) | {"rollout_func": without_end}))
    trainer.train()
    assert logged(trainer, "completions/clipped_ratio")[0] > 0
    assert torch.isfinite(flat_parameters(trainer.model)).all()


def test_a_demonstration_longer_than_the_limit_is_cut_and_counted(tmp_path):
    rollouts = (("1+1", ["2#" + "2" * 30, "33;12", "0", "4;4"]), ROLLOUTS[1])
    options = {"max_reprompt_length": 30, "per_device_train_batch_size": 8, "max_completion_length": 40}
    trainer = make_trainer(tmp_path, **options, **on(rollouts))
    trainer.train()
    assert logged(trainer, "srpo/teacher/prompts_cut_frac")[0] > 0
    assert logged(trainer, "srpo/teacher/cut_tokens")[0] > 0
    assert logged(trainer, "srpo/teacher/prompt_length")[0] <= 30


def test_a_question_longer_than_the_limit_leaves_no_teacher(tmp_path):
    trainer = make_trainer(tmp_path, max_reprompt_length=5)
    trainer.train()
    assert logged(trainer, "srpo/teacher/prompts_too_long") == [6.0]
    assert logged(trainer, "srpo/route/distilled_frac") == [0.0]


# ------------------------------------------------------------------ what else GRPOTrainer does


def test_text_prompts_train(tmp_path):
    rollouts = [(f"{p}=", answers) for p, answers in ROLLOUTS]
    dataset = Dataset.from_dict({"prompt": [p for p, _ in rollouts]})
    trainer = make_trainer(tmp_path, train_dataset=dataset, rollout_func=replay(TOKENIZER, rollouts))
    prompts = teacher_prompts(trainer)
    assert update(trainer).any()
    assert prompts[1] == "1+1=\nCorrect solution:\n\n2#2\n\nCorrectly solve the original question."


def test_tool_tokens_are_seen_and_not_scored(tmp_path):
    """Tokens that a tool wrote: their text reaches the teacher pass, their divergence no loss."""
    distilled = []

    def with_tool(prompts, trainer):
        output = replay(TOKENIZER)(prompts, trainer)
        output["env_mask"] = [
            [1] * (len(ids) - 2) + [0, 1] if len(ids) > 3 else [1] * len(ids)
            for ids in output["completion_ids"]
        ]
        return output

    trainer = make_trainer(tmp_path, rollout_func=with_tool)
    original = trainer._request

    def request(routed):
        distilled.append(routed)
        return original(routed)

    trainer._request = request
    trainer.train()
    routed = distilled[0]
    for row in range(16):
        if routed.route_B[row] == Route.DISTILLED:
            num_scored = int(routed.scored_BT[row].sum())
            assert len(routed.teacher_hidden[row]) == num_scored
    assert logged(trainer, "srpo/distillation/divergence")[0] > 0


def test_evaluation_is_not_routed(tmp_path):
    trainer = make_trainer(
        tmp_path, eval_dataset=chat_dataset(), per_device_eval_batch_size=16, log_completions=True
    )
    metrics = trainer.evaluate()
    assert "eval_reward" in metrics or logged(trainer, "eval_reward")
    assert not any("srpo" in key for entry in trainer.state.log_history for key in entry)
    trainer.train()
    trainer.evaluate()


def test_lora_trains_the_adapter_alone(tmp_path):
    from harness import LORA

    trainer = make_trainer(tmp_path, peft_config=LORA, max_steps=2)
    frozen = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    heads, request = [], trainer._request

    def recorded(routed):
        heads.append(trainer.teacher.head("teacher"))
        return request(routed)

    trainer._request = recorded
    assert update(trainer).any()
    for name, parameter in trainer.model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name])
    assert heads == [STUDENT_HEAD, STUDENT_HEAD]  # frozen: the loss takes the student's own


def test_bf16_autocast_trains(tmp_path):
    trainer = make_trainer(tmp_path, bf16=True)
    exact = update(make_trainer(tmp_path))
    assert relative_error(update(trainer), exact) < 0.1


def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain = update(make_trainer(tmp_path))
    saved = update(make_trainer(tmp_path, gradient_checkpointing=True))
    assert relative_error(saved, plain) < 1e-5


@pytest.mark.parametrize(
    "options",
    [{"teacher_states_on_cpu": True}, {"teacher_tokens_per_pass": 1}, {"teacher_tokens_per_pass": 60}],
    ids=str,
)
def test_options_of_memory_and_speed_change_nothing(tmp_path, options):
    assert relative_error(update(make_trainer(tmp_path, **options)), update(make_trainer(tmp_path))) < 1e-5


@pytest.mark.parametrize("family", ["untied", "moe"])
def test_other_architectures_train(tmp_path, family):
    model = tiny_model(tie_word_embeddings=False) if family == "untied" else tiny_moe_model()
    trainer = make_trainer(tmp_path, model=model)
    assert update(trainer).any()
    assert logged(trainer, "srpo/distillation/divergence")[0] > 0


# ------------------------------------------------------------------ metrics and tables


def test_completions_table_names_each_rollouts_route(tmp_path):
    trainer = make_trainer(tmp_path, log_completions=True)
    trainer.train()
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert table["route"].tolist() == [
        *("policy", "distilled", "distilled", "distilled"),
        *("policy", "policy", "distilled", "distilled"),
        *("policy",) * 4,
        *("policy", "skipped", "policy", "distilled"),
    ]


def test_every_metric_is_logged(tmp_path):
    # Answers of the first step are the second's earlier ones.
    trainer = make_trainer(
        tmp_path, gradient_share_steps=1, teacher_context=["earlier", "sibling"], max_steps=2
    )
    trainer.train()
    entry = trainer.state.log_history[1]
    of_a_pull = {"srpo/loss/pull", "srpo/gradient/pull_norm"}  # see test_family
    assert set(RATIOS) - set(entry) == of_a_pull
    derived = {
        "srpo/weight/raw_std",
        "srpo/weight/ess_frac",
        "srpo/loss/distilled_share",
        "srpo/gradient/distilled_share",
    }
    assert derived <= set(entry)
    assert entry["loss"] == pytest.approx(entry["srpo/loss/policy"] + entry["srpo/loss/distilled"], rel=1e-5)
    assert 0 < entry["srpo/gradient/distilled_share"] < 1
    assert entry["srpo/weight/ess_frac"] <= 1


def test_gradient_shares_are_the_branches_norms_and_leave_the_update_alone(tmp_path):
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    plain = update(make_trainer(tmp_path, **split))
    measured = make_trainer(tmp_path, gradient_share_steps=1, **split)
    assert torch.equal(update(measured), plain)
    # Alone, the distillation branch has its own tokens for a denominator; jointly, those of 15 rollouts.
    alone = update(make_trainer(tmp_path, method="sdpo_failed", entropy_weight_beta=1.0, **split))
    length = {a: len(TOKENIZER(a)["input_ids"]) + 1 for _, answers in ROLLOUTS for a in answers}
    num_distilled = sum(length[a] for a in ("33;12", "0", "4;4;4;4;4;4;4", "9", "8;8", "7;7;7"))
    num_routed = sum(length[a] for _, answers in ROLLOUTS for a in answers if a != "=")
    expected = float(alone.norm()) * num_distilled / num_routed
    assert logged(measured, "srpo/gradient/distilled_norm")[0] == pytest.approx(expected, rel=1e-4)


def test_gradient_shares_are_measured_at_their_interval(tmp_path):
    trainer = make_trainer(tmp_path, gradient_share_steps=2, max_steps=4)
    trainer.train()
    assert len(logged(trainer, "srpo/gradient/distilled_norm")) == 2


def test_metrics_are_means_over_everything_since_the_last_log(tmp_path):
    often = make_trainer(tmp_path, max_steps=4, learning_rate=0.1)
    often.train()
    rarely = make_trainer(tmp_path, max_steps=4, learning_rate=0.1, logging_steps=4)
    rarely.train()
    name = "srpo/distillation/divergence"
    assert logged(rarely, name) == [pytest.approx(sum(logged(often, name)) / 4, rel=1e-5)]


def test_metrics_without_counts_are_left_out():
    sums = dict.fromkeys(SUMS, 0.0)
    assert metrics_from_sums(sums) == {}
    sums |= {"raw_weight": 4.0, "raw_weight_squared": 10.0, "teacher_tokens": 2.0}
    metrics = metrics_from_sums(sums)
    assert metrics["srpo/weight/raw_mean"] == 2.0
    assert metrics["srpo/weight/raw_std"] == 1.0
    assert metrics["srpo/weight/ess_frac"] == pytest.approx(0.8)  # (1 + 3)^2 / (1 + 9) of 2


def test_routes_travel_with_their_rows(tmp_path):
    """TRL shuffles and splits the rollouts; each row keeps its own hidden states."""
    trainer = make_trainer(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=8)
    seen = []
    original = trainer._compute_loss

    def compute(model, inputs):
        seen.append(routed_batch(inputs))
        return original(model, inputs)

    trainer._compute_loss = compute
    trainer.train()
    assert sum(len(batch.route_B) for batch in seen) == 16
    for batch in seen:
        for row, route in enumerate(batch.route_B.tolist()):
            expected = int(batch.scored_BT[row].sum()) if route >= Route.DISTILLED else 0
            assert len(batch.teacher_hidden[row]) == expected
            assert bool(batch.teacher_entropy_BT[row].any()) == (route >= Route.DISTILLED)


class LiveTensors(TrainerCallback):
    """Bytes of all tensors alive at the end of some optimizer steps."""

    def __init__(self, steps):
        self.steps, self.bytes = steps, []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            gc.collect()
            storages = {
                t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for t in gc.get_objects()
                if type(t) in (torch.Tensor, torch.nn.Parameter)
            }
            self.bytes.append(sum(storages.values()))


def test_memory_is_freed_between_steps(tmp_path):
    live = LiveTensors(steps=(10, 30, 50))
    options = {"max_steps": 50, "logging_steps": 10, "learning_rate": 0.01, "distillation_topk": 5}
    make_trainer(tmp_path, callbacks=[live], **options).train()
    first, *later = live.bytes
    assert first > 0
    assert max(later) - first < 20_000  # one step's teacher states are 4 kB, so 20 leaked steps 87 kB
