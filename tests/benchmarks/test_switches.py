"""Each rule of the advice on a server has a case in which its switch is turned."""

import re
from pathlib import Path

import pytest

from taxbreak_vllm.insight import server_advice


def test_each_rule_s_switch_is_turned_in_some_case():
    pytest.importorskip("aiohttp")  # a dependency of vLLM
    from switches import CASES

    rules = set(re.findall(r'find\(\s+e,\s+"([\w-]+)"', Path(server_advice.__file__).read_text()))
    turned = {rule for case in CASES for switch in case.switches for rule in switch.rules}

    assert len(rules) == len(server_advice.RULES)
    assert rules <= turned
