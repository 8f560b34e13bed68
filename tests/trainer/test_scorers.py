"""What scorers say of the rollouts that are trained on, against plain forward passes of the models that they name."""

from types import SimpleNamespace

import pytest
import torch

from harness import (
    ROLLOUTS,
    chat_dataset,
    flat_parameters,
    make_trainer,
    relative_error,
    replay,
    tiny_model,
    tiny_tokenizer,
    update,
    update_of,
)
from srpo_trl.methods import routers, scorers
from srpo_trl.methods.record import OWN_CONTEXT, Method, Scorer
from srpo_trl.rollout.batch import routed_batch
from srpo_trl.rollout.offline import offline_rollouts, with_teacher_logps
from srpo_trl.teacher.external import identity_of

MINE = "test_scorers:"
TEMPERATURE = 0.7
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
ALL = {"reward_funcs": lambda completions, **_: [float("#" in c[-1]["content"]) for c in completions]}


def scored_by(**fields) -> Method:
    """GRPO with a scorer that is asked and not listened to."""
    scorer = Scorer(**{"context": OWN_CONTEXT, "distils": False, **fields})
    return Method(routers.policy, (scorer,), pull=lambda t: 0.0 * t.mask_BT)


def grpo_on_the_last_two() -> Method:
    """GRPO, without the advantages of the first two of four groups."""
    rows = {"kept": torch.tensor([[0.0], [0.0], [1.0], [1.0]]).expand(4, 4)}
    return Method(
        routers.policy, (), rows=lambda scored: rows, advantages=lambda t: t.advantage_B * t.rows["kept"]
    )


def compared() -> Method:
    """The student after an update, held against the initial weights."""
    both = (scorers.INITIAL, scorers.STUDENT._replace(against="initial"))
    return Method(routers.policy, both, pull=lambda t: 0.0 * t.mask_BT)


def pulled_to_the_shown_teacher() -> Method:
    """GRPO and a pull to the teacher that is shown a sibling, where there is one."""
    return Method(routers.policy, (Scorer(distils=False),), pull=lambda t: 0.3 * t.gap_BT())


def judged_by_the_shown_teacher(*, by_rollout: bool) -> Method:
    """The teacher's advantages in place of the reward's, where it is shown a sibling."""

    def advantages(tokens):
        return tokens.gap_BT().mean(1) if by_rollout else tokens.gap_BT()

    return Method(routers.policy, (Scorer(distils=False),), advantages=advantages)


def anchored_at_the_shown_teacher() -> Method:
    """GRPO whose ratio is to the teacher, where it is shown a sibling."""
    return Method(routers.policy, (Scorer(distils=False),), anchor=lambda t: t.scores["teacher"].logps_BT)


def pulled_to_the_blind_teacher() -> Method:
    """The same wherever anything trains."""
    return Method(
        routers.policy, (Scorer(context=OWN_CONTEXT, distils=False),), pull=lambda t: 0.3 * t.gap_BT()
    )


def saved(path, seed, **overrides):
    tiny_model(seed=seed, **overrides).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        name: saved(tmp_path_factory.mktemp(name), seed) for seed, name in enumerate(("first", "second"), 1)
    }


def batches_of(trainer):
    """TRL's rollout batches once they are scored, with the prompts by context."""
    kept, score = [], trainer._score

    def keep(output, rollouts):
        score(output, rollouts)
        kept.append((output, rollouts))

    trainer._score = keep
    return kept


def trained_logps_of(model, prompt_ids, completion_ids):
    """Log-probabilities of the completion's tokens, and the whole distributions, with gradients."""
    ids = torch.tensor([[*prompt_ids, *completion_ids]])
    logps = (model(ids).logits[0, len(prompt_ids) - 1 : -1].float() / TEMPERATURE).log_softmax(-1)
    return logps.gather(1, torch.tensor(completion_ids).unsqueeze(1)).squeeze(1), logps


logps_of = torch.no_grad()(trained_logps_of)


def rows_of(output):
    for i, mask in enumerate(output["completion_mask"].bool()):
        prompt = output["prompt_ids"][i][output["prompt_mask"][i].bool()].tolist()
        yield i, prompt, output["completion_ids"][i][mask].tolist()


