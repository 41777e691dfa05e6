"""`downscale report`: the same as `downscale analyze report`."""
from downscale import analyze_command

EXAMPLE = 'downscale report runs/smoke'
add_arguments = analyze_command.add_report_arguments


def run(args):
    """Write the report of a finished or unfinished study (the same as `analyze report`)."""
    analyze_command.report(args)
