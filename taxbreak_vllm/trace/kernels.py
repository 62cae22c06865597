"""Names to families: which kernel is a GEMM, which attention, and which was reached through a vendor library.

In: names of device activities (on a CPU, of ops). Out: a KernelClass each, from the ordered `kernel_rules.toml`;
the first rule that matches wins, and its reason travels with the answer. Methodology sections 3 (I_lib), 7 and 8.
"""

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from pathlib import Path

from taxbreak_vllm.model.errors import SettingsError

DEFAULT_RULES = Path(__file__).with_name("kernel_rules.toml")

# What tells a kernel's family stands in its own name and first template arguments; types of parameters follow, and
# they mislead (a norm that takes a quantization layout). Longest needed so far: 190, DeepGEMM's GemmType.
_SUBJECT_CHARS = 320

# Nearly all alternatives are plain text: `in` finds text some 20 times faster than `re`, and needs no compiling.
_TEXT = re.compile(r"[\w:<]+", re.ASCII)
_UPPER = re.compile(r"(?<!\\)[A-Z]")
_KEYS = {"pattern": str, "within": str, "family": str, "i_lib": bool, "i_lib_paper": bool, "reason": str}


class Family(StrEnum):
    """What a kernel is for (methodology section 8)."""

    GEMM = "gemm"
    ATTENTION = "attention"
    MOE = "moe"
    NORM = "norm"
    ACTIVATION = "activation"
    ROPE = "rope"
    KV_CACHE = "kv-cache"
    QUANTIZATION = "quantization"
    EMBEDDING = "embedding"
    SAMPLING = "sampling"
    ELEMENTWISE = "elementwise"
    REDUCTION = "reduction"
    COPY = "copy"
    COLLECTIVE = "collective"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class KernelClass:
    """The answer for one name: family, I_lib by our table and by the paper's own tool, and why."""

    family: Family
    i_lib: bool
    i_lib_paper: bool
    reason: str


UNKNOWN = KernelClass(Family.OTHER, i_lib=False, i_lib_paper=False, reason="no rule knows this name")