def test_each_kind_of_weights_scores_after_the_students_prompt(tmp_path, folders):
    """Three steps at a large rate: initial, averaged and present weights are far apart at the last."""
    for weights in ("teacher", "student", "initial", "external"):
        options = {"teacher_model": folders["first"]} if weights == "external" else {}
        trainer = make_trainer(
            tmp_path / weights,
            method=MINE + "scored_by",
            method_options={"weights": weights},
            max_steps=3,
            learning_rate=0.1,
            temperature=TEMPERATURE,
            teacher_update_rate=0.4,
            **options,
        )
        kept, models, score = batches_of(trainer), [], trainer.teacher.score

        def recorded(*args, trainer=trainer, models=models, score=score, **kwargs):
            model = tiny_model()
            model.load_state_dict(trainer.model.state_dict())
            values = trainer.teacher.weights.state_dict()
            if values:
                averaged = tiny_model()
                averaged.load_state_dict(values, strict=False)  # its head is the embedding
                models.append({"student": model, "teacher": averaged})
            else:
                models.append({"student": model})
            return score(*args, **kwargs)

        trainer.teacher.score = recorded
        trainer.train()
        assert len(kept) == 3
        for (output, _), made in zip(kept, models, strict=True):
            model = {"initial": tiny_model(), "external": tiny_model(seed=1), **made}[weights]
            scores = routed_batch(output).scores["teacher"]
            num_scored = 0
            for i, prompt, completion in rows_of(output):
                if output["srpo_route"][i] == 0:
                    assert scores.logps_BT[i].eq(0).all()
                    continue
                expected, whole = logps_of(model, prompt, completion)
                torch.testing.assert_close(scores.logps_BT[i, : len(completion)], expected, **CLOSE)
                entropy = -(whole.exp() * whole).sum(1)
                torch.testing.assert_close(scores.entropy_BT[i, : len(completion)], entropy, **CLOSE)
                num_scored += 1
            assert num_scored == 15  # one has no score
    assert relative_error(flat_parameters(trainer.model), flat_parameters(tiny_model())) > 0.01


def test_kl_between_two_scorers(tmp_path):
    trainer = make_trainer(
        tmp_path, method=MINE + "compared", max_steps=2, learning_rate=0.1, temperature=TEMPERATURE
    )
    kept, states = batches_of(trainer), []
    score = trainer.teacher.score
    trainer.teacher.score = lambda *a, **k: (
        states.append({n: v.clone() for n, v in trainer.model.state_dict().items()}),
        score(*a, **k),
    )[1]
    trainer.train()
    (first, _), (second, _) = kept
    assert routed_batch(first).scores["student"].divergence_BT.abs().max() < 1e-5
    now = tiny_model()
    now.load_state_dict(states[-1])
    divergence_BT = routed_batch(second).scores["student"].divergence_BT
    for i, prompt, completion in rows_of(second):
        if second["srpo_route"][i]:
            own, initial = (logps_of(model, prompt, completion)[1] for model in (now, tiny_model()))
            expected = (own.exp() * (own - initial)).sum(1)
            torch.testing.assert_close(divergence_BT[i, : len(completion)], expected, **CLOSE)
    assert divergence_BT.max() > 1e-3


def test_kdrls_update_is_grpos_and_autograds_of_k2(tmp_path, folders):
    beta, options = 0.3, {"temperature": TEMPERATURE, "learning_rate": 0.1}
    grpo = update_of(tmp_path / "grpo", method="grpo", scale_rewards="none", **ALL, **options)
    trainer = make_trainer(
        tmp_path / "kdrl",
        method="kdrl",
        method_options={"beta": beta, "decay_steps": None},
        teacher_model=folders["first"],
        **ALL,
        **options,
    )
    kept = batches_of(trainer)
    found = update(trainer)
    (output, _), model, teacher = kept[0], tiny_model(), tiny_model(seed=1)
    loss, num_tokens = 0.0, 0
    for _, prompt, completion in rows_of(output):
        own, _ = trained_logps_of(model, prompt, completion)
        loss = loss + (beta * (own - logps_of(teacher, prompt, completion)[0]) ** 2 / 2).sum()
        num_tokens += len(completion)
    (loss / num_tokens).backward()
    pulled = -0.1 * torch.cat([p.grad.double().flatten() for p in model.parameters()])
    assert pulled.norm() > 0.1 * grpo.norm()
    assert relative_error(found, grpo + pulled) < 1e-4


