"""The report of an evaluation: its page is whole and escaped, its pictures show something."""

import csv
import io
import math
import re
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dicom_node.errors import ConfigError
from dicom_node.evaluate import report, report_measures, report_plots, report_summary
from dicom_node.evaluate.report_measures import EXPERIMENTS
from tests.make import measures as make

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Elements with their attributes and text; whether every element that opens is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.broken = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        if not self.open or self.elements[self.open.pop()][0] != tag:
            self.broken.append(tag)

    def handle_data(self, data):
        for place in self.open:
            self.elements[place][2].append(data)

    def all(self, tag):
        return [(attrs, "".join(text)) for name, attrs, text in self.elements if name == tag]

    def section(self, letter):
        texts = [text for attrs, text in self.all("section") if attrs["aria-labelledby"] == letter]
        assert len(texts) == 1
        return " ".join(texts[0].split())


def written(folder, lines, about=None):
    report.write(make.write(folder, lines, about))
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def precision(lines):
    """The rows of one metric: a picture of one panel is drawn in a sixth of the time."""
    return [line for line in lines if line["metric"] == "voxel_ap"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, written(folder, make.everything(), make.summary())


def experiment(letter):
    return next(one for one in EXPERIMENTS if one.letter == letter)


# -- the page -----------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_needs_no_other_file(whole):
    folder, page = whole
    assert not page.broken
    assert not page.open
    assert page.all("html")[0][0]["lang"] == "en"
    assert not page.all("script") + page.all("link") + page.all("iframe")
    sources = [attrs["src"] for attrs, _ in page.all("img")]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    targets = [attrs["href"] for attrs, _ in page.all("a")]
    ids = {attrs["id"] for _, attrs, _ in page.elements if "id" in attrs}
    assert {target[1:] for target in targets} <= ids
    text = (folder / "report.html").read_text()
    assert "RESEARCH USE ONLY - NOT FOR DIAGNOSIS" in text
    assert not re.search(r"https?://|url\(|@import", text)


def test_each_experiment_has_a_section_with_pictures_tables_and_what_was_held_fixed(whole):
    _, page = whole
    assert len(page.all("img")) == 2 * len(EXPERIMENTS)
    assert len(page.all("table")) == 2 * len(EXPERIMENTS)
    for one in EXPERIMENTS:
        text = page.section(one.letter)
        assert one.title in text
        assert f"Varied: {one.varied}" in text
        assert f"Held fixed: {one.fixed}" in text
    assert "test subjects; 20 reference subjects." in page.section("a")
    assert "20 reference subjects; 20 % of them abnormal." in page.section("e")


def test_pictures_have_words_and_cells_have_heads(whole):
    _, page = whole
    alts = [attrs["alt"] for attrs, _ in page.all("img")]
    assert len(set(alts)) == len(alts)
    assert all(len(alt) > 40 for alt in alts)
    scopes = [attrs.get("scope") for attrs, _ in page.all("th")]
    assert set(scopes) == {"row", "col"}
    assert len(page.all("caption")) == len(page.all("table"))


def test_the_page_holds_the_pictures_that_lie_beside_it(whole):
    folder, page = whole
    shown = {b64decode(attrs["src"].partition(",")[2]) for attrs, _ in page.all("img")}
    assert shown == {path.read_bytes() for path in (folder / "plots").iterdir()}


def test_values_stand_in_the_tables_with_their_intervals(tmp_path):
    lines = [make.row("e", "this method", "voxel_ap", 0.12345, 0.05, 0.31415)]
    page = written(tmp_path, lines)
    cells = [text for attrs, text in page.all("td") if attrs["class"] == "number"]
    assert cells == ["0.1230.05 to 0.31"]


def test_numbers_of_subjects_stand_in_the_caption_or_where_they_differ_in_a_column(tmp_path):
    lines = [
        make.row("c", f"{n} subjects", "voxel_ap", 0.5, n_reference=n, n_test=9) for n in (5, 10)
    ]
    page = written(tmp_path, lines)
    assert "Of them abnormal: 20 %. Test subjects: 9." in page.all("caption")[0][1]
    heads = [text for attrs, text in page.all("th") if attrs["scope"] == "col"]
    assert heads == ["Setting", "Reference subjects", "Voxel average precision"]
    assert [text for _, text in page.all("td")] == ["5", "0.500", "10", "0.500"]


def test_names_are_escaped_on_the_page_and_are_no_formulas_in_pictures(tmp_path):
    name = "<script>alert('x')</script> & $\\frac{1}$ \"q\""
    lines = [
        make.row(letter, name, "voxel_ap", 0.5, strength="<b>s</b>", share_abnormal=0.1)
        for letter in "abcde"
    ]
    page = written(tmp_path, lines, make.summary(encoder="<img src=x>", left_out=[f"b, {name}: y"]))
    assert not page.all("script") + page.all("b")
    assert len(page.all("img")) == 5
    assert page.section("e").count(name) >= 1
    assert f"{name}: y" in page.section("b")
    assert "<img src=x>" in page.section("what")


# -- what is missing ----------------------------------------------------------------------------


def test_experiments_without_figures_are_named_as_missing_with_their_reason(tmp_path):
    about = make.summary(
        left_out={"b": "no second site", "c": "too few subjects"}, options={"experiments": "bce"}
    )
    page = written(tmp_path, make.peers(), about)
    assert "This experiment is missing: it was not asked for (--exp" in page.section("a")
    assert "This experiment is missing: no second site" in page.section("b")
    assert "This experiment is missing: too few subjects" in page.section("c")
    assert "missing" not in page.section("e")
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "e_peers.png",
        "e_lesion_sizes.png",
    }


