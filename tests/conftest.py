"""What several test modules share: they are no package, so it comes as fixtures."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

settings.register_profile("taxbreak", deadline=None, derandomize=True)
settings.load_profile("taxbreak")


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The slow reference implementation and the builders of made-up traces, `tests/reference.py`."""
    spec = importlib.util.spec_from_file_location("reference", Path(__file__).with_name("reference.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
