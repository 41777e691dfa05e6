"""`downscale report`: the same as `downscale analyze report`."""
import argparse

from downscale.commands import analyze

# The most used verb of `analyze` has a command of its own, with the same arguments.
EXAMPLE = 'downscale report runs/smoke'
add_arguments = analyze.add_report_arguments


def run(args: argparse.Namespace) -> None:
    """Write the report of a study, finished or not.

    The same as `analyze report`.
    """
    analyze.report(args)
