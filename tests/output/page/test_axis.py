"""An axis shows all of its values, with a few round ticks, and a place for each."""

import pytest

from taxbreak_vllm.output.page.axis import Axis


@pytest.mark.parametrize(
    "values", [[3.0], [0.0], [0.0, 1e-9], [1.0, 19.0], [0.004, 0.005], [0.002, 40.0], [799.9, 1e6]]
)
@pytest.mark.parametrize("from_zero", [False, True])
def test_values_and_ticks_stand_within_it_in_their_order(values, from_zero):
    axis = Axis.of(values, from_zero=from_zero)

    places = [axis.place(value) for value in values]
    assert all(0 <= place <= 100 for place in places)
    assert places == sorted(places)
    ticks = [axis.place(tick) for tick in axis.ticks]
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in ticks)


def test_it_is_logarithmic_where_values_differ_by_an_order_of_magnitude():
    assert not Axis.of([1.0, 10.0]).is_log
    assert Axis.of([1.0, 100.0]).is_log
    assert Axis.of([1.0, 100.0]).ticks == (1, 3, 10, 30, 100, 300)
    assert not Axis.of([1.0, 100.0], from_zero=True).is_log
