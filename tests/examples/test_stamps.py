"""The stamps, on a folder of a few coloured squares that the test writes."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("efficientnet_lite_pytorch", reason="the examples extra is not installed")

from examples.data.stamps import languages, load_stamps, parse_captions
from examples.errors import CheckpointError, OptionError
from examples.studies.protocol.runs import Point, Run
from examples.studies.protocol.tuning import Grid
from examples.studies.stamps import __main__ as command
from examples.studies.stamps import experiment
from examples.studies.stamps import features as frozen
from examples.studies.stamps.experiment import (
    NEAR,
    TEST,
    VALIDATION,
    Plan,
    drawn,
    equal_rows,
    equal_steps,
    equal_time,
    training_languages,
)
from examples.studies.stamps.features import StampSet, cached_features, grams
from examples.studies.stamps.plot import spread
from examples.studies.stamps.report import QUESTIONS, summary, tables
from examples.studies.stamps.rows import ALL, MFH, ONE_PAIR, ROWS
from examples.studies.stamps.training import (
    Batches,
    Encoder,
    Schedule,
    bags,
    evaluate,
    train,
)

TRAINED = [f"x{number}" for number in range(18)]
SPOKEN = ["en", "en_GB", *TEST, *VALIDATION, *NEAR, *TRAINED]
THINGS = ["cow", "dog", "red bird", "ship", "tree", "blue car", "bell", "moon"]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Stamps in all languages, but for the last one; a letter; a mirror image."""
    root = tmp_path_factory.mktemp("package") / "usr" / "share" / "tuxpaint" / "stamps"
    for folder in ("animals", "symbols"):
        (root / folder).mkdir(parents=True)
    for number, thing in enumerate(THINGS):
        image = Image.new("RGBA", (8, 6), (20 * number, 90, 200, 255))
        image.putpixel((0, 0), (0, 0, 0, 0))
        image.save(root / "animals" / f"s{number}.png")
        spoken = SPOKEN if number < len(THINGS) - 1 else SPOKEN[:-1]
        lines = [f"A {thing}.", *(f"{name}.utf8=Z\u00e4 {thing}" for name in spoken[1:])]
        (root / "animals" / f"s{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    (root / "animals" / "s0_desc_ro.ogg").write_bytes(b"a voice")
    Image.new("RGB", (8, 6)).save(root / "animals" / "s0_mirror.png")
    (root / "animals" / "s0_mirror.txt").write_text("A cow, mirrored.")
    Image.new("RGB", (8, 6)).save(root / "symbols" / "a.png")
    (root / "symbols" / "a.txt").write_text("The letter a.")
    return root.parents[3]


@pytest.fixture(scope="module")
def stamps(package):
    return load_stamps(str(package))


@pytest.fixture(scope="module")
def path(stamps, tmp_path_factory):
    file = tmp_path_factory.mktemp("features") / "all.safetensors"
    cached_features(stamps, SPOKEN[:1] + SPOKEN[2:], file)
    return file


@pytest.fixture(scope="module")
def data(path):
    return frozen.read_features(path)


def test_captions_are_by_language_and_the_first_line_is_english(stamps):
    assert [stamp.name for stamp in stamps] == [f"animals/s{i}" for i in range(len(THINGS))]
    assert stamps[2].captions["en"] == "A red bird."
    assert stamps[2].captions["uk"] == "Z\u00e4 red bird"
    assert parse_captions("A cat.\nfr.utf8=Un chat = f\u00e9lin.\nde.utf8= \n\n") == {
        "en": "A cat.",
        "fr": "Un chat = f\u00e9lin.",
    }
    assert set(stamps[0].voices) == {"ro"}
    assert stamps[1].voices == {}


def test_a_language_must_describe_nine_tenths_and_english_counts_once(stamps):
    known = languages(stamps)
    assert "en_GB" not in known
    assert TRAINED[-1] not in known  # 7 of 8
    assert set(known) == set(SPOKEN) - {"en_GB", TRAINED[-1]}


def test_images_are_on_white_and_mirrored(stamps):
    shown, mirrored = (np.asarray(view.open()) for view in stamps[1].views)
    assert (shown[0, 0] == 255).all()
    assert tuple(shown[0, 1]) == (20, 90, 200)
    assert (mirrored == shown[:, ::-1]).all()


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("", r"--data_root must name the folder of the stamps, not ''"),
        ("nowhere", r"--data_root must name the folder of the stamps, not '.*nowhere'"),
        ("empty", r"--data_root: .*empty holds no NAME\.png with NAME\.txt; see `make stamps`"),
        ("latin", r"--data_root: .*a\.txt is not UTF-8"),
    ],
)
def test_a_wrong_folder_is_named(tmp_path, folder, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "latin" / "a.png")
    (tmp_path / "latin" / "a.txt").write_bytes("un caf\u00e9".encode("latin-1"))
    with pytest.raises(OptionError, match=message):
        load_stamps(str(tmp_path / folder) if folder else "")


