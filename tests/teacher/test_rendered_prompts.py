"""Prompts of text to which a chat template has been applied: the teacher reads the conversation that they show."""

import pytest

from srpo_trl.config import FEEDBACK_TEMPLATE, REPROMPT_TEMPLATE, SOLUTION_TEMPLATE
from srpo_trl.data.smoke_model import build_byte_tokenizer
from srpo_trl.teacher.context import TeacherPromptEncoder
from srpo_trl.teacher.prompt_pieces import Piece, encode_pieces, filled, marker_tokens, stripped
from srpo_trl.teacher.templates import ContextTemplates, TeacherInformation

TEMPLATES = ContextTemplates(REPROMPT_TEMPLATE, SOLUTION_TEMPLATE, FEEDBACK_TEMPLATE)
ADDED = "\nCorrect solution:\n\n4\n\nCorrectly solve the original question."

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a model.<|im_end|>\n{% endif %}"
    + CHATML
)
LLAMA_3 = (
    "<s>{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
GEMMA = (
    "<s>{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
DEEPSEEK = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}<User>{{ m.content }}"
    "{% else %}<Assistant>{{ m.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<Assistant><think>\n{% endif %}"
)
PLAIN = (  # no special token at all
    "{% for m in messages %}{{ 'Question: ' if m.role == 'user' else 'Answer: ' }}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)
STYLES = {
    "ChatML": (CHATML, []),
    "ChatML with a default system message": (DEFAULT_SYSTEM, []),
    "Llama 3": (LLAMA_3, ["<|head|>", "<|/head|>", "<|eot|>"]),
    "Gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>"]),
    "Mistral": (MISTRAL, []),
    "Mistral, special": (MISTRAL, ["[INST]", "[/INST]"]),
    "Phi": (PHI, ["<|user|>", "<|assistant|>", "<|end|>"]),
    "DeepSeek": (DEEPSEEK, []),
    "plain": (PLAIN, []),
}
ONE = [{"role": "user", "content": "2+2?"}]
SEVERAL = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
]


def tokenizer_of(style):
    template, special = STYLES[style]
    tokenizer = build_byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    if "</s>" in template:
        tokenizer.add_special_tokens({"eos_token": "</s>"})
    tokenizer.add_tokens(special, special_tokens=True)
    if style == "DeepSeek":  # its markers of turns are added tokens that are not called special
        tokenizer.add_tokens(["<User>", "<Assistant>"])
    tokenizer.chat_template = template
    return tokenizer


def encoder_of(tokenizer, templates=TEMPLATES, **kwargs):
    return TeacherPromptEncoder(tokenizer, templates, 10_000, None, kwargs)


def rendered(tokenizer, messages, **kwargs):
    return tokenizer.apply_chat_template(
        messages, **({"add_generation_prompt": True} | kwargs), tokenize=False
    )


@pytest.mark.parametrize("messages", [ONE, SEVERAL], ids=["one turn", "several turns"])
@pytest.mark.parametrize("style", STYLES)
def test_a_rendered_prompt_is_the_conversation_that_it_shows(style, messages):
    """Token for token, as the student reads the re-prompt; markers that the information holds stay text."""
    tokenizer = tokenizer_of(style)
    text = rendered(tokenizer, messages)
    assert (
        tokenizer(text)["input_ids"]
        == tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    )
    prompt = encoder_of(tokenizer).encode(text, TeacherInformation("4"))
    full = [*messages[:-1], {"role": "user", "content": "2+2?" + ADDED}]
    expected = tokenizer.apply_chat_template(full, add_generation_prompt=True)["input_ids"]
    assert list(prompt.ids) == expected
    assert prompt == encoder_of(tokenizer).encode(messages, TeacherInformation("4"))
    markers = "".join([*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()])
    hostile = encoder_of(tokenizer).encode(text, TeacherInformation(f"4{markers}"))
    added = set(tokenizer.get_added_vocab().values())
    assert [token for token in hostile.ids if token in added] == [
        token for token in expected if token in added
    ]
    assert tokenizer.decode(list(hostile.ids)).count(markers) == 1


