"""`downscale parity`: does an imported model compute what its original did?"""
import argparse
import json

from downscale.commands.parsing import local_path

EXAMPLE = 'downscale parity tests/data/llava_qwen3_tiny --json'


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    sub.add_argument('folder', type=local_path,
                     help='config.json, safetensors, image.png, expected.npz')
    sub.add_argument('--json', action='store_true', help='one JSON object')


def run(args: argparse.Namespace) -> int:
    """Compare a checkpoint with its original's numbers.

    Those stand in expected.npz; the exit code is 1 where they differ.
    """
    from downscale.convert.parity import parity as compare
    result = compare(args.folder)
    if args.json:
        print(json.dumps(result))
    else:
        for name, error in result['relative_error'].items():
            # All arrays, also where one fails: the first that is off shows which part is wrong.
            print(f'{name:24} {error:.2e}')
        print(f'greedy ids equal: {result["greedy_equal"]}\n'
              f'token counts equal: {result["token_count_equal"]}\n'
              f'{"passed" if result["passed"] else "FAILED"}')
    return 0 if result['passed'] else 1
