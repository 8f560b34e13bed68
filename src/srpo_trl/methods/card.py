"""What the model card of a trained model says, and its tags on the hub; of plain GRPO they are TRL's own."""

import textwrap
from typing import Any

# By attribute of TRL's trainers.
CARD: dict[str, Any] = {
    "_tag_names": ["trl", "srpo"],
    "_name": "SRPO",
    "_paper": {
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
    },
}
