"""nnunet_oar env: the shell line that makes nnU-Net find the OAR trainers."""

from __future__ import annotations

import argparse
import os
import shlex

from nnunet_oar.environment import EXT_TRAINER, ext_trainer_with_plugin

HELP = 'print the shell line that makes nnU-Net find the trainers: eval "$(nnunet_oar env)"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(args: argparse.Namespace) -> None:
    print(f"export {EXT_TRAINER}={shlex.quote(ext_trainer_with_plugin(os.environ.get(EXT_TRAINER)))}")
