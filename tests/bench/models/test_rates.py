"""Rates against numbers worked out by hand, and the file that they are read from."""

import json

import pytest

from bench.models.rates import CLOCK, CUBED, Rates, cubed_rates, read
from tests.support.ceilings import content, write


def test_the_clock_gives_the_data_sheets_rate():
    assert pytest.approx(1.83e9, rel=1e-2) == CLOCK


@pytest.mark.parametrize(
    ("K", "share"), [(64, 0.885), (768, 0.885), (1448, 0.908), (8192, 1.0), (65536, 1.0)]
)
def test_the_vendors_rate_by_depth(K, share):
    # 1,448 is half way by its logarithm: (0.885 + 0.931) / 2.
    assert Rates().product(K) == pytest.approx(share * CUBED, rel=1e-4)


def test_waves():
    assert [Rates().waves(n) for n in (1, 132, 133, 384)] == [1, 1, 2, 3]


@pytest.mark.parametrize(
    ("tiles", "K", "rate"),
    [
        # 384 of 396 places, as the cube's 2,048 of 2,112.
        (384, 32768, 798e12),
        # 192 of 264 places; 384 halves fill all but 12 of 396, and L2 bounds them.
        (192, 16384, 64 * 10e12),
        # 48 tiles fill 0.36 of the multiprocessors; 96 halves 0.73, less than what L2 gives.
        (48, 65536, 798e12 * (96 / 132) / (2048 / 2112)),
        # 16 tiles: even the halves are short of what L2 gives.
        (16, 65536, 798e12 * (32 / 132) / (2048 / 2112)),
    ],
)
def test_a_gradient_product_by_tiles_and_waves(tiles, K, rate):
    assert Rates().gradient(tiles, K) == pytest.approx(rate, rel=1e-9)


def test_a_measured_chunk_has_its_own_rate_and_lends_it_to_its_neighbours():
    model = Rates()
    measured = Rates(chunks={(16384, 32768): (600e12, 400e12), (2048, 65536): (1e12, 1e12)})
    assert measured.chunk(16384, 32768, 384, 768) == pytest.approx((600e12, 400e12))
    # 8,192 x 16,384 lies nearer to the first: both rates by what that one reached of the model's.
    dx, dy = model.chunk(8192, 16384, 192, 384)
    expected = dx * 600e12 / 798e12, dy * 400e12 / 798e12
    assert measured.chunk(8192, 16384, 192, 384) == pytest.approx(expected)


def test_a_file_gives_its_rates(tmp_path):
    path = write(tmp_path / "ceilings.json", copy=4.3e12, S_k768=650e12, l2_read=4.22e12)
    rates = read(path)
    assert rates.copy == 4.3e12 and rates.product(768) == 650e12
    assert rates.l2_product == pytest.approx(5.0e12)  # the same share of half the stream
    assert rates.clock == 1.7e9  # under load, not the highest
    assert rates.product(2048) == pytest.approx(0.931 * CUBED)  # the documented share of the cube
    assert rates.source == "measured, ceilings.json (A GPU)"


def test_what_is_no_measurement_of_a_gpu_says_so(tmp_path):
    path = write(tmp_path / "c.json", gpu=None, suite="smoke", clock=None, clock_under_load=None)
    rates = read(path)
    assert rates.clock == CLOCK
    for words in ("A CPU, which is no GPU", "a rehearsal", "clock of the data sheet"):
        assert words in rates.source


@pytest.mark.parametrize("value", [0, -1.0, "fast", True, float("nan"), float("inf"), None, []])
def test_a_constant_that_is_no_rate_is_an_error(tmp_path, value):
    damaged = content()
    damaged["constants"]["copy"]["value"] = value
    path = tmp_path / "c.json"
    path.write_text(json.dumps(damaged))
    with pytest.raises(ValueError, match=r"c\.json: copy: expected a positive number, got"):
        read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected the JSON of bench/gpu/ceilings.py, got"),
        ("[]", "expected an object with an object 'device', got list"),
        ('{"device": {}}', r"expected an object with an object 'constants', got \['device'\]"),
        ('{"device": {}, "constants": 1}', "expected an object with an object 'constants'"),
        ('{"device": {}, "constants": {}}', "expected the constant .*, got none: .*cut off"),
    ],
)
def test_a_malformed_file_is_an_error(tmp_path, text, message):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"c\.json: {message}"):
        read(path)


def test_a_missing_constant_is_an_error_with_the_reason_of_the_run(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content(copy=None) | {"missing": {"copy": "out of memory"}}))
    with pytest.raises(ValueError, match="expected the constant copy, got none: out of memory"):
        read(path)


def test_the_rate_of_the_cube_by_gpu(tmp_path):
    write(tmp_path / "h100-ceilings.json", gpu="H100", product_8192=7e14)
    write(tmp_path / "ceilings.json", gpu="H200", product_8192=8e14)
    write(tmp_path / "smoke-ceilings.json", gpu="tiny", suite="smoke")
    write(tmp_path / "cpu-ceilings.json", gpu=None)
    (tmp_path / "other.json").write_text("[]")
    assert cubed_rates(tmp_path) == {"H100": 7e14, "H200": 8e14}
