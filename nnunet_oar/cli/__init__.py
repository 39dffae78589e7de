"""The command `nnunet_oar`: one module per sub-command, each with HELP, add_arguments(parser) and run(args)."""

from __future__ import annotations

import argparse
import importlib
import sys

from nnunet_oar.version import __version__

COMMANDS = (
    "env", "doctor", "phantom", "convert", "annotations", "plan", "prepare", "predict", "info", "evaluate", "report",
    "postprocessing",
)  # fmt: skip


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnunet_oar", description="Organs at risk in CT: a plug-in to nnU-Net v2. Not a medical device."
    )
    parser.add_argument("--version", action="version", version=f"nnunet_oar {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"nnunet_oar.cli.{name}")
        sub = subparsers.add_parser(name, help=module.HELP, description=module.HELP, formatter_class=_HelpFormatter)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, 1 for a problem that the user can mend (one sentence on stderr), 2 for wrong usage, 130 for Ctrl-C."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except (ValueError, OSError, NotImplementedError, RuntimeError, AssertionError) as error:
        # nnU-Net raises without a text in places, having printed what is wrong
        print(f"nnunet_oar {args.command}: {error or 'failed; the lines above say why'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"nnunet_oar {args.command}: interrupted", file=sys.stderr)
        return 130
