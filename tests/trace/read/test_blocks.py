"""Blocks of events lean on the words of the parser's errors, so a parser of other words is refused loudly."""

import msgspec
import pytest

from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.trace.read.blocks import _check_parser


def test_the_installed_parser_says_what_is_looked_for():
    _check_parser()


def raising(*words):
    left = iter(words)

    def decode(_text):
        raise msgspec.DecodeError(next(left))

    return decode


@pytest.mark.parametrize(
    "words",
    [
        ("extra text after the list (byte 6)", "Input data was truncated"),
        ("JSON is malformed: trailing characters (byte 6)", "the input ends too soon"),
        ("JSON is malformed: trailing characters (offset 6)", "Input data was truncated"),
        ("JSON is malformed: trailing characters (byte 5)", "Input data was truncated"),
    ],
)
def test_a_parser_of_other_words_is_refused_with_its_version(words):
    with pytest.raises(TaxbreakError, match=msgspec.__version__):
        _check_parser(raising(*words))
