"""What the model card of a trained model says of its method, and its tags on the hub; plain GRPO's are TRL's own."""

import inspect
import re
import textwrap
from typing import Any

from srpo_trl.methods import METHODS, factory_of

# The first line of a method's file.
HEADING = re.compile(
    r"(?P<title>.+?)(?: \((?P<paper>arXiv:\d{4}\.\d{5}|ours|id unknown)\))?: (?P<sentence>.+\.)"
)
PAPER = {
    "title": "Unifying Group-Relative and Self-Distillation Policy Optimization via Sample Routing",
    "id": "2604.02288",
    "citation": textwrap.dedent("""\
        @article{li2026unifying,
            title  = {{Unifying Group-Relative and Self-Distillation Policy Optimization via Sample Routing}},
            author = {Gengsheng Li and Tianyu Yang and Junfeng Fang and Mingyang Song and Mao Zheng and
                      Haiyun Guo and Dan Zhang and Jinqiao Wang and Tat-Seng Chua},
            year   = 2026,
            eprint = {arXiv:2604.02288},
        }"""),
}


def card_of(method: str) -> dict[str, Any]:
    """Return what TRL's trainers keep for their cards, by attribute: tags, the method's name and its paper.

    A method without a paper of its own, as one of ours or a user's, has SRPO's.
    """
    heading = HEADING.fullmatch(
        (inspect.getdoc(inspect.getmodule(factory_of(method))) or "").partition("\n")[0]
    )
    paper_id = ((heading and heading["paper"]) or "").removeprefix("arXiv:")
    is_of_another = paper_id[:1].isdigit() and paper_id != PAPER["id"]
    name = METHODS[method].title if method in METHODS else method
    tags = ["trl", "srpo-trl"] + [method] * (method in METHODS)
    return {
        "_tag_names": tags,
        "_name": name,
        "_paper": {"title": heading["title"], "id": paper_id} if heading and is_of_another else PAPER,
    }