def test_n_grams_mark_where_words_end():
    assert sorted(grams("Ab c")) == sorted(
        ["<a", "ab", "b>", "<ab", "ab>", "<ab>", "<c", "c>", "<c>"]
    )


def test_features_are_read_again_and_made_anew_for_other_captions(stamps, tmp_path, monkeypatch):
    file = tmp_path / "f.safetensors"
    made = cached_features(stamps, ["en", "uk"], file)
    monkeypatch.setattr(frozen, "encode", lambda *_: pytest.fail("encoded again"))
    read = cached_features(stamps, ["en", "uk"], file)
    assert read.languages == ("en", "uk")
    assert all(torch.equal(getattr(read, n), getattr(made, n)) for n in ("images", "grams"))
    monkeypatch.setattr(frozen, "encode", lambda *_: replace(made, languages=("en", "ca")))
    assert cached_features(stamps, ["en", "ca"], file).languages == ("en", "ca")


def a_set() -> StampSet:
    """Two stamps: the first has one caption in each of two languages, the second one in all."""
    return StampSet(
        torch.eye(2)[:, None].expand(2, 2, 2).contiguous(),
        torch.tensor([5, 6, 7, 8, 9]),
        torch.tensor([0, 2, 3, 5]),
        torch.tensor([0, 0, 1]),
        torch.tensor([0, 1, 1]),
        ("aa", "bb"),
    )


def test_bags_are_the_captions_n_grams():
    places, begins = bags(a_set(), torch.tensor([2, 0]))
    assert places.tolist() == [8, 9, 5, 6]
    assert begins.tolist() == [0, 2]


def test_a_batch_has_all_captions_or_one_pair_of_each_stamp():
    data, generator = a_set(), torch.Generator()
    (whole,) = Batches(data, ["aa", "bb"], False, generator).take(9, 1)
    assert whole.images.shape == (4, 2)
    assert sorted(whole.grams.tolist()) == [5, 6, 7, 8, 9]
    assert repr(whole.folds) == "Folds(images=4, texts=3, positives=6)"
    seen = set()
    for pair in Batches(data, ["aa", "bb"], True, generator).take(2, 20):
        assert pair.images.shape == (2, 2)
        assert len(pair.offsets) == 2
        seen |= set(pair.grams.tolist())
    assert seen == {5, 6, 7, 8, 9}


def test_stamps_without_a_caption_are_not_trained_on():
    (batch,) = Batches(a_set(), ["aa"], False, torch.Generator()).take(9, 1)
    assert batch.grams.tolist() == [5, 6]
    assert batch.images.tolist() == [[1, 0], [1, 0]]


def test_every_stamp_is_seen_once_in_an_epoch(data):
    batches = Batches(data, TRAINED, True, torch.Generator())
    taken = list(islice(batches.take(4, 2), 2))
    rows = torch.cat([batch.images for batch in taken])
    gallery = data.images.flatten(0, 1)
    found = torch.cdist(rows, gallery).argmin(1) // 2
    assert sorted(found.tolist()) == list(range(len(THINGS)))


def test_recall_is_that_of_the_ranks():
    data = a_set()
    encoder = Encoder(2, 0.1)
    with torch.no_grad():
        encoder.images.weight.zero_()
        encoder.images.weight[:2] = torch.eye(2)
        encoder.texts.weight.zero_()
        encoder.texts.weight[[5, 6, 7], 0] = 1.0  # both captions of the first stamp find it
        encoder.texts.weight[[8, 9], 0] = 1.0  # that of the second finds the first before it
    found = evaluate(encoder, data, ["aa", "bb"])
    assert found["R@1"] == 75.0  # the mean of 1 of 1 and of 1 of 2
    assert found["R@5"] == 100.0
    assert found["aa"] == 100.0
    assert found["bb"] == pytest.approx((50 + 100 + 100) / 3)
    assert found["average recall"] == pytest.approx((75 + 100 + 100) / 3)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_loss_learns_the_captions(data, row):
    def recall(steps):
        encoder, seconds = train(row, data, TRAINED[:3], Schedule(4, steps), 0.03, 0.1, seed=0)
        assert seconds > 0
        return evaluate(encoder, data, TRAINED[:3])["R@1"]

    assert recall(40) > max(recall(1), 60)