def test_without_a_summary_the_page_says_so_and_names_no_reason(tmp_path):
    page = written(tmp_path, precision(make.peers()))
    assert "summary.json is missing" in page.section("what")
    assert "no reason is given" in page.section("a")


def test_settings_that_were_left_out_are_named_in_their_experiment(tmp_path):
    left_out = ["a, 50% abnormal: too few", "a 40% abnormal: it failed", "weather: it rained"]
    page = written(tmp_path, precision(make.shares()), make.summary(left_out=left_out))
    items = [text for _, text in page.all("li")]
    assert "50% abnormal: too few" in items
    assert "40% abnormal: it failed" in items
    assert "Left out: weather: it rained" in page.section("what")


def test_a_file_with_a_head_alone_gives_a_page_where_all_is_missing(tmp_path):
    page = written(tmp_path, [])
    assert "0 of 5 experiments" in page.all("footer")[0][1]
    assert not page.all("img")


def test_single_draws_alone_are_not_reported(tmp_path):
    page = written(tmp_path, [make.row("a", "10%", "voxel_ap", 0.5, draw="1")])
    assert "This experiment is missing" in page.section("a")


def test_files_of_an_earlier_report_do_not_outlive_their_experiment(tmp_path):
    written(tmp_path, precision(make.sizes() + make.peers()))
    assert len(list(tmp_path.glob("*/c_*"))) == 2
    written(tmp_path, precision(make.peers()))
    assert not list(tmp_path.glob("*/c_*"))
    assert len(list(tmp_path.glob("*/e_*"))) == 2


def test_a_metric_that_cannot_be_told_is_named_and_neither_drawn_nor_given_a_column(tmp_path):
    lines = make.rows("e", "this method") + make.rows("e", "voxel z-score", 0.3)
    gone = [
        line | {"value": "nan", "low": "", "high": ""} if "auroc" in line["metric"] else line
        for line in lines
    ]
    page = written(tmp_path, gone)
    assert "not drawn: Voxel AUROC, Subject AUROC." in page.section("e")
    assert "Subject AUROC" not in page.all("img")[0][0]["alt"]
    assert not [text for _, text in page.all("th") if "AUROC" in text]


