"""accelerate's launcher, where the one process of a run takes the launcher's place.

accelerate starts that process as a child and hands no signal on: a scheduler's SIGTERM would end the launcher alone.

    python -m srpo_trl.commands.launcher OPTIONS -m MODULE WORDS
"""

import os
import sys
from argparse import Namespace

from accelerate.commands import launch
from accelerate.utils.launch import prepare_simple_launcher_cmd_env


def become(args: Namespace) -> None:
    """Replace this process by the one that accelerate would start."""
    command, environment = prepare_simple_launcher_cmd_env(args)
    sys.stdout.flush()
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    if os.name != "nt":  # there exec leaves the terminal to the shell while the new process runs
        launch.simple_launcher = become
    launch.main()
