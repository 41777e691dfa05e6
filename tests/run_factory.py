"""`downscale data extract` as a program of its own, to be killed."""
import argparse

from downscale.factory import command

if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args())
