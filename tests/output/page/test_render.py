"""Articles as one document."""

from taxbreak_vllm.output.page.render import per, render


def test_what_is_divided_must_be_known():
    assert (per(None, 3), per(3, 0), per(6, 3)) == (None, None, 2)


def test_each_document_has_a_nonce_of_its_own():
    assert render([])[1] != render([])[1]
