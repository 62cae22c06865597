import pytest

from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.settings import load_settings


def test_a_key_is_taken_without_the_newline_a_secret_ends_in(monkeypatch):
    monkeypatch.setenv("TAXBREAK_API_KEY", "secret\n")

    assert load_settings().api_key.get_secret_value() == "secret"


@pytest.mark.parametrize("key", ["", " \n", "klü", "two\nlines"])
def test_a_key_that_is_empty_or_fits_no_header_is_refused_and_not_shown(monkeypatch, key):
    monkeypatch.setenv("TAXBREAK_API_KEY", key)

    with pytest.raises(SettingsError, match=r"^TAXBREAK_API_KEY: a key is of printable ASCII characters, not empty"):
        load_settings()


@pytest.mark.parametrize("name", ["window_s", "retention_s", "max_step_s"])
@pytest.mark.parametrize("value", ["99999999999999", "inf", "nan"])
def test_a_time_beyond_a_year_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(f"TAXBREAK_{name.upper()}", value)

    with pytest.raises(SettingsError, match=rf"^TAXBREAK_{name.upper()}='{value}': Input should be "):
        load_settings()
