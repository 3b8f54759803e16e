"""Which floor a target means, in its words and in its numbers."""

import pytest

from bench import ratios, targets
from bench.cases import KEPT, LARGE, PAPER, pairs
from bench.report import rated, report
from bench.results_file import Results
from tests.support.ceilings import write

MFH = pairs(32_768, 768, dtype="bfloat16")
INFO_NCE = pairs(65_536, 768, teacher=False, dtype="bfloat16")
SIGLIP = pairs(65_536, 768, teacher=False, sigmoid=True, dtype="bfloat16")


def record(case, both, to_floor=None, gpu="A GPU"):
    spread = {"median": both, "q10": both, "q90": both}
    return {
        "group": "a group", "provider": "triton", "case": case.as_dict(), "threads": 1,
        "repeats": 3, "seconds": dict.fromkeys(("forward", "backward", "both"), spread),
        "to_floor": {} if to_floor is None else {"both": to_floor}, "to_dense": {}, "gate": {},
        "machine": {
            "gpu": gpu, "cpu": "A CPU", "cores": 1, "memory_bytes": 1 << 30, "python": "3.12",
            "versions": {}, "commit": "abc", "source": "def", "date": "2026-01-01",
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("case", "products", "size"),
    [(MFH, 6, 2 * 32_768**2 * 768), (INFO_NCE, 4, 2 * 65_536**2 * 768)],
)
def test_the_rate_of_the_cube_as_a_floor(case, products, size):
    found = ratios.with_cubed(record(case, 0.02), {"A GPU": 8e14})
    assert found["to_cubed"]["both"] == pytest.approx(0.02 / (products * size / 8e14))


@pytest.mark.parametrize("case", [SIGLIP, LARGE, PAPER], ids=["sigmoid", "float32", "the paper's"])
def test_other_products_have_no_such_floor(case):
    unchanged = record(case, 0.02)
    assert ratios.with_cubed(unchanged, {"A GPU": 8e14}) == unchanged


def test_a_record_of_another_machine_has_none():
    for gpu in ("Another", None):
        unchanged = record(MFH, 0.02, gpu=gpu)
        assert ratios.with_cubed(unchanged, {"A GPU": 8e14}) == unchanged
    refused = {key: v for key, v in record(MFH, 0.02).items() if key != "seconds"}
    assert ratios.with_cubed(refused, {"A GPU": 8e14}) == refused


def lines(words, *shares):
    cases = (MFH, 6, 70), (INFO_NCE, 4, 75)
    return [
        f"| `triton`, {case.name} | at least {least} % of the speed | {share} % of the speed of "
        f"{words.format(products=n)} | {'yes' if share >= least else 'no'} |"
        for (case, n, least), share in zip(cases, shares, strict=True)
    ]


def test_the_table_shows_both_floors_where_ceilings_lie_beside_the_results(tmp_path):
    path = tmp_path / "a-gpu.json"
    Results(path).add([record(MFH, 0.0200, 1.35), record(INFO_NCE, 0.050, 1.40)])
    own = lines("the matrix products alone", 74, 71)
    report(tmp_path, with_plots=False)
    page = path.with_suffix(".md").read_text()
    assert all(line in page for line in own) and "8192" not in page

    write(tmp_path / "ceilings.json", product_8192=8e14)
    report(tmp_path, with_plots=False)
    page = path.with_suffix(".md").read_text()
    # 6 U are 9.896e12 operations, 12.37 ms at 800 TFLOP/s: 20 ms are 1.62 of it. 4 U: 33 ms.
    cubed = lines("{products} products at the vendor's 8192-cubed rate", 62, 66)
    assert all(line in page for line in own + cubed)
    assert "to_cubed" not in path.read_text()  # derived, not recorded
    assert rated(path)[0]["to_cubed"]["both"] == pytest.approx(1.617, rel=1e-3)


def test_damaged_ceilings_are_an_error_not_a_missing_line(tmp_path):
    Results(tmp_path / "a-gpu.json").add([record(MFH, 0.02, 1.35)])
    (tmp_path / "ceilings.json").write_text("{}")
    with pytest.raises(ValueError, match=r"ceilings\.json: expected an object"):
        report(tmp_path, with_plots=False)


@pytest.mark.parametrize("kind", targets.FLOORS)
def test_every_target_on_a_floor_says_which(kind):
    """Of records that are compared with one floor alone, every line is in the words of that one."""
    providers = "native", "blocked", "triton"
    cases = LARGE, targets.LARGE_BFLOAT16, KEPT, targets.KEPT_BFLOAT16, *targets.HEADLINES
    records = [
        record(case, 1.0)
        | {"provider": provider, "group": f"{provider} {case.name}", kind: {"both": 1.5}}
        for provider in providers
        for case in cases
    ]
    lines = [row for t in targets.TARGETS if (row := t.row(records)) and "batch of" not in row[0]]
    found = [line for line in lines if line[2][-2:] != "µs" and "one round" not in line[2]]
    names = {targets.FLOORS[kind].format(products=n) for n in (4, 6)}
    assert found and all(any(name in line[2] for name in names) for line in found)