@pytest.mark.parametrize("letter", "abcde")
def test_values_without_interval_and_settings_without_value_are_drawn_and_dashed(tmp_path, letter):
    lines = [
        make.row(letter, "10% abnormal", "voxel_ap", 0.5, share_abnormal=0.1),
        make.row(letter, "20% abnormal", "voxel_ap", "", share_abnormal=0.2),
        make.row(letter, "none", "voxel_auroc", 0.4, 0.3, 0.5, share_abnormal=""),
        make.row(letter, "30% abnormal", "dice_oracle", "", share_abnormal=0.3),
    ]
    page = written(tmp_path, lines)
    cells = [text for _, text in page.all("td")]
    assert "0.500" in cells
    assert "0.4000.30 to 0.50" in cells
    assert cells.count("-") >= 4
    assert len(page.all("img")) == 1


# -- sentences ----------------------------------------------------------------------------------


def test_sentences_say_where_this_method_stands_also_when_others_are_better(tmp_path):
    lines = make.peers() + make.parts() + make.sizes() + make.acquisitions()
    page = written(tmp_path, precision(lines))
    assert (
        "Voxel average precision: this method 0.710 (0.63 to 0.77), place 2 of 5; "
        "first is MuSc-style, slice-wise, 0.750 (0.67 to 0.81)." in page.section("e")
    )
    # those in a batch with other lesions are not counted: twelve settings, ten alike
    assert "whole method 0.710 (0.63 to 0.77), place 3 of 10 with batches" in page.section("d")
    assert "0.530 (0.45 to 0.59) with 5 reference subjects, 0.692" in page.section("c")
    assert (
        "at its worst 0.510 (0.43 to 0.57) (slice thickness, the test subjects); "
        "with nothing changed 0.710" in page.section("b")
    )


def test_fewer_false_findings_are_the_better_ones(tmp_path):
    key = "false_findings_per_normal"
    lines = [make.row("d", name, key, n) for n, name in enumerate(("x", "whole method", "y"))]
    lines += [make.row("b", name, key, n) for n, name in enumerate(("p", "none", "q"))]
    page = written(tmp_path, lines)
    assert "whole method 1.00, place 2 of 3; first is x, 0.00." in page.section("d")
    assert "at its worst 2.00 (q); with nothing changed 1.00." in page.section("b")


def test_the_first_of_all_is_compared_with_the_next(tmp_path):
    lines = [make.row("e", "this method", "voxel_ap", 0.9), make.row("e", "z", "voxel_ap", 0.1)]
    assert "place 1 of 2; next is z, 0.100." in written(tmp_path, lines).section("e")


# -- pictures -----------------------------------------------------------------------------------


def pixels(png):
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"), dtype=int)


def test_pictures_open_and_are_neither_blank_nor_all_ink(whole):
    folder, _ = whole
    for path in (folder / "plots").iterdir():
        found = pixels(path.read_bytes())
        assert found.shape[1] == 1200
        ink = (found.sum(axis=2) < 700).mean()
        assert 0.01 < ink < 0.5, path.name
        # nothing is cut off: the outermost pixels are paper
        assert (found[0] == 255).all()
        assert (found[:, -1] == 255).all()


def colored(png, color):
    """How many pixels are near an #rrggbb colour."""
    wanted = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)])
    return int((np.abs(pixels(png) - wanted).max(axis=2) < 12).sum())


def drawn(lines, letter, folder):
    results = report_measures.read(make.write(folder, lines) / "measures.csv")[letter]
    return report_plots.pictures(experiment(letter), results, {})[0].png


def test_this_method_alone_is_marked_in_its_colour(tmp_path):
    lines = [make.row("e", name, "voxel_ap", 0.4, 0.3, 0.5) for name in ("this method", "z", "y")]
    others = [line for line in lines if line["setting"] != "this method"]
    marked, plain = drawn(lines, "e", tmp_path), drawn(others, "e", tmp_path)
    assert colored(marked, report_plots.RED) > 100
    assert colored(plain, report_plots.RED) == 0
    assert colored(marked, report_plots.BLUE) == pytest.approx(
        colored(plain, report_plots.BLUE), rel=0.1
    )


def test_bars_are_as_long_as_their_values(tmp_path):
    short, long = (
        drawn([make.row("b", "noise", "voxel_ap", value)], "b", tmp_path) for value in (0.2, 0.8)
    )
    shade = report_plots._SHADES[0]
    assert colored(long, shade) == pytest.approx(4 * colored(short, shade), rel=0.05)


