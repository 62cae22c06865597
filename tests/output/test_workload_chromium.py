"""The page of a sweep and of a prediction in a real Chromium, light and dark, wide and narrow: nothing is cut off."""

import pytest

from taxbreak_vllm.output.workload_html import write_workload_html
from tests.output.page.test_page_js import CONTRASTS, UNNAMED
from tests.output.page.test_workload import swept  # noqa: F401 - a fixture

pytestmark = pytest.mark.nightly


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_of_a_sweep_is_cut_off_or_pale(visit, shoot, swept, tmp_path, width, scheme):  # noqa: F811
    write_workload_html(swept, tmp_path / "page.html")

    with visit(f"file://{tmp_path / 'page.html'}", width=width, scheme=scheme) as page:
        shoot(page, f"workload-sweep-{width}-{scheme}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        least, where = page.evaluate(CONTRASTS)[0]
        assert least >= 4.5, where
        assert page.evaluate(UNNAMED) == []
        field = page.locator("svg.field").first.bounding_box()
        circles = page.locator("svg.field").first.locator("circle").all()
        assert len(circles) == 3
        for circle in circles:
            box = circle.bounding_box()
            assert field["x"] - 6 <= box["x"] <= field["x"] + field["width"] + 6
