"""nnunet_oar doctor: check an installation."""

from __future__ import annotations

import argparse
import os

from nnunet_oar.doctor import examine

HELP = "check the installation: a line for each thing that is right, and what to do about what is not"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(args: argparse.Namespace) -> int:
    """Exit status 1 if anything must be fixed."""
    fixes = 0
    for finding in examine(os.environ):
        print(finding, flush=True)
        fixes += not finding.ok
    print(f"{fixes} to fix, then run this again" if fixes else "ready")
    return 1 if fixes else 0
