"""Vision-language models: the teacher sees the images of the very rollout that it scores, and counts their tokens."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from datasets import Dataset, Features, Image, List, Value
from tokenizers.processors import TemplateProcessing
from trl import GRPOTrainer

import oracle
from harness import LORA, NUM_GENERATIONS, flat_parameters, logged, make_trainer, relative_error
from srpo_trl.config import FEEDBACK_TEMPLATE, REPROMPT_TEMPLATE, SOLUTION_TEMPLATE
from srpo_trl.host.arguments import refuse_unsupported
from srpo_trl.rollout.batch import vision_rows
from srpo_trl.teacher.context import TeacherPrompt, TeacherPromptEncoder
from srpo_trl.teacher.images import VisionRow, vision_inputs
from srpo_trl.teacher.templates import ContextTemplates, TeacherInformation
from tiny_vlm import (
    IMAGE_TOKEN,
    TOKENS_PER_IMAGE,
    question,
    random_image,
    tiny_processor,
    tiny_vision_language_model,
)

PROCESSOR = tiny_processor()
IMAGE_ID = PROCESSOR.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
TEMPLATES = ContextTemplates(REPROMPT_TEMPLATE, SOLUTION_TEMPLATE, FEEDBACK_TEMPLATE)
REPROMPT = "{}\nCorrect solution:\n\n{}\n\nCorrectly solve the original question."

# (question, seeds of its images): groups of 0, 1, 1 and 2 images; two of them differ in their image alone.
QUESTIONS = (("1+1", ()), ("what", (1,)), ("what", (2,)), ("both", (3, 4)))
ANSWERS = ("#yes", "no", "nothing at all", "n")  # the first is right


def encoder(processor=PROCESSOR, max_length=10_000):
    return TeacherPromptEncoder(processor.tokenizer, TEMPLATES, max_length, None, {}, processor)


def student_ids(messages, processor=PROCESSOR):
    """Token ids as TRL gives them to the student."""
    encoded = processor.apply_chat_template(
        [messages], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return list(encoded["input_ids"][0])


# ---------------------------------------------------------------- the teacher's prompt


def with_beginning_of_sequence():
    """A processor whose tokenizer starts a text with a token that the chat template does not write."""
    processor = tiny_processor()
    tokenizer = processor.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return processor


IMAGE, OTHER = ({"type": "image", "image": random_image(seed)} for seed in (1, 2))
LAYOUTS = {
    "image first": ([IMAGE], "Which?"),
    "text first": ([{"type": "text", "text": "Which?"}, IMAGE], ""),
    "between": ([{"type": "text", "text": "A:"}, IMAGE, {"type": "text", "text": "B:"}, OTHER], "Which?"),
    "no image": ([], "Which?"),
}


@pytest.mark.parametrize("make_processor", [tiny_processor, with_beginning_of_sequence])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_reprompt_is_encoded_as_the_processor_would(layout, make_processor):
    """Images keep their places; text after the last one becomes the re-prompt, also after a turn with an image."""
    processor = make_processor()
    fixed, text = LAYOUTS[layout]
    earlier = [*question("look", [random_image(3)]), {"role": "assistant", "content": "Seen."}]
    user = {"role": "user", "content": [*fixed, {"type": "text", "text": text}]}
    prompt = encoder(processor).encode([*earlier, user], TeacherInformation("It is 4."))
    user = {"role": "user", "content": [*fixed, {"type": "text", "text": REPROMPT.format(text, "It is 4.")}]}
    earlier[1] = {"role": "assistant", "content": [{"type": "text", "text": "Seen."}]}
    assert list(prompt.ids) == student_ids([*earlier, user], processor)


def test_length_limit_counts_every_token_of_an_image():
    chat, information = question("Which?", [random_image(1)]), TeacherInformation("It is 4.")
    full = encoder().encode(chat, information)
    assert full.ids.count(IMAGE_ID) == TOKENS_PER_IMAGE
    assert encoder(max_length=len(full.ids)).encode(chat, information) == full
    cut = encoder(max_length=len(full.ids) - 1).encode(chat, information)
    assert (len(cut.ids), cut.num_cut) == (len(full.ids) - 1, 1)
    assert cut.ids.count(IMAGE_ID) == TOKENS_PER_IMAGE


def test_an_image_token_in_untrusted_text_stays_text():
    information = TeacherInformation("It is <image>.", "Not <image><image>.")
    for images in ([], [random_image(1)]):
        prompt = encoder().encode(question("Which <image>?", images), information)
        assert prompt.ids.count(IMAGE_ID) == TOKENS_PER_IMAGE * len(images)
        text = PROCESSOR.tokenizer.decode([token for token in prompt.ids if token != IMAGE_ID])
        assert text.count("<image>") == 4


# ---------------------------------------------------------------- the teacher's pass and the loss


def dataset(questions=QUESTIONS):
    rows = {
        "prompt": [[{"role": "user", "content": text}] for text, _ in questions],
        "images": [[random_image(seed) for seed in seeds] for _, seeds in questions],
    }
    message = {"role": Value("string"), "content": Value("string")}
    return Dataset.from_dict(rows, features=Features(prompt=List(message), images=List(Image())))


def replay(prompts, trainer):
    """Given rollouts: TRL's own generation fails where some rows of a batch have images and others none."""
    tokenizer = PROCESSOR.tokenizer
    answers = [ANSWERS[row % NUM_GENERATIONS] for row in range(len(prompts))]
    return {
        "prompt_ids": [student_ids(prompt) for prompt in prompts],
        "completion_ids": [[*tokenizer(answer)["input_ids"], tokenizer.eos_token_id] for answer in answers],
        "logprobs": None,
    }