def test_an_interval_makes_a_band(tmp_path):
    with_band, without = (
        drawn(
            [
                make.row("c", f"{n} subjects", "voxel_ap", 0.5, *ends, n_reference=n)
                for n in (5, 50)
            ],
            *("c", tmp_path),
        )
        for ends in ((0.2, 0.8), ("", ""))
    )
    assert (pixels(with_band) != pixels(without)).any(axis=2).mean() > 0.1


def test_the_same_figures_give_the_same_files(tmp_path, whole):
    folder, _ = whole
    written(tmp_path, make.peers(), make.summary())
    for name in ("plots/e_peers.png", "tables/e_peers.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_curves_are_told_apart_by_what_follows_their_number(tmp_path):
    lines = [*make.shares(), make.row("a", "second", "voxel_ap", 0.5, share_abnormal="")]
    results = report_measures.read(make.write(tmp_path, lines) / "measures.csv")["a"]
    found = report_plots.series(results, by_size=False)
    assert set(found) == {"", "other guard"}
    assert [x for x, _ in found[""]] == pytest.approx([0, 10, 20, 30, 40, 50])


# -- tables -------------------------------------------------------------------------------------


def test_tables_hold_every_pooled_figure_once(whole):
    folder, _ = whole
    found = {}
    for one in EXPERIMENTS:
        with (folder / "tables" / f"{one.letter}_{one.slug}.csv").open(newline="") as stream:
            for fields in csv.DictReader(stream):
                for metric in make.USUAL:
                    if fields[metric]:
                        key = one.letter, fields["setting"], metric
                        assert key not in found
                        found[key] = [fields[metric + end] for end in ("", " low", " high")]
    wanted = {
        (line["experiment"], line["setting"], line["metric"]): [
            f"{line[end]:.6g}" for end in ("value", "low", "high")
        ]
        for line in make.everything()
        if line["draw"] == "all"
    }
    assert found == wanted


# -- measures.csv -------------------------------------------------------------------------------


def test_rows_are_read_by_either_name_of_a_metric(tmp_path):
    lines = [
        make.row("a", "10%", "sensitivity@1fp", 0.5),
        make.row("a", "10%", "sensitivity@1fp:<0.1 ml", 0.25, 0.1, 0.4),
        make.row("a", "10%", "false_per_normal", 3),
    ]
    results = report_measures.read(make.write(tmp_path, lines) / "measures.csv")["a"]
    (condition,) = results.conditions
    assert results.sizes == ("<0.1 ml",)
    found = results.measure(condition, "lesion_sensitivity <0.1 ml")
    assert (found.value, found.low, found.high) == (0.25, 0.1, 0.4)
    assert [m.key for m in results.known_metrics()] == [
        "lesion_sensitivity",
        "false_findings_per_normal",
    ]


def test_size_classes_come_small_to_large_whatever_their_order_in_the_file(tmp_path):
    lines = [make.row("a", "x", f"lesion_sensitivity {name}", 0.5) for name in make.SIZES[::-1]]
    results = report_measures.read(make.write(tmp_path, lines) / "measures.csv")["a"]
    assert results.sizes == make.SIZES


def test_a_metric_of_another_name_is_kept_for_the_tables_and_may_be_infinite(tmp_path):
    page = written(tmp_path, [make.row("a", "x", "threshold", "inf")])
    assert not page.all("img")
    assert ",inf,," in (tmp_path / "tables" / "a_share_abnormal.csv").read_text()


def test_ranks_put_the_best_first_and_the_unknown_last(tmp_path):
    values = {"x": 0.2, "y": math.nan, "z": 0.9}
    lines = [make.row("d", name, "voxel_ap", value) for name, value in values.items()]
    results = report_measures.read(make.write(tmp_path, lines) / "measures.csv")["d"]
    (metric,) = results.known_metrics()
    assert [condition.setting for condition in results.ranked(metric)] == ["z", "x", "y"]


def test_a_batch_unlike_the_first_is_named_where_its_setting_does_not_say_so(tmp_path):
    lines = [
        make.row("d", "whole method", "voxel_ap", 0.5),
        make.row("d", "guard on", "voxel_ap", 0.5, share_abnormal=0.5),
        make.row("d", "small", "voxel_ap", 0.5, n_reference=7),
        make.row("d", "noise", "voxel_ap", 0.5, strength=0.25),
    ]
    results = report_measures.read(make.write(tmp_path, lines) / "measures.csv")["d"]
    assert [results.name(condition) for condition in results.conditions] == [
        *("whole method", "guard on (50 % abnormal)", "small (batch of 7)", "noise 0.25")
    ]


def test_measures_that_are_not_there_are_asked_for(tmp_path):
    with pytest.raises(ConfigError, match=r"measures\.csv does not exist; run `dicom-node eval"):
        report.write(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "wanted"),
    [
        ("experiment", "f", "one of a, b, c, d, e"),
        ("setting", " ", "a name"),
        ("draw", "", "a name"),
        ("metric", "", "a name"),
        ("value", "high", "a number"),
        ("value", "1.2", "a number from 0 to 1"),
        ("value", "inf", "a number from 0 to 1"),
        ("low", "", "given, and the other end is"),
        ("high", "", "given, and the other end is"),
        ("high", "0.1", "at least low, which is 0.3"),
        ("n_test", "", "a whole number"),
        ("n_test", "2.5", "a whole number"),
        ("n_test", "-2", "a number from 0 up"),
        ("n_reference", "many", "a number"),
        ("share_abnormal", "30", "a number from 0 to 1"),
    ],
)
def test_a_malformed_field_is_named_with_file_row_and_column(tmp_path, column, value, wanted):
    good = make.row("a", "10%", "voxel_ap", 0.4, 0.3, 0.5)
    bad = make.row("a", "20%", "voxel_ap", 0.4, 0.3, 0.5) | {column: value}
    make.write(tmp_path, [good, bad])
    with pytest.raises(ConfigError) as caught:
        report.write(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'measures.csv'}, row 3, column {column}: ")
    assert f"is not {wanted}" in text
    assert not (tmp_path / "report.html").exists()


