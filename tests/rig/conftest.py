"""What the tests of the rig share: which servers, and the analysis of a sample as the sidecar makes it."""

import pytest

from rig.trace import sample_info
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.read.kineto import read_events


@pytest.fixture(
    params=[
        pytest.param(range(20), id="20 servers"),
        pytest.param(range(20, 1_620), id="1600 more", marks=[pytest.mark.nightly, pytest.mark.timeout(900)]),
    ]
)
def seeds(request):
    """The random servers that a property is shown of: some at each change, more in `make test-nightly`."""
    return request.param


@pytest.fixture(scope="session")
def analyze_sample(rules, tmp_path_factory):
    """Write the recording of a sample, given as text, and decompose it with the server's own floor."""
    path = tmp_path_factory.mktemp("rig") / "trace.json"

    def analyze_sample(text, server, batch=None):
        path.write_text(text)
        terms = Terms(rules=rules, floor_ns=server.floor_ns)
        return Recording(read_events(path), terms, info=sample_info(server, batch)).breakdown

    return analyze_sample
