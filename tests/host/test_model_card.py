"""The model card says what the run knows of itself."""

import pytest
import yaml
from datasets import Dataset, DatasetInfo
from transformers import TrainerCallback
from trl import GRPOTrainer

from harness import chat_dataset, make_trainer, tiny_model, tiny_tokenizer
from srpo_trl.host import model_card
from srpo_trl.host.callbacks import GuardCallback
from srpo_trl.host.model_card import hub_data_set
from srpo_trl.methods import METHODS
from srpo_trl.methods.card import PAPER, card_of
from srpo_trl.runs.guards import GuardThresholds
from srpo_trl.runs.log import GUARDS_FILE
from srpo_trl.version import __version__


def read_card(folder):
    """The card's head and its text."""
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_run_leaves_a_card_with_what_it_logged(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / GUARDS_FILE).write_text(
        '{"step": 1, "guard": "old", "message": "?", "action": "warn"}\n'
    )
    trainer = make_trainer(
        tmp_path / "run",
        **{"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "success_reward_threshold": 0.75},
        **{
            "eval_dataset": chat_dataset(),
            "eval_strategy": "steps",
            "eval_steps": 2,
            "num_generations_eval": 2,
        },
        guard_action="off",
    )
    trainer.args.guard_action = "warn"
    trainer.add_callback(GuardCallback("warn", {}, GuardThresholds(window=1, distilled_low=1.0)))
    trainer.train()
    head, text = read_card(tmp_path / "run")
    assert set(head["tags"]) == {"generated_from_trainer", "trl", "srpo", "srpo-trl"}
    said = [
        f"trained with [srpo-trl](https://github.com/srpo-trl/srpo-trl) {__version__}, on top of [TRL]",
        f"- srpo-trl: {__version__}\n- TRL: ",
        "This model is a fine-tuned version of `Qwen3ForCausalLM`.",
        "Method `srpo`, 4 optimizer steps on 4 prompts, 16 rollouts a step, 4 of a prompt.",
        "Rewards: `contains_answer`.",
        "| | first 2 logs | last 2 logs |",
        "| correct rollouts (`srpo/correct_frac`) | 0.312 | 0.312 |",
        "| distilled (`srpo/route/distilled_frac`) | 0.375 | 0.375 |",
        "After step 4, 4 questions, 2 samples of each at temperature 0.6, top-p 0.95. Best by `eval_avg@2`: step 2.",
        "- Step 2: 37.5% of the rollouts are distilled while 69% are not correct (`distilled_share`; warn).",
        "\nsuccess_reward_threshold: 0.75\n",
        "Unifying Group-Relative and Self-Distillation Policy Optimization",
    ]
    assert [part for part in said if part not in text] == []
    score = trainer.state.log_history[-2]["eval_avg@2"]
    assert f"| `avg@2` | {score:.4g} | " in text
    assert "None" not in text
    assert "`old`" not in text
    assert str(tmp_path) not in text


def test_a_local_start_is_named_without_a_link_or_its_path(tmp_path):
    tiny_model().save_pretrained(tmp_path / "start")
    tiny_tokenizer().save_pretrained(tmp_path / "start")
    trainer = make_trainer(tmp_path / "run", model=str(tmp_path / "start"), method="grpo")
    trainer.create_model_card(tags="mine")
    head, text = read_card(tmp_path / "run")
    assert "fine-tuned version of `start`." in text
    assert 'model="run"' in text
    assert str(tmp_path) not in text
    assert {"mine", "srpo-trl"} < set(head["tags"])
    assert "Method `grpo`, 0 optimizer steps" in text
    assert "### Guards" not in text


class LogsOwn(TrainerCallback):
    """A user's scores, some of which are no numbers."""

    def __init__(self):
        self.trainer = None

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.log({"eval_best_reward": "n/a", "eval_no_reward": None, "reward": None})

    def on_evaluate(self, args, state, control, **kwargs):
        self.trainer.log({"eval_style_reward": 0.9})


def test_scores_that_a_user_logs_stand_beside_the_evaluation(tmp_path):
    own = LogsOwn()
    rows = {name: chat_dataset() for name in ("first", "second")}
    options = {"eval_strategy": "steps", "eval_steps": 2, "num_generations_eval": 2, "save_strategy": "steps"}
    trainer = make_trainer(tmp_path, max_steps=2, save_steps=1, eval_dataset=rows, callbacks=[own], **options)
    own.trainer = trainer
    trainer.train()
    assert (tmp_path / "checkpoint-2").is_dir()
    text = read_card(tmp_path)[1]
    for name in ("first_avg@2", "second_avg@2", "style_reward"):
        assert f"| `{name}` | " in text
    assert "n/a" not in text


def test_a_fence_in_an_option_stays_in_the_options(tmp_path):
    template = "```\n{successful_previous_attempt}\n```\n# mine"
    make_trainer(tmp_path, solution_template=template).create_model_card()
    text = read_card(tmp_path)[1]
    block = text[text.index("~~~~~~yaml") :].split("~~~~~~")[1]
    assert "# mine" in block


def test_the_hub_data_set_of_the_rows_is_named(tmp_path):
    files = {f"hf://datasets/openai/gsm8k@ab12/main/{part}.parquet": {} for part in ("train", "test")}
    rows = chat_dataset().to_list()
    loaded = Dataset.from_list(rows, info=DatasetInfo(download_checksums=files))
    mapped = loaded.map(lambda row: {"answer": "1"}).select(range(4))
    assert hub_data_set(mapped) == "openai/gsm8k"
    both = files | {"hf://datasets/other/rows@cd34/train.parquet": {}}
    assert hub_data_set(Dataset.from_list(rows, info=DatasetInfo(download_checksums=both))) is None
    assert hub_data_set(chat_dataset()) is None
    assert hub_data_set(None) is None
    make_trainer(tmp_path, train_dataset=mapped).create_model_card()
    head, text = read_card(tmp_path)
    assert head["datasets"] == "openai/gsm8k"
    assert "on the [openai/gsm8k](https://huggingface.co/datasets/openai/gsm8k) dataset" in text


def test_what_is_completed_stands_in_trls_card(tmp_path, monkeypatch):
    """A changed template of TRL's would leave the card as it is, without a word."""
    monkeypatch.setattr(model_card, "complete_card", lambda *arguments: None)
    trainer = make_trainer(tmp_path, method="grpo")
    GRPOTrainer.create_model_card(trainer, "name")
    text = read_card(tmp_path)[1]
    for part in ("[None](https://huggingface.co/None)", 'model="None"', "It has been trained using [TRL]"):
        assert text.count(part) == 1
    assert "### Framework versions\n" in text
    assert "\n- TRL: " in text


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_named_with_its_own_paper(method):
    card = card_of(method)
    assert card["_name"] == METHODS[method].title
    assert card["_tag_names"] == ["trl", "srpo-trl", method]
    assert set(card["_paper"]) in ({"title", "id"}, {"title", "id", "citation"})


def test_papers_of_methods():
    assert card_of("sdpo")["_paper"] == {"title": "SDPO", "id": "2601.20802"}
    for method in ("srpo", "srpo_stable", "apo", "negative_control", "harness:tiny_model"):
        assert card_of(method)["_paper"] is PAPER
    assert card_of("harness:tiny_model")["_tag_names"] == ["trl", "srpo-trl"]
