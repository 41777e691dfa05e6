"""What is installed beside this package, against what its metadata asks for."""
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass

from packaging.requirements import Requirement

NAME = 'downscale'


@dataclass(frozen=True)
class Needed:
    """A library that is asked for; `version` is None where it is not installed."""
    name: str
    version: str | None
    wanted: str  # such as '>=1.2'; '' where every version will do

    @property
    def fits(self) -> bool:
        """Whether it is installed in a version that is asked for."""
        # A release candidate of a newer version is newer as well.
        return self.version is not None and Requirement(f'x{self.wanted}').specifier.contains(
            self.version, prereleases=True)


def libraries(extra: str = '') -> list[Needed]:
    """Return the libraries that downscale needs, or those that an extra adds to them."""
    return list({library.name: library for library in _asked(NAME, extra)}.values())


def extras() -> list[str]:
    """Return the names of the extras of downscale."""
    return importlib.metadata.metadata(NAME).get_all('Provides-Extra') or []


def version_of(name: str) -> str | None:
    """Return the version of an installed package, None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _asked(name: str, extra: str) -> Iterator[Needed]:
    """Yield what a package asks for with `extra`, or at all where that is ''."""
    try:
        texts = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return  # its own line says that it is missing
    for requirement in map(Requirement, texts):
        if not _comes_with(requirement.marker, extra):
            continue
        yield Needed(requirement.name, version_of(requirement.name), str(requirement.specifier))
        # jax[tpu] asks for what jax calls tpu.
        for inner in sorted(requirement.extras):
            yield from _asked(requirement.name, inner)


def _comes_with(marker, extra):
    """Return whether a requirement with this marker is added by `extra`, or always where ''."""
    always = marker is None or marker.evaluate({'extra': ''})
    if not extra:
        return always
    return not always and marker.evaluate({'extra': extra})
