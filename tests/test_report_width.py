"""The report page as a browser lays it out: no table needs scrolling sideways in a window of usual width."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from sftdiff.report_html import render_report
from tests.report_example import example

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
           "--disable-background-networking", "--disable-component-update", "--dump-dom")  # fmt: skip
MEASURE = """<script>onload = () => {
  document.querySelectorAll("details").forEach((d) => (d.open = true));
  const boxes = [document.documentElement, ...document.querySelectorAll(".box")];
  const found = boxes.map((b) => [b.getAttribute("aria-label") || "page", b.scrollWidth, b.clientWidth]);
  document.body.innerHTML = "<pre id=widths>" + JSON.stringify(found) + "</pre>";
}</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
@pytest.mark.parametrize("width", [1400, 1000])
def test_no_table_is_wider_than_the_window(width: int, tmp_path: Path) -> None:
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render_report(example()))
    (tmp_path / "page.html").write_text(page.replace("</body>", MEASURE), encoding="utf-8")
    where = (f"--user-data-dir={tmp_path / 'browser'}", f"--window-size={width},3000", f"file://{tmp_path / 'page.html'}")
    out = subprocess.run([str(BROWSER), *OPTIONS, *where], capture_output=True, text=True, check=True, timeout=300).stdout
    widths = json.loads(unescape(re.findall(r'<pre id="widths">(.*?)</pre>', out)[0]))
    assert len(widths) > 8
    assert [row for row in widths if row[1] > row[2]] == []
