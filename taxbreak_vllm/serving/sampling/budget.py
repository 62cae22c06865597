"""How much time recording may take from serving: what it has taken goes in, whether it may go on comes out.

The budget is a share of the wall time in which steps run: what an idle hour would allow is no relief to the
requests after it. It is saved up, for a minute at most, and spent by recordings. With nothing left no step is
recorded until the debt is paid; where that happens the rate is halved, and doubled again where a minute's whole
share was left unspent. A debt that the slowest rate (one recording in ten minutes) cannot pay is a strike; three
without an unspent minute between them, and recording is off.

Recordings asked for are paid for too, and periodic ones wait for that, but they are neither refused nor a strike.
"""

_SAVED_S = 60
_SLOWEST_S = 600
_HOLD_NS = 10 * 10**9
_MAX_LEVEL = 10
_MAX_STRIKES = 3


class Budget:
    """Time left to spend. One thread updates it; any may read `is_open`, `level` and `is_exhausted`, and refuse."""

    def __init__(self, ratio: float, *, now_ns: int) -> None:
        self.ratio = ratio
        self.is_open = True
        self.is_exhausted = False
        self.level = 0
        self._left_ns = 0.0
        self._spent_ns = 0
        self._asked_ns = 0
        self._num_refused = 0
        self._num_strikes = 0
        self._updated_ns = self._level_since_ns = now_ns

    def set(self, ratio: float) -> None:
        """Change the share and start anew, owing nothing."""
        self.ratio = ratio
        self.level = self._num_refused = self._num_strikes = 0
        self._left_ns = 0.0
        self.is_exhausted = False
        self.is_open = True

    def refuse(self) -> None:
        """Note that a step was not recorded as nothing was left."""
        self._num_refused += 1

    def pass_by(self, *, spent_ns: int, asked_ns: int, now_ns: int) -> None:
        """Take in the same as `update`, of a time without steps: it earns nothing, and what was spent cost nobody."""
        self._spent_ns, self._asked_ns, self._updated_ns = spent_ns, asked_ns, now_ns

    def update(self, *, spent_ns: int, asked_ns: int, now_ns: int) -> None:
        """Take in all time spent since the start, and the part of it that was spent on recordings asked for."""
        saved_ns, owed_ns = self.ratio * _SAVED_S * 1e9, self.ratio * _SLOWEST_S * 1e9
        new_asked_ns = asked_ns - self._asked_ns
        new_ns = spent_ns - self._spent_ns - new_asked_ns
        earned_ns = self.ratio * (now_ns - self._updated_ns)
        self.pass_by(spent_ns=spent_ns, asked_ns=asked_ns, now_ns=now_ns)

        self._left_ns = min(self._left_ns + earned_ns, saved_ns)
        is_unspent = self._left_ns == saved_ns
        self._left_ns -= new_ns
        if self._left_ns < -owed_ns:
            self._num_strikes += 1
        elif is_unspent:
            self._num_strikes = 0
        self._left_ns = max(self._left_ns - new_asked_ns, -owed_ns)
        self.is_open = self._left_ns >= 0
        self.is_exhausted = self._num_strikes >= _MAX_STRIKES
        if now_ns - self._level_since_ns >= _HOLD_NS:
            self._adapt(is_unspent=is_unspent, now_ns=now_ns)

    def _adapt(self, *, is_unspent: bool, now_ns: int) -> None:
        level = self.level
        if self._num_refused:
            level = min(level + 1, _MAX_LEVEL)
        elif is_unspent:
            level = max(level - 1, 0)
        if level != self.level:
            self.level, self._level_since_ns = level, now_ns
        self._num_refused = 0
