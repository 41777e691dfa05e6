"""`downscale completion`: what a shell needs to complete commands, options, choices and paths."""
import argparse

from downscale.commands.parsing import Parser, any_path, local_path, new_file, new_folder

EXAMPLE = 'downscale completion bash'
SHELLS = ('bash', 'zsh', 'fish')
# Arguments without a type of their own that are paths all the same.
FILES = ('config', 'mixture')


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add to `sub` what `run` reads."""
    sub.add_argument('shell', choices=SHELLS, help='the shell that is to complete')


def run(args: argparse.Namespace) -> None:
    """Print what makes a shell complete downscale.

    For bash: downscale completion bash > ~/.local/share/bash-completion/completions/downscale; for
    zsh: downscale completion zsh > FOLDER/_downscale, a FOLDER of $fpath; for fish: downscale
    completion fish > ~/.config/fish/completions/downscale.fish. It holds in shells that are opened
    after that, and is to be printed again for another version of downscale.
    """
    try:
        import shtab
    except ImportError:
        raise ImportError("no shtab; pip install 'downscale[completion]'") from None
    _mark_paths(args.top, shtab)
    print(shtab.complete(args.top, args.shell))


def _mark_paths(parser: Parser, shtab) -> None:
    """Let every argument of `parser` and its verbs that is a path complete files or folders."""
    for action in parser.arguments():
        if action.type is new_folder:
            action.complete = shtab.DIRECTORY
        elif action.type in (local_path, new_file, any_path) or action.dest in FILES:
            action.complete = shtab.FILE
    verbs = parser.verbs()
    for sub in verbs.choices.values() if verbs else ():
        _mark_paths(sub, shtab)