def train(tmp_path, questions=QUESTIONS, **options):
    """One step over all questions; returns the trainer, the model before it, and each row's teacher states."""
    trainer = make_trainer(
        tmp_path,
        model=tiny_vision_language_model().double(),
        processing_class=tiny_processor(),
        train_dataset=dataset(questions),
        rollout_func=replay,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        learning_rate=0.1,
        **options,
    )
    states, score = [], trainer._score

    def spy(output, rollouts):
        score(output, rollouts)
        states.extend(output["srpo_teacher_hidden"])

    trainer._score = spy
    before = copy.deepcopy(trainer.model).eval()
    before.__dict__.pop("forward", None)
    trainer.train()
    return trainer, before, states


def plain_forward(model, messages, answer):
    """Hidden states that predict the answer, and its token ids: one sequence alone, through the processor."""
    tokenizer = PROCESSOR.tokenizer
    prompt = PROCESSOR.apply_chat_template(
        [messages], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    answer_ids = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
    ids = torch.cat([prompt["input_ids"], torch.tensor([answer_ids])], dim=1)
    with torch.no_grad():
        hidden = model.model(input_ids=ids, pixel_values=prompt.get("pixel_values")).last_hidden_state[0]
    return hidden[-len(answer_ids) - 1 : -1], answer_ids


def messages_of(group, text):
    return question(text, [random_image(seed) for seed in QUESTIONS[group][1]])


@pytest.mark.parametrize("max_tokens", [1, 16384], ids=["row by row", "all at once"])
def test_teacher_states_and_loss_equal_plain_forwards_with_the_images(tmp_path, max_tokens):
    trainer, before, states = train(tmp_path, teacher_tokens_per_pass=max_tokens)
    rollouts = []
    for group, (text, _) in enumerate(QUESTIONS):
        for i, answer in enumerate(ANSWERS):
            student_hidden, ids = plain_forward(before, messages_of(group, text), answer)
            teacher_logits, state = None, states[group * NUM_GENERATIONS + i]
            if i == 0:  # right: nothing to distill
                assert len(state) == 0
            else:
                reprompt = messages_of(group, REPROMPT.format(text, ANSWERS[0]))
                hidden, _ = plain_forward(before, reprompt, answer)
                torch.testing.assert_close(state, hidden, rtol=1e-4, atol=1e-4)
                teacher_logits = before.lm_head(hidden).detach().numpy()
            student_logits = before.lm_head(student_hidden).detach().numpy()
            mask, reward = [True] * len(ids), float(i == 0)
            rollouts.append(oracle.Rollout(student_logits, teacher_logits, ids, mask, reward))
    expected = oracle.joint_objective(
        rollouts, oracle.Options(num_generations=NUM_GENERATIONS, distillation_topk=5)
    )
    total = expected.num_routed_tokens
    assert logged(trainer, "loss")[0] == pytest.approx(expected.loss, rel=1e-4, abs=2e-6)
    assert logged(trainer, "srpo/loss/distilled")[0] == pytest.approx(
        expected.distillation_sum / total, rel=1e-4
    )
    towers = [flat_parameters(model.model.vision_tower) for model in (trainer.model, before)]
    assert relative_error(*towers) > 0


def test_another_image_changes_the_teacher_of_its_rows_alone(tmp_path):
    _, _, states = train(tmp_path / "one")
    changed = (*QUESTIONS[:2], ("what", (9,)), *QUESTIONS[3:])
    _, _, others = train(tmp_path / "other", changed)
    for row, (state, other) in enumerate(zip(states, others, strict=True)):
        if row // NUM_GENERATIONS == 2 and len(state):
            assert relative_error(other, state) > 0.05
        else:
            torch.testing.assert_close(other, state)


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_a_step_trains_on_rollouts_that_trl_samples(tmp_path, peft_config):
    trainer = make_trainer(
        tmp_path,
        model=tiny_vision_language_model(),
        processing_class=tiny_processor(),
        train_dataset=dataset(QUESTIONS[1:]),
        reward_funcs=first_of_each_group,
        rollout_func=None,
        per_device_train_batch_size=12,
        max_completion_length=4,
        generation_kwargs={"suppress_tokens": [IMAGE_ID]},  # a sampled one would want an image
        peft_config=peft_config,
    )
    before = flat_parameters(trainer.model)
    trainer.train()
    assert logged(trainer, "srpo/route/distilled_frac")[0] > 0
    assert logged(trainer, "srpo/loss/distilled")[0] > 0
    assert relative_error(flat_parameters(trainer.model), before) > 0


def first_of_each_group(completions, **kwargs):
    return [float(row % NUM_GENERATIONS == 0) for row in range(len(completions))]


# ---------------------------------------------------------------- TRL's batches of other architectures

NUMBERS = torch.arange(1, 1000).float()
NUM_IMAGES = [0, 1, 2]
BATCHES = {  # what TRL's batch holds for models of which kind
    "one entry an image (LLaVA)": {
        "pixel_values": NUMBERS[:6].view(3, 2),
        "image_sizes": NUMBERS[:6].view(3, 2),
    },
    "patches of a grid (Qwen-VL)": {
        "pixel_values": NUMBERS[:22].view(11, 2),
        "image_grid_thw": torch.tensor([[1, 1, 3], [1, 2, 2], [1, 2, 2]]),
        "mm_token_type_ids": torch.arange(18).view(3, 6),
    },
    "positions (Gemma)": {
        "pixel_values": NUMBERS[:6].view(3, 2),
        "image_position_ids": NUMBERS[:6].view(3, 2),
        "token_type_ids": torch.arange(18).view(3, 6),
    },
    "tiles with shapes (LFM2-VL)": {
        "pixel_values": NUMBERS[:10].view(5, 2),
        "pixel_attention_mask": NUMBERS[:10].view(5, 2),
        "spatial_shapes": NUMBERS[:10].view(5, 2),
        "num_tiles": [0, 2, 3],
    },
    "tiles (InternVL)": {"pixel_values": NUMBERS[:10].view(5, 2), "num_tiles": [0, 2, 3]},
    "one entry a row (Idefics)": {
        "pixel_values": NUMBERS[:24].view(3, 2, 4),
        "pixel_attention_mask": NUMBERS[:24].view(3, 2, 4),
        "num_images": [0, 2, 2],
    },
}


@pytest.mark.parametrize("kind", BATCHES)
def test_rows_have_the_images_that_trl_gives_their_student(kind):
    fields = {"num_images": NUM_IMAGES} | BATCHES[kind]
    received = []

    def model(input_ids, attention_mask, labels, fused_lm_head, **inputs):
        received.append(inputs)
        return SimpleNamespace(log_probs=torch.zeros(input_ids.shape))

    ids = torch.ones(3, 6, dtype=torch.int64)
    GRPOTrainer._get_per_token_logps_and_entropies(
        SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext, is_main_process=True)),
        model,
        ids,
        ids,
        2,
        batch_size=1,
        **fields,
    )
    rows = vision_rows({"completion_ids": ids[:, -2:], **fields})
    for row, expected in zip(rows, received, strict=True):
        types = {name: expected.pop(name)[0, -2:] for name in list(expected) if "type_ids" in name}
        for found, wanted in ((row.images, expected), (row.completion_types, types)):
            assert found.keys() == wanted.keys()
            for name, values in wanted.items():
                torch.testing.assert_close(found[name], values)


