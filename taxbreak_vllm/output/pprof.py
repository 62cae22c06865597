"""ΔFT as a pprof profile, for Pyroscope, Parca and `go tool pprof`.

In: the stacks of recordings. Out: profile.proto (google/pprof, proto/profile.proto), gzip-compressed. A sample is a
stack with its own ΔFT and, where it is known of all recordings, what of that the device waited for, in ns. Its labels
are the phase, how many steps of that phase there are, and of several recordings which one.
"""

import gzip
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from taxbreak_vllm.insight.findings import Findings
from taxbreak_vllm.model.stacks import FrameKind, HostStacks
from taxbreak_vllm.output.files import replacing
from taxbreak_vllm.taxes.recording import Recording, opened

_SAMPLE_TYPES = ("delta_ft", "delta_ft_exposed")
_UNIT = "nanoseconds"

# As torch names a Python function: its file, line and name.
_FUNCTION = re.compile(r"(?P<file>[^()]+)\((?P<line>\d+)\): .+")


class Pprof:
    """A profile being made, of one recording or of several."""

    def __init__(self) -> None:
        self._stacks: list[HostStacks] = []
        self._began_unix_ns: list[int] = []
        self._length_ns = 0

    def add(self, findings: Findings) -> None:
        """Add the stacks of the steps that are shown."""
        self._stacks.append(findings.stacks)
        events = findings.recording.head
        if events.base_ns:  # else the trace's times may be of any clock
            self._began_unix_ns.append(events.base_ns + events.first_ns)
        self._length_ns += sum(step.window_ns for step in findings.breakdown.steps)

    def to_bytes(self) -> bytes:
        """Return the profile, compressed."""
        return gzip.compress(b"".join(self._messages()), mtime=0)

    def write(self, target: str | Path) -> None:
        """Write the file; raises TaxbreakError where the disk refuses."""
        with replacing(target) as temporary:
            temporary.write_bytes(self.to_bytes())

    def _messages(self) -> Iterator[bytes]:
        known = [stacks for stacks in self._stacks if not stacks.reason]
        types = _SAMPLE_TYPES if known and all(s.exposed_ns is not None for s in known) else _SAMPLE_TYPES[:1]
        texts = _Texts()
        functions = _Functions(texts)
        for name in types:
            yield _message(1, _value_type(texts, name))
        for stacks in known:
            label = stacks.title if len(self._stacks) > 1 else ""
            yield from _samples(stacks, label, len(types), texts, functions)
        yield from functions.messages
        if self._began_unix_ns:
            yield _number(9, min(self._began_unix_ns))
        yield _number(10, self._length_ns)
        yield _message(11, _value_type(texts, types[0]))
        yield _number(12, 1)
        for stacks in self._stacks:
            told = f": {stacks.reason}" if stacks.reason else ""
            yield _number(13, texts[f"taxbreak-vllm, ΔFT of {stacks.title}{told}"])
        yield _number(14, texts[types[0]])
        for text in texts:  # the last, as all others add to it
            yield _message(6, text.encode())


def write_pprof(sources: Sequence[Recording | str | Path], target: str | Path) -> None:
    """Write the ΔFT of traces or captures as one pprof profile, gzip-compressed.

    Raises TraceFormatError or SpoolError for what cannot be read, TaxbreakError where the disk refuses.
    """
    profile = Pprof()
    for source in sources:
        with opened(source, with_frames=True) as recording:
            profile.add(Findings(recording))
    profile.write(target)


class _Texts(dict[str, int]):
    """Numbers texts as they come; the first is empty, as the format has it."""

    def __init__(self) -> None:
        super().__init__({"": 0})

    def __missing__(self, text: str) -> int:
        self[text] = len(self)
        return self[text]


class _Functions:
    """A function, and one place in it, of each name; both have the same number."""

    def __init__(self, texts: _Texts) -> None:
        self._texts = texts
        self._number_by_name: dict[str, int] = {}
        self.messages: list[bytes] = []

    def __getitem__(self, name: str) -> int:
        number = self._number_by_name.get(name)
        if number is None:
            number = self._number_by_name[name] = len(self._number_by_name) + 1
            found = _FUNCTION.fullmatch(name)
            line = int(found["line"]) if found else 0
            file = self._texts[found["file"]] if found else 0
            # Without a system name, as pprof would demangle one that is equal and cut `<lambda>` off.
            function = _number(1, number) + _number(2, self._texts[name]) + _number(4, file) + _number(5, line)
            place = _number(1, number) + _message(4, _number(1, number) + _number(2, line))
            self.messages += [_message(5, function), _message(4, place)]
        return number


def _samples(stacks: HostStacks, label: str, num_values: int, texts: _Texts, functions: _Functions) -> Iterator[bytes]:
    exposed_ns = stacks.exposed_ns or (0,) * len(stacks.parent)
    is_phase = [stacks.kinds[kind] is FrameKind.PHASE for kind in stacks.kind]
    for frame, values in enumerate(zip(stacks.delta_ft_ns, exposed_ns, strict=True)):
        if not any(values):
            continue
        names = [stacks.names[stacks.name[i]] for i in stacks.stack(frame) if not is_phase[i]]
        phase = next(stacks.names[stacks.name[i]] for i in stacks.stack(frame) if is_phase[i])
        yield _message(
            2,
            _packed(1, [*map(functions.__getitem__, names), functions[phase]])
            + _packed(2, values[:num_values])
            + _message(3, _number(1, texts["phase"]) + _number(2, texts[phase]))
            + (
                _message(3, _number(1, texts["steps"]) + _number(3, stacks.num_steps[phase]))
                if phase in stacks.num_steps
                else b""
            )
            + (_message(3, _number(1, texts["recording"]) + _number(2, texts[label])) if label else b""),
        )


def _value_type(texts: _Texts, name: str) -> bytes:
    return _number(1, texts[name]) + _number(2, texts[_UNIT])


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _packed(field: int, values: Iterable[int]) -> bytes:
    return _message(field, b"".join(map(_varint, values)))