def test_equal_seeds_give_equal_runs(data):
    def weights(seed):
        return train(MFH, data, TRAINED[:2], Schedule(4, 3), 0.03, 0.1, seed)[0].texts.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_draws_are_nested_and_leave_out_what_is_measured_and_its_relatives():
    names = ["en", *SPOKEN[2:]]
    assert training_languages(names) == ["en", *TRAINED]
    for draw in range(5):
        four, eight = drawn(names, draw, 4), drawn(names, draw, 8)
        assert eight[:4] == four
        assert not {*TEST, *VALIDATION, *NEAR} & set(drawn(names, draw, 99))
    assert drawn(names, 0, 8) != drawn(names, 1, 8)


def test_at_all_languages_draws_differ_in_their_seeds(path, monkeypatch):
    experiment.start(path)
    used = []

    def note(*arguments):
        used.append(arguments[-1])
        return Encoder(arguments[1].images.shape[-1], 0.1), 1.0

    monkeypatch.setattr(experiment, "train", note)
    setting = equal_steps(Plan(), ALL, 19)
    for draw in (0, 1):
        for seed in (0, 1):
            experiment.execute(Run(setting, Point(0.1, 0.1), draw, seed, "test"))
    assert len(set(used)) == 4


def test_a_run_is_measured_on_what_it_names(path):
    experiment.start(path)
    setting = equal_steps(Plan(stamps=4, steps=1), ONE_PAIR, 2)
    test, _ = experiment.execute(Run(setting, Point(0.1, 0.1), 0, 0, "test"))
    validation, _ = experiment.execute(Run(setting, Point(0.1, 0.1), 0, 0, "validation"))
    assert set(TEST) < set(test)
    assert set(VALIDATION) < set(validation)
    assert not set(TEST) & set(validation)


def test_rows_and_time_are_held_fixed():
    plan = Plan(stamps=64, steps=100, rows=512)
    assert equal_rows(plan, ALL, 16).schedule == Schedule(32, 100)
    assert equal_rows(plan, ONE_PAIR, 16).schedule == Schedule(512, 100)
    slow = equal_time(equal_steps(plan, ALL, 16), seconds=0.5, reference=1.5)
    assert (slow.held, slow.schedule) == ("time", Schedule(64, 300))


def test_labels_keep_their_distance():
    heights = spread({"a": 10.0, "b": 10.1, "c": 10.2, "d": 30.0}, 2.0)
    placed = sorted(heights.values())
    assert min(np.diff(placed)) > 1.99
    assert heights["d"] == 30.0
    assert heights["a"] < heights["b"] < heights["c"]