def test_inputs_of_a_pass_join_images_and_pad_token_types():
    prompts = [
        TeacherPrompt((5, 9, 9), token_types={"mm_token_type_ids": (0, 1, 1)}),
        TeacherPrompt((5, 6)),
        TeacherPrompt((9, 5), token_types={"mm_token_type_ids": (1, 0)}),
    ]
    rows = [
        VisionRow({"pixel_values": NUMBERS[start:stop]}, {"mm_token_type_ids": torch.tensor([0, 1, 1])})
        for start, stop in ((0, 2), (2, 2), (2, 3))
    ]
    inputs = vision_inputs(prompts, [2, 1, 2], rows)
    assert inputs["pixel_values"].tolist() == [1, 2, 3]
    assert inputs["mm_token_type_ids"].tolist() == [[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 1, 0]]
    assert vision_inputs(prompts[1:2], [1], rows[1:2]) == {}


# ---------------------------------------------------------------- what is refused


def test_sharded_engines_are_refused():
    sharded = SimpleNamespace(
        distributed_type=DistributedType.FSDP, is_fsdp2=True, state=SimpleNamespace(deepspeed_plugin=None)
    )
    model = tiny_vision_language_model()
    with pytest.raises(ValueError, match=r"vision-language model under FSDP or ZeRO-3.*Use DDP or ZeRO-1/2"):
        refuse_unsupported(model, sharded, max_completion_length=16, reads_images=True)
    refuse_unsupported(model, sharded, max_completion_length=16)


