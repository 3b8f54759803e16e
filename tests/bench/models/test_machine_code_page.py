"""The committed page of the compiled kernels is that of the committed records."""

import json

from bench.models.machine_code_page import markdown
from bench.models.shipped_kernels import TARGETS
from bench.results_file import RESULTS


def test_the_committed_page_is_that_of_the_records():
    records = json.loads((RESULTS / "machine_code.json").read_text())
    assert records
    assert markdown(records, list(TARGETS)) == (RESULTS / "machine_code.md").read_text()