@pytest.fixture(scope="module")
def options(package, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    values = {
        "data_root": str(package),
        "stamps": 4,
        "steps": 2,
        "rows": 16,
        "draws": 2,
        "seeds": 1,
        "workers": 1,
        "cache_dir": str(folder / "cache"),
        "results_dir": str(folder / "results"),
    }
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def finished(options):
    """The report of a whole study, of few runs."""
    assert command.main(options) == 0
    return json.loads((folder_of(options) / "stamps.json").read_text())


def folder_of(options):
    (place,) = (i for i, text in enumerate(options) if text == "--results_dir")
    return Path(options[place + 1])


def test_the_study_writes_report_tables_and_plot(options, finished):
    folder = folder_of(options)
    assert {p.name for p in folder.iterdir()} == {
        "stamps.json",
        "stamps.md",
        "stamps_summary.md",
        "stamps.svg",
    }
    counts = {(r["held"], r["languages"]) for r in finished["results"]}
    assert counts == {
        *(("steps", k) for k in (1, 2, 4, 8, 16, 18)),
        *((held, k) for held in ("rows", "time") for k in (1, 4, 16, 18)),
    }
    assert len(finished["results"]) == len(ROWS) * 14
    page = (folder / "stamps.md").read_text()
    assert page == tables(finished)
    assert all(row.name in page for row in ROWS)
    assert (folder / "stamps_summary.md").read_text() == summary(finished)


def test_tables_only_writes_the_same_once_more(options, finished):
    folder = folder_of(options)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert command.main([*options, "--tables_only", "True"]) == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    (folder / "stamps.json").write_text("{")
    assert command.main([*options, "--tables_only", "True"]) == 2
    (folder / "stamps.json").write_bytes(before["stamps.json"])


def test_every_primary_contrast_of_the_rule_is_on_the_page(finished):
    rule = (Path(command.__file__).parent / "reading.md").read_text()
    section = rule.split("**Primary contrasts**")[1].split("**What counts")[0]
    for number, question in enumerate(QUESTIONS, 1):
        (line,) = (text for text in section.split("\n") if text.startswith(f"{number}. "))
        assert question.first in line
        assert question.fewer or question.second in line
        assert f"equal {question.held}" in line
    assert f"{len(QUESTIONS) + 1}. " not in section
    lines = [line for line in tables(finished).split("\n") if " against " in line and "|" in line]
    assert len(lines) == len(QUESTIONS)


def test_a_contrast_counts_by_its_corrected_p_value(finished):
    """Seven p-values of 0.03 each are one of 0.21 after Holm's correction."""
    report = json.loads(json.dumps(finished))
    for result in report["results"]:
        shift = 0.0 if result["row"]["name"] == ONE_PAIR.name else 1.0
        result["metrics"]["average recall"] = [[shift * v] for v in (0.9, 1.0, 1.1, 1.0, 1.0)]
    verdicts = [line.split("|")[-2].strip() for line in rows_of(report)]
    assert verdicts[:5] == ["higher"] * 5
    assert verdicts[5:] == ["no difference seen"] * 2
    for result in report["results"]:
        shift = 0.0 if result["row"]["name"] == ONE_PAIR.name else 1.0
        result["metrics"]["average recall"] = [[shift * v] for v in (0.6, 1.0, 1.5, 0.5, 1.4)]
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rows_of(report)]
    low = float(shown[0][2].split(" to ")[0])
    assert low > 0  # alone it would count
    assert shown[0][-1] == "no difference seen"


def rows_of(report):
    page = tables(report).split("## Primary contrasts")[1].split("##")[0]
    return [line for line in page.split("\n") if " against " in line]


def test_an_interrupted_study_goes_on_from_the_runs_that_were_done(path, monkeypatch, tmp_path):
    copy = tmp_path / "f.safetensors"
    frozen.write_kept(copy, lambda file: file.write_bytes(path.read_bytes()))
    plan, grid = Plan(4, 1, 8, 2, 1, 1), Grid((0.1,), (0.1,))
    stopped = "the test stops here"

    def stop(*_):
        raise KeyboardInterrupt(stopped)

    with monkeypatch.context() as patched:
        patched.setattr(experiment, "equal_time", stop)
        with pytest.raises(KeyboardInterrupt, match=stopped):
            experiment.run_all(copy, plan, grid)
    kept = copy.with_suffix(".runs.jsonl")
    before = kept.read_text().count("\n")
    assert before > 0
    ran = []
    add = experiment.Journal.add
    monkeypatch.setattr(
        experiment.Journal, "add", lambda self, run, *rest: ran.append(run) or add(self, run, *rest)
    )
    results = experiment.run_all(copy, plan, grid)
    assert {run.setting.held for run in ran} == {"time", "rows"}
    assert len(results.runs) == len(ROWS) * 14
    assert not kept.exists()


def test_a_changed_file_of_finished_runs_is_refused(path, tmp_path):
    kept = tmp_path / "runs.jsonl"
    kept.write_text('{"key": "a"}\n')
    with pytest.raises(CheckpointError, match="by its SHA-256"):
        experiment.Journal(kept, {})


def test_too_few_languages_are_refused(package, options, capsys):
    assert command.main([*options, "--limit", "0", "--data_root", "nowhere"]) == 2
    assert "--data_root must name the folder" in capsys.readouterr().err


def test_languages_that_are_needed_are_named(tmp_path, options, capsys):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("A cat.\npt.utf8=Um gato.\n")
    assert command.main([*options, "--data_root", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "1 stamps have 1 languages to train on" in message
    assert "'sv'" in message
    assert "'pt'" not in message
