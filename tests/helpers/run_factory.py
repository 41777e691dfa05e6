"""`downscale data extract` as a program of its own, to be killed."""
import argparse
import sys

from roots import ROOT

sys.path.insert(0, str(ROOT))

from downscale.commands import data_extract  # noqa: E402

if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    data_extract.add_arguments(parser)
    data_extract.run(parser.parse_args())