def test_where_nothing_is_shown_the_loss_is_trls_own(tmp_path):
    """Group 3 has no correct rollout, and in group 1 the correct one has no sibling."""
    options = {"learning_rate": 0.1, **ALL}
    grpo = update_of(tmp_path / "grpo", method="grpo", scale_rewards="none", **options)
    trainer = make_trainer(tmp_path / "shown", method=MINE + "pulled_to_the_shown_teacher", **options)
    kept = batches_of(trainer)
    shown = update(trainer)
    (output, rollouts) = kept[0]
    rows = output["srpo_row/is_rescored"].tolist()
    assert rows == [prompt is not None for prompt in rollouts.teacher_prompts]
    assert 0 < sum(rows) < len(rows)
    scores = routed_batch(output).scores["teacher"]
    assert [bool(row.any()) for row in scores.logps_BT] == rows
    blind = update_of(tmp_path / "blind", method=MINE + "pulled_to_the_blind_teacher", **options)
    assert relative_error(shown, grpo) > 0.01 < relative_error(blind, shown)


@pytest.mark.parametrize(
    "method",
    [
        {"method": MINE + "pulled_to_the_shown_teacher"},
        {"method": MINE + "judged_by_the_shown_teacher", "method_options": {"by_rollout": False}},
        {"method": MINE + "judged_by_the_shown_teacher", "method_options": {"by_rollout": True}},
        {"method": MINE + "anchored_at_the_shown_teacher"},
        {"method": "vopd", "method_options": {"self_teacher": True}},
    ],
    ids=["pull", "advantages", "advantages by rollout", "anchor", "a scorer that distills"],
)
def test_what_is_said_of_nothing_does_not_apply(tmp_path, method):
    """No rollout has a sibling that could be shown."""
    only_failed = [ROLLOUTS[2]]
    few = {
        "train_dataset": chat_dataset(only_failed),
        "rollout_func": replay(tiny_tokenizer(), only_failed),
        "per_device_train_batch_size": 4,
        "reward_funcs": lambda completions, **_: [float(len(c[-1]["content"])) / 100 for c in completions],
        "learning_rate": 0.1,
    }
    plain = update(make_trainer(tmp_path / "few grpo", method="grpo", scale_rewards="none", **few))
    assert relative_error(update(make_trainer(tmp_path / "few", **method, **few)), plain) < 1e-5


