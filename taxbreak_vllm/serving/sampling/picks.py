"""Steps drawn at random, one in so many: a step number in, the next pick out, the same wherever it is asked.

Steps are cut into blocks of `sample_every`, those halved again and again down to the shortest, and doubled without end.
Of the two halves of a block one is drawn, by a hash, and its pick stands for both. So the picks of long blocks are
among those of short ones: who samples less picks some of the steps that others pick, and none besides. The place in
the shortest block is drawn too, so that no periodic workload locks in.
"""

from hashlib import blake2b
from typing import NamedTuple

# The first steps of a kind are cold (allocator, kernel selection, lazy compilation), and none is there yet to compare
# with: no step of the first block is picked, and no block is shorter, unless `sample_every` is.
NUM_COLD_STEPS = 16


class Picks(NamedTuple):
    """The picks of one seed. Steps are numbered from 0 here."""

    seed: str
    sample_every: int

    def next(self, first: int, level: int = 0) -> int:
        """Return the first pick from step `first` on, in blocks of `sample_every` · 2^`level` steps.

        Young steps lie in shorter blocks, which double until they are that long: the first picks come early.
        """
        # depth counts doublings of the shortest block, and `unit` is how many times one step is cut to have it whole
        num_halvings = max(0, (self.sample_every // NUM_COLD_STEPS).bit_length() - 1)
        unit = 1 << num_halvings
        while True:
            depth = max(0, num_halvings + level)
            while depth and first * unit < self.sample_every << depth:
                depth -= 1
            block = first * unit // (self.sample_every << depth)
            if block:
                pick = self._draw(depth, block, unit)
                if pick >= first:
                    return pick
            first = _ceil_div((block + 1) * (self.sample_every << depth), unit)

    def _draw(self, depth: int, block: int, unit: int) -> int:
        while depth:
            block = 2 * block + self._hash(depth, block) % 2
            depth -= 1
        start, end = (_ceil_div(edge * self.sample_every, unit) for edge in (block, block + 1))
        return start + self._hash(0, block) % (end - start)

    def _hash(self, depth: int, block: int) -> int:
        digest = blake2b(f"{self.seed}/{depth}/{block}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")


def _ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)