@dataclass(frozen=True, slots=True)
class Pattern:
    """Alternatives sorted by how they are looked up; see the head of `kernel_rules.toml`."""

    texts: tuple[str, ...]
    prefixes: tuple[str, ...]
    regex: re.Pattern[str] | None = None

    def matches(self, subject: str) -> bool:
        """Tell whether one alternative is found in a lowercased name."""
        for text in self.texts:  # twice as fast as any(): this line is where classification spends its time
            if text in subject:
                return True
        return subject.startswith(self.prefixes) or (self.regex is not None and self.regex.search(subject) is not None)


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of a table."""

    kind: KernelClass
    pattern: Pattern
    within: Pattern | None


@dataclass(frozen=True)
class KernelRules:
    """The ordered tables for kernels and for ops, and the names of ops that never compute."""

    kernels: tuple[Rule, ...]
    metadata_ops: frozenset[str]
    _op_rows: object
    _path: Path

    @classmethod
    def load(cls, path: Path | None = None) -> "KernelRules":
        """Read a rule file, by default the packaged one, in about 5 ms: callers keep the result.

        Raises SettingsError with the file and the number of the rule that is wrong; for rules of ops, which a trace of
        a GPU seldom needs, only when they are first used.
        """
        path = path or DEFAULT_RULES
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"{path}: {error.strerror or error}") from error
        except ValueError as error:
            raise SettingsError(f"{path}: not valid TOML: {error}") from error
        unknown = tables.keys() - {"kernel", "op", "metadata_ops"}
        if unknown:
            raise SettingsError(f"{path}: unknown key {min(unknown)!r}; use [[kernel]], [[op]] and metadata_ops")
        metadata_ops = tables.get("metadata_ops", "")
        if not isinstance(metadata_ops, str):
            raise SettingsError(f"{path}: metadata_ops must be one string of names with white space between")
        return cls(
            kernels=_rules(tables.get("kernel", []), f"{path}: kernel rule"),
            metadata_ops=frozenset(metadata_ops.split()),
            _op_rows=tables.get("op", []),
            _path=path,
        )

    @cached_property
    def ops(self) -> tuple[Rule, ...]:
        """The table for ops; its expressions are long lists, so they are compiled only when asked for."""
        return _rules(self._op_rows, f"{self._path}: op rule")

    def classify(self, name: str, op: str = "") -> KernelClass:
        """Return the kind of a device activity (kernel, memcpy or memset).

        Where the name says nothing (`triton__0d1d2d`), the op that launched it gives the family; I_lib stays false
        then, since an op does not tell which of its kernels came from a library. Names come again with every step, so
        the answers are kept.
        """
        return self._classified(name, op)

    @cached_property
    def _classified(self) -> Callable[[str, str], KernelClass]:
        return lru_cache(2**16)(self._classify)

    def _classify(self, name: str, op: str) -> KernelClass:
        kind = _first(self.kernels, name)
        if kind is UNKNOWN and op:
            by_op = self.classify_op(op)
            if by_op is not UNKNOWN:
                return KernelClass(
                    by_op.family, i_lib=False, i_lib_paper=False, reason=f"by its op {op}: {by_op.reason}"
                )
        return kind

    def classify_all(self, names: Sequence[str]) -> list[KernelClass]:
        """Return the kind of each name, in order; meant for unique names."""
        kernels = self.kernels
        return [_first(kernels, name) for name in names]

    def classify_op(self, op: str) -> KernelClass:
        """Return the kind of a leaf op of the CPU backend; generated C++ (`…cpp_fused_…`) is read like a kernel."""
        start = op.find("cpp_fused")
        return _first(self.ops, op) if start < 0 else _first(self.kernels, op[start:])

    def is_metadata_op(self, op: str) -> bool:
        """Tell whether an op only changes shapes or allocates: as a leaf it computes nothing."""
        return op.removeprefix("aten::") in self.metadata_ops


def _first(rules: tuple[Rule, ...], name: str) -> KernelClass:
    subject = name[:_SUBJECT_CHARS].lower().removeprefix("void ")
    for rule in rules:
        if (rule.within is None or rule.within.matches(subject)) and rule.pattern.matches(subject):
            return rule.kind
    return UNKNOWN


def _rules(rows: object, where: str) -> tuple[Rule, ...]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SettingsError(f"{where}s must be an array of tables")
    return tuple(_rule(row, f"{where} {number}") for number, row in enumerate(rows, start=1))


def _rule(row: dict[str, object], where: str) -> Rule:
    for key, value in row.items():
        if key not in _KEYS:
            raise SettingsError(f"{where}: unknown key {key!r}; the keys are {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]):
            raise SettingsError(f"{where}: {key} must be {'true or false' if _KEYS[key] is bool else 'a string'}")
    pattern, family, reason = (str(row.get(key, "")).strip() for key in ("pattern", "family", "reason"))
    if not pattern or not reason:
        raise SettingsError(f"{where}: {'reason' if pattern else 'pattern'} is missing or empty")
    if family not in tuple(Family):
        raise SettingsError(f"{where}: family {family!r} is none of {', '.join(Family)}")
    i_lib = bool(row.get("i_lib", False))
    within = _pattern(str(row["within"]), where) if "within" in row else None
    if within is not None and within.regex is not None:
        raise SettingsError(f"{where}: within takes plain text only, not {within.regex.pattern!r}")
    return Rule(
        kind=KernelClass(Family(family), i_lib=i_lib, i_lib_paper=bool(row.get("i_lib_paper", i_lib)), reason=reason),
        pattern=_pattern(pattern, where),
        within=within,
    )


def _pattern(pattern: str, where: str) -> Pattern:
    texts, prefixes, expressions = [], [], []
    for alternative in pattern.split():
        if _UPPER.search(alternative):
            raise SettingsError(f"{where}: {alternative!r} can never match: names are lowercased first, write it so")
        if _TEXT.fullmatch(alternative):
            texts.append(alternative)
        elif alternative[0] == "^" and _TEXT.fullmatch(alternative, 1):
            prefixes.append(alternative[1:])
        else:
            expressions.append(alternative)
    try:
        regex = re.compile("|".join(expressions)) if expressions else None
    except re.error as error:
        raise SettingsError(f"{where}: {error.pattern!r} is not a regular expression: {error}") from error
    return Pattern(tuple(texts), tuple(prefixes), regex)