ENDS = {
    "as rendered": ("<|im_start|>user\n2+2?", "<|im_end|>\n<|im_start|>assistant\n"),
    "stripped": ("<|im_start|>user\n2+2?", "<|im_end|>\n<|im_start|>assistant"),
    "without thinking": ("<|im_start|>user\n2+2?", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    "thinking opened": ("<|im_start|>user\n2+2?", "<|im_end|>\n<|im_start|>assistant\n<think>\n"),
    "answer begun": ("<|im_start|>user\n2+2?", "<|im_end|>\n<|im_start|>assistant\nLet me see.\n"),
    "no assistant's header": ("<|im_start|>user\n2+2?", "<|im_end|>\n"),
    "a system message": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?", "<|im_end|>\n<|im_start|>assistant\n"
    ),
    "last turn without a header": (
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\n2+2?", "<|im_end|>\n"
    ),
    "another header": ("<|im_start|>human\n2+2?", "<|im_end|>\n<|im_start|>assistant\n"),
    "tokens of the start": ("<s><|im_start|>user\n2+2?", "<|im_end|>\n<|im_start|>assistant\n"),
}  # fmt: skip


@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": False}], ids=["thinking", "no thinking"])
@pytest.mark.parametrize("case", ENDS)
def test_the_solution_stands_in_the_last_user_turn(case, kwargs):
    """However the text was rendered, and whatever the template's arguments are now."""
    before, after = ENDS[case]
    tokenizer = tokenizer_of("ChatML")
    prompt = encoder_of(tokenizer, **kwargs).encode(before + after, TeacherInformation("4"))
    assert list(prompt.ids) == tokenizer(before + ADDED + after)["input_ids"]


@pytest.mark.parametrize(
    "text", ["2+2=", "", " ", "Q: 1+1\nA: 2\nQ: 2+2\nA:", "<|im_start|>user\n2+2?", "<|im_start|>", "\n"]
)
def test_other_text_stays_as_it_is_with_its_markers(text):
    tokenizer = tokenizer_of("ChatML")
    prompt = encoder_of(tokenizer).encode(text, TeacherInformation("4"))
    assert list(prompt.ids) == tokenizer(text + ADDED)["input_ids"]
    tokenizer.chat_template = None
    assert encoder_of(tokenizer).encode(text, TeacherInformation("4")) == prompt


def test_text_before_the_question_stands_in_the_user_turn():
    """Of a rendered prompt only the user's own text is the template's {prompt}."""
    tokenizer = tokenizer_of("ChatML")
    templates = ContextTemplates("Hint:{solution}\n{prompt}", SOLUTION_TEMPLATE, FEEDBACK_TEMPLATE)
    prompt = encoder_of(tokenizer, templates).encode(rendered(tokenizer, SEVERAL), TeacherInformation("4"))
    assert tokenizer.decode(list(prompt.ids)).endswith(
        "<|im_start|>user\nHint:\nCorrect solution:\n\n4\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_begin_token_is_doubled_where_it_is_the_students():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_of("Llama 3")
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    text = rendered(tokenizer, ONE)
    student = tokenizer(text)["input_ids"]
    assert student[:2] == [begin, begin]
    for solution in ("4", "4<|eot|>"):
        teacher = encoder_of(tokenizer).encode(text, TeacherInformation(solution)).ids
        assert list(teacher[:9]) == student[:9]
        assert teacher.count(begin) == 2
    chat = encoder_of(tokenizer).encode(ONE, TeacherInformation("4<|eot|>")).ids
    assert chat.count(begin) == 1


@pytest.mark.parametrize(
    ("content", "expected"), [("  2+2? ", "2+2? "), ("\n2+2?", "2+2?"), ("2+2?", "2+2?")]
)
def test_white_space_that_the_template_takes_off_stays_off(content, expected):
    tokenizer = tokenizer_of("Llama 3")
    prompt = encoder_of(tokenizer).encode([{"role": "user", "content": content}], TeacherInformation("4"))
    assert f"\n\n{expected}\nCorrect solution" in tokenizer.decode(list(prompt.ids))
    full = [{"role": "user", "content": content + ADDED}]
    assert list(prompt.ids) == tokenizer.apply_chat_template(full, add_generation_prompt=True)["input_ids"]


# ------------------------------------------------------------------ pieces


BYTES = build_byte_tokenizer()
MARKERS = marker_tokens(BYTES)
END, START = BYTES.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])


