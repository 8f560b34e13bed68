"""A step from graded rollouts to the distillation loss, from values alone; a script that imports no trainer.

Every method of the paper is compared with the oracle: routes, teacher prompts, counts, advantages and the loss.
"""

import inspect
import math

import torch

import oracle
from method_names import PAPER
from srpo_trl.data.tiny_model import build_tokenizer
from srpo_trl.loss.ops import DistillationSpec, Head, distillation_loss, token_statistics
from srpo_trl.loss.step_totals import distillation_coefficients, local_totals, window_totals
from srpo_trl.loss.token_weights import mean_one_weights
from srpo_trl.methods import METHODS
from srpo_trl.methods.record import Method, Tokens, TokenScores, is_distilled, is_policy
from srpo_trl.rewards.correctness import correctness_score
from srpo_trl.rollout.graded import GradedRollouts, RoutedRollouts, RoutingOptions, route_rollouts
from srpo_trl.teacher.context import TeacherPromptEncoder
from srpo_trl.teacher.templates import ContextTemplates

TOKENIZER = build_tokenizer()
NUM_GENERATIONS = 4
PROMPTS = ("1+1", "2+2", "3+3")
COMPLETIONS = ("2#2", "33;12", "0", "=", "4#4", "#4;4", "9", "8;8", "7", "1;2", "5", "9;9")
REWARDS = (1.0, 0.0, 0.0, math.nan, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
OPTIONS = {"entropy_weight_beta": 1.5, "advantage_mix_lambda": 0.3}
HIDDEN, VOCABULARY = 8, 17


def method_of(name: str) -> Method:
    factory = METHODS[name].factory
    return factory(**{option: OPTIONS[option] for option in inspect.signature(factory).parameters})


def routed(method: Method) -> RoutedRollouts:
    """Group -> routes and teacher prompts."""
    num_rows = len(COMPLETIONS)
    rewards_BF = torch.tensor(REWARDS).unsqueeze(1)
    templates = ContextTemplates(
        "{prompt}{solution}{feedback}\n\nCorrectly solve the original question.",
        "\nCorrect solution:\n\n{successful_previous_attempt}",
        "{feedback_raw}",
    )
    return route_rollouts(
        GradedRollouts(
            prompts=[
                [{"role": "user", "content": PROMPTS[row // NUM_GENERATIONS]}] for row in range(num_rows)
            ],
            completions=[[{"role": "assistant", "content": text}] for text in COMPLETIONS],
            completion_ids=[tuple(TOKENIZER(text)["input_ids"]) for text in COMPLETIONS],
            feedback=[""] * num_rows,
            references=[""] * num_rows,
            tools=[None] * num_rows,
            rewards_BF=rewards_BF,
            first_row=0,
        ),
        correctness_score(rewards_BF, torch.ones(1), ["accuracy"], None),
        method,
        RoutingOptions(0.5, NUM_GENERATIONS, ["sibling"], keep_thinking=False, seed=0),
        TeacherPromptEncoder(TOKENIZER, templates, 1000, None, {}),
        step=0,
        gather=lambda tensor: tensor,
        gather_object=lambda objects: objects,
    )


def shown_to(row: int, rollouts: RoutedRollouts) -> list[str]:
    """Texts of the group that the row's teacher prompt holds as a solution."""
    prompt = rollouts.teacher_prompts[row]
    assert prompt is not None
    text = TOKENIZER.decode(list(prompt.ids))
    first = row - row % NUM_GENERATIONS
    group = COMPLETIONS[first : first + NUM_GENERATIONS]
    return [answer for answer in group if f"solution:\n\n{answer}\n\nCorrectly" in text]


def check(name: str) -> None:
    method = method_of(name)
    rollouts = routed(method)
    route_B = rollouts.route_B
    correct = [reward == 1.0 for reward in REWARDS]
    for row, route in enumerate(
        zip(is_policy(route_B).tolist(), is_distilled(route_B).tolist(), strict=True)
    ):
        first = row - row % NUM_GENERATIONS
        siblings = {i for i in range(first, first + NUM_GENERATIONS) if i != row and correct[i]}
        weights = oracle.route_weights(name, correct[row], bool(siblings), not math.isnan(REWARDS[row]))
        assert route == (weights[0] > 0, weights[1] > 0), (name, row)
        assert (rollouts.teacher_prompts[row] is not None) == (weights[1] > 0)
        if weights[1]:
            (shown,) = shown_to(row, rollouts)
            assert shown in {COMPLETIONS[i] for i in siblings}

    found, expected = loss_of(method, route_B), oracle_of(name)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def tensors(row: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Hidden states of student and teacher, (T, D) each, and token ids of a rollout."""
    generator = torch.Generator().manual_seed(row)
    length = 1 + row % 4
    student, teacher = torch.randn(2, length, HIDDEN, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(VOCABULARY, (length,), generator=generator).tolist()


def head() -> Head:
    generator = torch.Generator().manual_seed(99)
    return Head(torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64))


def loss_of(method: Method, route_B: torch.Tensor) -> torch.Tensor:
    """Hidden states and coefficients -> loss; beside it the counts and the sum of the advantages of policy rows."""
    rows = [tensors(row) for row in range(len(COMPLETIONS))]
    longest = max(len(ids) for _, _, ids in rows)
    mask_BT = torch.tensor([[t < len(ids) for t in range(longest)] for _, _, ids in rows])
    distilled_BT = mask_BT & is_distilled(route_B).unsqueeze(1)
    routed_BT = mask_BT & (route_B != 0).unsqueeze(1)
    chosen = is_distilled(route_B).nonzero().flatten().tolist()
    empty = torch.zeros(0, HIDDEN, dtype=torch.float64)
    student_ND, teacher_ND = (torch.cat([empty, *(rows[i][side] for i in chosen)]) for side in (0, 1))
    entropy_BT = torch.zeros(distilled_BT.shape, dtype=torch.float64)
    entropy_BT[distilled_BT] = token_statistics(teacher_ND, head(), 1.0).entropy_N
    advantage_B = torch.arange(len(rows), dtype=torch.float64)
    tokens = Tokens(
        mask_BT,
        route_B,
        advantage_B,
        None,
        {"teacher": TokenScores(entropy_BT, torch.empty(0), torch.empty(0))},
        {},
        torch.arange(len(rows)),
        step=0,
    )

    raw_BT = sum(method.raw_weights(tokens), start=torch.zeros_like(entropy_BT))
    totals = window_totals([local_totals(routed_BT, distilled_BT, raw_BT)], lambda tensor: tensor)
    weight_N = mean_one_weights(raw_BT[distilled_BT], totals.mean_unnormalized_weight, entropy_BT.dtype)
    result = distillation_loss(
        student_ND,
        head(),
        teacher_ND,
        head(),
        torch.tensor([token for i in chosen for token in rows[i][2]], dtype=torch.int64),
        distillation_coefficients(weight_N, None, totals, method.strength(0), 1),
        spec=DistillationSpec(topk=5),
        backend="reference",
    )
    advantage_B = method.advantages(tokens) if method.advantages else advantage_B
    advantages = (advantage_B * is_policy(route_B)).sum()
    return torch.stack([result.loss, totals.num_routed_tokens, totals.num_distilled_tokens, advantages])


def oracle_of(name: str) -> list[float]:
    """The same by the oracle."""
    weight = head().weight_VD.numpy()
    rollouts = []
    for row, reward in enumerate(REWARDS):
        student, teacher, ids = tensors(row)
        first = row - row % NUM_GENERATIONS
        has_sibling = any(REWARDS[i] == 1.0 for i in range(first, first + NUM_GENERATIONS) if i != row)
        rollouts.append(
            oracle.Rollout(
                student_logits=oracle.head_logits(student.numpy(), weight),
                teacher_logits=oracle.head_logits(teacher.numpy(), weight) if has_sibling else None,
                token_ids=ids,
                mask=[True] * len(ids),
                reward=reward,
            )
        )
    options = oracle.Options(num_generations=NUM_GENERATIONS, method=name, distillation_topk=5, **OPTIONS)
    found = oracle.joint_objective(rollouts, options)
    advantages = sum(row * weights[0] for row, weights in enumerate(found.routes))
    distilled = found.distillation_sum / found.num_routed_tokens
    return [distilled, found.num_routed_tokens, found.num_distilled_tokens, advantages]


if __name__ == "__main__":
    for method_name in PAPER:
        check(method_name)
        print(method_name)
