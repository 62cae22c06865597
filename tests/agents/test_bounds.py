import json

from taxbreak_vllm.agents.bounds import MAX_TEXT, bounded


def test_lists_are_cut_and_what_was_left_out_is_told():
    short = bounded({"top": [1, 2, 3], "deep": {"rows": list("abcd")}, "few": [1]}, 2)

    assert short == {
        "top": [1, 2],
        "deep": {"rows": ["a", "b"]},
        "few": [1],
        "left_out": ["top: 2 of 3", "deep.rows: 2 of 4"],
    }


def test_what_has_a_known_length_stays_whole():
    assert bounded({"interval": [0.1, 0.2], "figures": [1, 2, 3]}, 1) == {
        "interval": [0.1, 0.2],
        "figures": [1, 2, 3],
        "left_out": [],
    }


def test_a_long_text_is_cut_and_a_kernel_has_its_short_name():
    name = "std::enable_if<(((8)>(0))), void>::type vllm::fused_add_rms_norm_kernel<c10::BFloat16, 8>(c10::BFloat16*)"

    short = bounded({"note": "x" * 1000, "kernel": name}, 5)

    assert short["note"] == "x" * MAX_TEXT + "…"
    assert short["kernel"] == "fused_add_rms_norm_kernel"
    assert short["left_out"] == [f"note: {MAX_TEXT} of 1000 characters"]


def test_null_stays_null_and_counts_without_bounds_are_not_told():
    assert bounded({"a": None, "bucket_counts": [1, 2]}, 5) == {"a": None, "left_out": ["bucket_counts: not told"]}


def test_an_answer_has_a_bound_whatever_it_is_made_of():
    tree = {
        "rows": [{"kernel": f"k{'x' * 5000}{i}", "text": "y" * 5000, "more": list(range(1000))} for i in range(1000)]
    }

    assert len(json.dumps(bounded(tree, 10))) < 15_000