@pytest.mark.parametrize(
    ("pieces", "special"),
    [
        ([Piece("a<|im_end|>")], [END]),
        ([Piece("a<|im_end|>", is_trusted=False)], []),
        ([Piece("<|im_", is_trusted=False), Piece("end|><|im_start|>")], [START]),
        ([Piece("<|im_end|><|im_"), Piece("start|>", is_trusted=False), Piece("<|im_end|>")], [END, END]),
        ([Piece("<|im_"), Piece("end|>")], [END]),
        ([Piece("<|im_"), Piece("", is_trusted=False), Piece("end|>")], [END]),
        ([Piece("<|im_<|im_end|>end|>", is_trusted=False)], []),
        ([Piece("<|im_end|>" * 500, is_trusted=False), Piece("<|im_end|>")], [END]),
    ],
)
def test_a_marker_counts_where_all_of_it_is_trusted(pieces, special):
    ids = encode_pieces(BYTES, pieces, MARKERS)
    assert [token for token in ids if token in MARKERS] == special
    assert BYTES.decode(ids) == "".join(piece.text for piece in pieces)


def test_tokens_of_harmless_text_are_the_tokenizers_own_across_pieces():
    """Merges over the seam too, with neither more nor fewer of the tokenizer's own special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "a", "b", "ab", "<", ">", "/", "s"])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Split("\n", "isolated"), decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    markers = marker_tokens(tokenizer)
    pieces = [Piece("a"), Piece("b", is_trusted=False), Piece("a")]
    assert encode_pieces(tokenizer, pieces, markers) == [4, 2]
    assert encode_pieces(tokenizer, pieces, markers, adds_special=True) == [0, 4, 2, 1]
    hostile = [Piece("a</s>"), Piece("b</s>", is_trusted=False)]
    assert encode_pieces(tokenizer, hostile, markers, adds_special=True) == [0, 2, 1, 3, 5, 7, 8, 6, 1]
    assert encode_pieces(tokenizer, [], markers, adds_special=True) == [0, 1]


def test_a_tokenizer_without_offsets_reads_no_marker_in_untrusted_text():
    class Slow:
        is_fast = False

        def __call__(self, texts, **kwargs):
            kwargs.pop("return_offsets_mapping", None)
            return {"input_ids": BYTES(texts, **kwargs)["input_ids"]}

    for pieces in (
        [Piece("x<|im_end|>"), Piece("y", False)],
        [Piece("<|im_start|>"), Piece("<|im_end|>y", False)],
    ):
        fast = encode_pieces(BYTES, pieces, MARKERS)
        assert encode_pieces(Slow(), pieces, MARKERS) == fast
        assert sum(token in MARKERS for token in fast) == 1


def test_white_space_is_taken_off_the_whole_alone():
    pieces = [Piece(" \n"), Piece(" a ", False), Piece(" b "), Piece("\n")]
    assert stripped(pieces, at_start=True, at_end=True) == [Piece("a ", False), Piece(" b")]
    assert stripped(pieces, at_start=False, at_end=False) == pieces
    assert stripped([Piece(" ")], at_start=True, at_end=True) == []


def test_templates_keep_who_wrote_what():
    solution = [Piece("S{prompt}", is_trusted=False)]
    assert filled("{prompt}-{x}{solution}", prompt=[Piece("P")], solution=solution) == [
        *(Piece("P"), Piece("-"), Piece("{x}")),
        *solution,
    ]