def test_each_row_is_scored_by_the_teacher_that_its_column_names(tmp_path, folders):
    names = ["second", "first", "second", "first"]
    trainer = make_trainer(
        tmp_path,
        method="opd",
        teacher_model=folders,
        teacher_column="domain",
        train_dataset=chat_dataset(domain=names),
        temperature=TEMPERATURE,
    )
    kept = batches_of(trainer)
    trainer.train()
    ((output, _),) = kept
    logps_BT, models = routed_batch(output).scores["teacher"].logps_BT, [tiny_model(seed=n) for n in (1, 2)]
    for i, prompt, completion in rows_of(output):
        if output["srpo_route"][i]:
            model = models[names[i // 4] == "second"]
            torch.testing.assert_close(
                logps_BT[i, : len(completion)], logps_of(model, prompt, completion)[0], **CLOSE
            )


CONVERSATION = [{"role": "system", "content": "be terse"}, {"role": "user", "content": "4+4, add"}]


@pytest.mark.parametrize(
    "values",
    [["1+1, add", "2+2, add", None, ""], [CONVERSATION, CONVERSATION, None, []]],
    ids=["texts", "conversations"],
)
def test_a_column_holds_the_whole_prompt(tmp_path, values):
    trainer = make_trainer(
        tmp_path,
        method=MINE + "scored_by",
        method_options={"context": "hint"},
        train_dataset=chat_dataset(hint=values),
        temperature=TEMPERATURE,
    )
    kept = batches_of(trainer)
    trainer.train()
    ((output, rollouts),) = kept
    tokenizer, logps_BT = tiny_tokenizer(), routed_batch(output).scores["teacher"].logps_BT
    for i, _, completion in rows_of(output):
        value = values[i // 4]
        if not value:
            assert rollouts.teacher_prompts[i] is None
            assert logps_BT[i].eq(0).all()
            continue
        messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert list(rollouts.teacher_prompts[i].ids) == prompt
        torch.testing.assert_close(
            logps_BT[i, : len(completion)], logps_of(tiny_model(), prompt, completion)[0], **CLOSE
        )


@pytest.mark.parametrize("kind", ["ema", "base"])
def test_initial_weights_survive_a_resume(tmp_path, kind):
    options = {
        "method": "rapo",
        "method_options": {"alpha": 0.5},
        "teacher_model_kind": kind,
        "learning_rate": 0.1,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = make_trainer(tmp_path / "whole", max_steps=4, **options)
    whole.train()
    make_trainer(tmp_path / "part", max_steps=2, **options).train()
    resumed = make_trainer(tmp_path / "part", max_steps=4, **options)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(flat_parameters(resumed.model), flat_parameters(whole.model))


def test_an_external_teacher_costs_the_student_nothing(tmp_path, folders):
    trainer = make_trainer(tmp_path, method="vla_opd", teacher_model=folders["first"], max_steps=2)
    teacher = trainer.teacher._external["teacher"].model
    before, heads, request = [p.clone() for p in teacher.parameters()], [], trainer._request

    def keep(routed):
        made = request(routed)
        heads.append(made.teachers[0].head.weight_VD)
        return made

    trainer._request = keep
    trainer.train()
    assert all(torch.equal(*pair) for pair in zip(before, teacher.parameters(), strict=True))
    assert trainer.teacher.weights.kind == "live"
    memory = teacher.get_output_embeddings().weight.data_ptr()
    assert [head.data_ptr() for head in heads] == [memory] * 2  # the teacher's own, not a copy


def test_vla_opds_update_is_autograds_of_the_reverse_kl(tmp_path, folders):
    options = {"temperature": TEMPERATURE, "learning_rate": 0.1, "distillation_topk": None, **ALL}
    trainer = make_trainer(tmp_path, method="vla_opd", teacher_model=folders["first"], **options)
    kept = batches_of(trainer)
    found = update(trainer)
    (output, _), model, teacher = kept[0], tiny_model(), tiny_model(seed=1)
    loss, num_tokens = 0.0, 0
    for _, prompt, completion in rows_of(output):
        _, logps = trained_logps_of(model, prompt, completion)
        loss = loss + (logps.exp() * (logps - logps_of(teacher, prompt, completion)[1])).sum()
        num_tokens += len(completion)
    (loss / num_tokens).backward()
    expected = -0.1 * torch.cat([p.grad.double().flatten() for p in model.parameters()])
    assert relative_error(found, expected) < 1e-4


def test_several_teachers_update_is_the_mean_of_theirs(tmp_path, folders):
    """Each is another model with another head, and all of them have weights of sum 1."""

    def update_to(*models):
        paths = {model: folders[model] for model in models}
        options = {"method": "mad_opd", "method_options": {"models": models}, "teacher_model": paths}
        return update_of(tmp_path / "-".join(models), learning_rate=0.1, **options)

    first, second = update_to("first"), update_to("second")
    assert relative_error(first, second) > 0.1
    assert relative_error(update_to("first", "second"), (first + second) / 2) < 1e-4


# --- Stored rollouts, Hellinger distance, whole groups of tokens ---


def stored_rows(teacher=None):
    """The rollouts of `ROLLOUTS`, as they could have been sampled before."""
    tokenizer, rows = tiny_tokenizer(), []
    for prompt, answers in ROLLOUTS:
        messages = [{"role": "user", "content": prompt}]
        prompt_ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        for answer in answers:
            completion_ids = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
            rows.append({"prompt": messages, "prompt_ids": prompt_ids, "completion_ids": completion_ids})
    return rows if teacher is None else with_teacher_logps(rows, teacher, temperature=TEMPERATURE)


def test_stored_log_probabilities_train_as_the_teacher_does(tmp_path, folders):
    options = {"temperature": TEMPERATURE, "learning_rate": 0.1}
    live = update(make_trainer(tmp_path / "opd", method="opd", teacher_model=folders["first"], **options))
    rows = stored_rows(tiny_model(seed=1))
    trainer = make_trainer(
        tmp_path / "stored", method="lightning", rollout_func=offline_rollouts(rows), **options
    )
    stored = update(trainer)
    assert live.norm() > 0
    assert relative_error(stored, live) < 1e-5
    assert trainer.teacher.weights.kind == "live"


def test_rollouts_without_stored_log_probabilities_are_refused(tmp_path):
    trainer = make_trainer(tmp_path, method="lightning", rollout_func=offline_rollouts(stored_rows()))
    with pytest.raises(ValueError, match="none of the batch has any"):
        trainer.train()
    short = [row | {"teacher_logps": [-1.0]} for row in stored_rows()]
    trainer = make_trainer(tmp_path, method="lightning", rollout_func=offline_rollouts(short))
    with pytest.raises(ValueError, match=r"'teacher_logps' has 1 values for a rollout of \d+ tokens"):
        trainer.train()
    with pytest.raises(ValueError, match="No rollout is stored for the prompt"):
        offline_rollouts(stored_rows()[:4])([[{"role": "user", "content": "9+9"}]], trainer)
    with pytest.raises(ValueError, match="Stored rollout 0 has no completion_ids"):
        offline_rollouts([{"prompt": "1+1", "prompt_ids": [3]}])


def test_prompts_without_stored_rollouts_are_sampled_for_and_train_by_grpo(tmp_path):
    """DPH-RL: two prompts are rehearsed, with A = 0 and the initial weights' own log-probabilities, so that k = 0."""
    rows = [row for row in stored_rows(tiny_model()) if row["prompt"][0]["content"] in ("1+1", "2+2")]
    options = {"temperature": TEMPERATURE, "learning_rate": 0.1, **ALL}
    sampling = replay(tiny_tokenizer())
    asked = []

    def otherwise(prompts, trainer):
        asked.append([prompt[0]["content"] for prompt in prompts])
        places = SimpleNamespace(process_index=0)
        return sampling(prompts, SimpleNamespace(accelerator=places, num_generations=4)) | {"logprobs": None}

    trainer = make_trainer(
        tmp_path / "dph", method="dph_rl", rollout_func=offline_rollouts(rows, otherwise), **options
    )
    kept = batches_of(trainer)
    found = update(trainer)
    assert asked == [["3+3"] * 4 + ["4+4"] * 4]
    ((output, _),) = kept
    assert output["srpo_row/is_rescored"].tolist() == [True] * 8 + [False] * 8
    masked = make_trainer(tmp_path / "grpo", method=MINE + "grpo_on_the_last_two", **options)
    assert relative_error(found, update(masked)) < 1e-4


def test_hellinger_distance_to_the_initial_weights(tmp_path):
    trainer = make_trainer(tmp_path, method="dgpo", max_steps=2, learning_rate=0.1, temperature=TEMPERATURE)
    kept, states, score = batches_of(trainer), [], trainer.teacher.score
    trainer.teacher.score = lambda *a, **k: (
        states.append({n: v.clone() for n, v in trainer.model.state_dict().items()}),
        score(*a, **k),
    )[1]
    trainer.train()
    _, (second, _) = kept
    now = tiny_model()
    now.load_state_dict(states[-1])
    distance_BT = routed_batch(second).scores["student"].divergence_BT
    for i, prompt, completion in rows_of(second):
        if second["srpo_route"][i]:
            own, initial = (logps_of(model, prompt, completion)[1] for model in (now, tiny_model()))
            expected = ((own / 2).exp() - (initial / 2).exp()).square().sum(1).div(2).sqrt()
            torch.testing.assert_close(distance_BT[i, : len(completion)], expected, rtol=1e-3, atol=1e-4)
    assert distance_BT.max() > 1e-2


def test_a_method_sees_the_token_ids_of_whole_groups(tmp_path):
    trainer = make_trainer(tmp_path, method="gtpo", method_options={"largest_entropy": 99.0})
    kept, seen, rows = batches_of(trainer), [], trainer._method.rows
    trainer._method = trainer._method._replace(rows=lambda scored: (seen.append(scored), rows(scored))[1])
    trainer.train()
    ((output, _),), (scored,) = kept, seen
    ids_PGT = scored.token_ids()
    for i, _, completion in rows_of(output):
        row = ids_PGT[i // 4, i % 4].tolist()
        assert row[: len(completion)] == completion
        assert set(row[len(completion) :]) <= {-1}
        assert int(scored.length_PG[i // 4, i % 4]) == len(completion)
    assert output["srpo_row/factor"].shape == output["completion_ids"].shape


def marking(completions, completion_ids, log_extra, **_):
    """Marks the second and third token of every correct rollout, and nothing of the others."""
    correct = ["#" in completion[-1]["content"] for completion in completions]
    log_extra("spans", [[(1, 3)] if is_right else None for is_right in correct])
    return [float(is_right) for is_right in correct]


def test_spans_come_from_the_reward_function(tmp_path):
    trainer = make_trainer(
        tmp_path,
        method="trace",
        train_dataset=chat_dataset(label=["1+1, carry"] * 4),
        reward_funcs=marking,
    )
    kept = batches_of(trainer)
    trainer.train()
    ((output, _),) = kept
    spans_BT = output["srpo_row/spans"]
    correct_B = output["srpo_row/is_correct"]
    assert spans_BT[:, 1:3].all(1).tolist() == correct_B.tolist()
    assert int(spans_BT.sum()) == 2 * int(correct_B.sum()) > 0


@pytest.mark.parametrize("span", [(2, 1), (-1, 2), (1,), 3, (0.5, 2)])
def test_a_span_that_is_none_is_refused(tmp_path, span):
    def wrong(completions, log_extra, **_):
        log_extra("spans", [[span]] * len(completions))
        return [1.0] * len(completions)

    trainer = make_trainer(
        tmp_path, method="trace", train_dataset=chat_dataset(label=["1"] * 4), reward_funcs=wrong
    )
    with pytest.raises(ValueError, match="give pairs of positions"):
        trainer.train()


def test_a_method_of_spans_needs_a_reward_function_that_gives_them(tmp_path):
    trainer = make_trainer(tmp_path, method="trace", train_dataset=chat_dataset(label=["1"] * 4))
    with pytest.raises(ValueError, match="got 0 lists for 16 rollouts"):
        trainer.train()


# --- What is refused ---


def test_a_run_is_resumed_with_its_own_external_teachers(tmp_path, folders):
    """Also in the middle of a rollout batch; the same model in another folder is the same."""
    options = {"method": "vla_opd", "max_steps": 4, "num_iterations": 2, "learning_rate": 0.1}
    whole = make_trainer(tmp_path / "whole", teacher_model=folders["first"], **options)
    whole.train()
    saved_steps = options | {"save_strategy": "steps", "save_steps": 1}
    make_trainer(tmp_path / "run", teacher_model=folders["first"], **(saved_steps | {"max_steps": 3})).train()
    other = make_trainer(tmp_path / "run", teacher_model=folders["second"], **saved_steps)
    with pytest.raises(ValueError, match="has other models than the run was started with: 'teacher'"):
        other.train(resume_from_checkpoint=True)
    moved = saved(tmp_path / "moved", 1)
    resumed = make_trainer(tmp_path / "run", teacher_model=moved, **saved_steps)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(flat_parameters(resumed.model), flat_parameters(whole.model))


def test_models_are_told_apart_by_their_files(tmp_path, folders):
    first, second = (identity_of(path, None) for path in folders.values())
    assert first == identity_of(saved(tmp_path / "again", 1), None) != second
    assert identity_of("some/hub-id", "abc") == "abc"
    assert identity_of("some/hub-id", None) == "some/hub-id"


def test_another_vocabulary_is_refused_before_the_model_loads(tmp_path):
    less, more = saved(tmp_path / "less", 1, vocab_size=20), saved(tmp_path / "more", 1, vocab_size=60)
    for method in ("kdrl", "vla_opd"):
        with pytest.raises(ValueError, match=r"has a vocabulary of 20; 44.* is required"):
            make_trainer(tmp_path, method=method, teacher_model=less)
    with pytest.raises(ValueError, match="has a vocabulary of 60; 44 is required"):
        make_trainer(tmp_path, method="vla_opd", teacher_model=more)
    make_trainer(tmp_path / "padded", method="kdrl", teacher_model=more).train()  # a padded head


def test_stored_rollouts_must_be_given(tmp_path):
    with pytest.raises(ValueError, match="offline_rollouts"):
        make_trainer(tmp_path, method="lightning", rollout_func=None, model="no-such-model")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"method": "kdrl"}, "scores with an external teacher, but teacher_model is None"),
        ({"method": "srpo", "teacher_model": "x"}, "is read by no scorer of method='srpo'"),
        ({"method": "kdrl", "teacher_model": {"a": "x", "b": "y"}}, "names none of them"),
        ({"method": "kdrl", "teacher_model": "x", "teacher_column": "c"}, "chooses among several teachers"),
        (
            {"method": "vla_opd", "teacher_model": {"a": "x", "b": "y"}, "teacher_column": "c"},
            "of one model for all rows",
        ),
        ({"method": "mad_opd", "teacher_model": {"a": "x"}}, "has scorers of the models 'first', 'second'"),
        ({"method": "kdrl", "teacher_model": 3}, "must be a path, or a mapping"),
        ({"method": "kdrl", "teacher_model": "{"}, "is not JSON"),
        (
            {"method": "opd", "teacher_model": "x", "method_options": {"self_teacher": "no"}},
            "must be true or false",
        ),
        (
            {"method": "kdrl", "teacher_model": "x", "method_options": {"beta": "1"}},
            "beta='1' must be a number",
        ),
        (
            {"method": "selfci", "method_options": {"shares": [1.0]}},
            "must be a list of 2, each item a number",
        ),
        ({"method": MINE + "scored_by", "method_options": {"weights": "old"}}, "weights='old'"),
        ({"method": MINE + "scored_by", "method_options": {"distance": "tv"}}, "distance='tv'"),
        ({"method": MINE + "scored_by", "method_options": {"name": "a b"}}, "the name 'a b'"),
        ({"method": MINE + "scored_by", "method_options": {"against": "x"}}, "one of those before it"),
        (
            {"method": MINE + "scored_by", "method_options": {"weights": "student", "distils": True}},
            "distils to the student weights",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_before_a_model_loads(tmp_path, options, problem):
    with pytest.raises(ValueError, match=problem):
        make_trainer(tmp_path, model="no-such-model", **options)


def test_a_column_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="the context 'skill' of method='skill_sd' is not a column"):
        make_trainer(tmp_path, method="skill_sd")
    with pytest.raises(ValueError, match="teacher_column='domain' is not a column"):
        make_trainer(tmp_path, method="opd", teacher_model={"a": "x", "b": "y"}, teacher_column="domain")


def test_a_column_that_names_no_teacher_is_refused_by_its_type(tmp_path):
    with pytest.raises(
        ValueError, match=r"teacher_column='prompt' holds List\(.*, not text; it must name one of 'a'"
    ):
        make_trainer(
            tmp_path,
            model="no-such-model",
            method="opd",
            teacher_model={"a": "x", "b": "y"},
            teacher_column="prompt",
        )


def test_another_tokenizer_is_refused_with_its_first_difference(tmp_path):
    path = tmp_path / "teacher"
    tiny_model().save_pretrained(path)
    with pytest.raises(ValueError, match="has no tokenizer that can be read"):
        make_trainer(tmp_path, method="kdrl", teacher_model=str(tmp_path / "nowhere"))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(path)
    with pytest.raises(ValueError, match="another tokenizer than the student: it has 1 tokens more"):
        make_trainer(tmp_path, method="kdrl", teacher_model=str(path))


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_row_whose_teacher_is_unknown_is_named(tmp_path, folders, is_stream):
    rows = chat_dataset(domain=["first", "third", "first", "second"])
    options = {
        "method": "opd",
        "teacher_model": folders,
        "teacher_column": "domain",
        "train_dataset": rows.to_iterable_dataset() if is_stream else rows,
    }
    problem = "teacher_column='domain' holds 'third'; it must name one of 'first', 'second'"
    if is_stream:
        trainer = make_trainer(tmp_path, **options)
        with pytest.raises(ValueError, match=problem):
            trainer.train()
    else:
        with pytest.raises(ValueError, match=problem):
            make_trainer(tmp_path, model="no-such-model", **options)