@pytest.mark.parametrize(
    "images",
    [[[], [1]], [[1], [], [2], []], [None, [1]], [None, None]],
    ids=str,
)
def test_rows_without_images_train_beside_rows_with_them(tmp_path, images):
    """TRL's own generation and passes; with one image or none in each row."""
    message = {"role": Value("string"), "content": Value("string")}
    rows = {
        "prompt": [[{"role": "user", "content": f"what {i}"}] for i in range(len(images))],
        "images": [seeds and [random_image(seed) for seed in seeds] for seeds in images],
    }
    trainer = make_trainer(
        tmp_path,
        model=tiny_vision_language_model(),
        processing_class=tiny_processor(),
        train_dataset=Dataset.from_dict(rows, features=Features(prompt=List(message), images=List(Image()))),
        rollout_func=None,
        reward_funcs=lambda completions, **kwargs: [float(row % 2) for row in range(len(completions))],
        per_device_train_batch_size=NUM_GENERATIONS * len(images),
    )
    before = flat_parameters(trainer.model)
    trainer.train()
    change = flat_parameters(trainer.model) - before
    assert torch.isfinite(change).all()
    assert change.any()
    assert logged(trainer, "srpo/route/distilled_frac") == [0.5]
    assert logged(trainer, "rows/excluded_frac") == []
