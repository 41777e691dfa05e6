"""What waits for the slots of an engine, and in which order it is read.

Requests that show the same pictures are a group, and a lane takes from one group at a time, so that
pictures are seen once. A lane is a share of the slots, one for each data shard of the mesh.
"""
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from downscale.generate.requests import Request

# Tokens that are read together where as many are waiting; a CPU packs all weights for each product.
PRODUCT = 256
PRODUCT_ON_CPU = 1024
AHEAD = 64  # requests of a group that are looked at for some of one length


class Lanes:
    """The requests that wait, and the free slots of each of `lanes` lanes.

    `length_of` gives the static length that a prefill reads of a request, by its index; `product`
    is how many tokens make a good product.
    """

    def __init__(self, asked: Sequence[Request], lanes: int, slots: int,
                 length_of: Callable[[int], int], product: int = PRODUCT) -> None:
        self.length_of = length_of
        self.product = product
        self.waiting, self.text = _groups(asked)
        self.group = [self.text] * lanes  # what each lane takes from
        # The lowest slot stands last: it is the next to be taken.
        self.free = [list(range(slots))[::-1] for _ in range(lanes)]

    def left(self) -> bool:
        """Return whether requests wait for a slot."""
        return bool(self.waiting or any(self.group) or self.text)

    def take(self) -> tuple[list[list[int]], int]:
        """Return (indices of the requests to read now for each lane, the most of a lane).

        All are empty where no free slot can take one. So many are taken that they make a good
        product, or a quarter of one, or one of each lane where they do not: a place without a
        prompt would cost as much as a prompt.
        """
        offers = self._offers()
        if not any(offers):
            return offers, 0
        most = self.product // max(self.length_of(offer[0]) for offer in offers if offer)
        # All lanes alike: the rows of a prefill are equally many for each. Of few sizes, since each
        # is a program to compile.
        fewest = min(len(offer) for offer in offers if offer)
        size = next((size for size in (most, most // 4) if 1 < size <= fewest), 1)
        picked = [offer[:size] for offer in offers]
        for lane, indices in enumerate(picked):
            for k in indices:
                self.group[lane].remove(k)
        return picked, size

    def _offers(self):
        """Return for each lane the indices of requests of one static length that it can take."""
        offers = []
        offered = set()  # lanes without pictures take from one and the same group
        for lane, free in enumerate(self.free):
            # A lane changes its pictures only when no question about the old ones is left.
            if free and not self.group[lane]:
                self.group[lane] = self.waiting.popleft() if self.waiting else self.text
            ahead = list(islice((k for k in self.group[lane] if k not in offered), AHEAD))
            lengths = [self.length_of(k) for k in ahead]
            same = [k for k, length in zip(ahead, lengths) if length == lengths[0]]
            offers.append(same[:len(free)])
            offered |= set(offers[-1])
        return offers


def _groups(asked):
    """Return (groups of indices of requests that share pictures, indices of those without).

    The longest way goes first: prompts that are short for what they may write.
    """
    # Long ones last would leave the other slots empty at the end.
    order = sorted(range(len(asked)), key=lambda k: len(asked[k].prompt.tokens) - asked[k].room)
    groups = {}
    for k in order:
        groups.setdefault(asked[k].prompt.prefix_hash, deque()).append(k)
    text = groups.pop('', deque())
    return deque(groups.values()), text