def test_a_missing_column_and_a_short_row_are_named(tmp_path):
    path = tmp_path / "measures.csv"
    path.write_text("experiment,setting,strength\na,b,c\n")
    with pytest.raises(ConfigError, match=r"row 1: no column n_reference, share_abnormal, draw"):
        report_measures.read(path)
    path.write_text(",".join(make.HEAD) + "\na,10%,,20\n")
    with pytest.raises(ConfigError, match=r"row 2, column metric: None is not a name"):
        report_measures.read(path)
    path.write_text("")
    with pytest.raises(ConfigError, match=r"row 1: no column experiment"):
        report_measures.read(path)


def test_a_figure_that_comes_twice_is_refused(tmp_path):
    make.write(tmp_path, [make.row("a", "10%", "voxel_ap", value) for value in (0.4, 0.5)])
    with pytest.raises(ConfigError, match=r"row 3, column metric: 'voxel_ap' is not new"):
        report.write(tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "measures.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match=r"measures\.csv cannot be read as CSV"):
        report.write(tmp_path)


# -- summary.json -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[1]", "{", "3"])
def test_a_summary_that_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ConfigError, match=r"summary\.json (cannot be read|holds no JSON object)"):
        report_summary.read(tmp_path / "summary.json")


def test_lesions_are_counted_over_the_settings_of_an_experiment():
    settings = [
        {"experiment": "a", "n_lesions": {"< 0.1 ml": 3}},
        {"experiment": "a", "n_lesions": {"< 0.1 ml": 5, "> 20 ml": 1}},
        {"experiment": "b", "n_lesions": {"< 0.1 ml": 9}},
        {"experiment": "b"},
    ]
    summary = report_summary.Summary({"settings": settings})
    assert summary.n_lesions("a") == {"< 0.1 ml": "3 to 5", "> 20 ml": "1"}
    assert summary.n_lesions("b") == {"< 0.1 ml": "9"}
    assert report_summary.Summary({}).n_lesions("a") == {}
