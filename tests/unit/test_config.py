"""The configuration: what is written is what is meant, and what is wrong is named with its key."""

import re
import tomllib
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from pydantic_core import PydanticUndefined

from dicom_node import config
from dicom_node.config import NodeConfig, Section
from dicom_node.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
#: what the example shows by a value of its own, because the default shows nothing
SHOWN = {
    ("protocol", "mode"),
    ("protocol.match", "body_part"),
    ("protocol.match", "series_description"),
    ("protocol.match", "scanning_sequence"),
    ("protocol.match", "contrast_agent"),
    ("protocol.match", "orientation"),
    ("protocol.match", "slice_spacing_mm"),
}
PROTOCOL = '[[protocol]]\nname = "p"\n{}\n[protocol.match]\nmodality = "MR"\n'
ARCHIVE = '[[archive]]\nname = "d"\nae_title = "A"\nhost = "h"\nport = 4242\n{}\n'
DESTINATION = '[[destination]]\nname = "d"\nae_title = "A"\nhost = "h"\nport = 4242\n{}\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("config")


def read(folder, text):
    """The configuration of a file with this text."""
    path = folder / "config.toml"
    path.write_text(text, "utf-8")
    return config.load(path)


def fault(folder, text):
    """What is said of a file with this text, without its path."""
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{folder / 'config.toml'}: ") for line in lines), lines
    return [line.removeprefix(f"{folder / 'config.toml'}: ") for line in lines]


# --- the example --------------------------------------------------------------------------------


def section_of(annotation):
    """The section that a field holds, one or several of them; None for a value."""
    held = getattr(annotation, "__args__", (annotation,))[0]
    return held if isinstance(held, type) and issubclass(held, Section) else None


def fields(model=NodeConfig, table=""):
    """Every field of every section as (table, key, its definition)."""
    for key, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            yield table, key, field
        else:
            yield from fields(section, f"{table}.{key}".lstrip("."))


FIELDS = {(table, key): field for table, key, field in fields()}


def example_lines():
    """(table, key) -> the line with the key and the line above; keys that are commented out too."""
    found, table, above = {}, "", ""
    for line in EXAMPLE.read_text("utf-8").splitlines():
        if head := re.match(r"(?:# )?\[+([a-z_.]+)\]+", line):
            table = head[1]
        elif key := re.match(r"(?:# )?([a-z0-9_]+) = ", line):
            assert (table, key[1]) not in found, f"{table}.{key[1]} stands there twice"
            found[table, key[1]] = (line.removeprefix("# "), above)
        above = line
    return found


def test_every_field_stands_in_the_example_and_nothing_else_does():
    assert set(example_lines()) == set(FIELDS)
    assert len(FIELDS) > 60


@pytest.mark.parametrize("place", FIELDS, ids=".".join)
def test_every_field_of_the_example_has_a_comment(place):
    line, above = example_lines()[place]
    value_and_comment = re.sub(r'"[^"]*"', "", line)
    assert "# " in value_and_comment or above.startswith("# "), line


def test_the_example_loads_as_it_is(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(EXAMPLE.read_bytes())
    found = config.load(path)
    assert [p.name for p in found.protocol] == ["head-t1"]
    assert [d.name for d in found.destination] == ["pacs"]


def example_values():
    """(table, key) -> the value that stands there, of keys that are not commented out."""
    values = {}

    def collect(content, table):
        for key, value in content.items():
            first = value[0] if isinstance(value, list) and value else value
            if isinstance(first, dict):
                collect(first, f"{table}.{key}".lstrip("."))
            else:
                values[table, key] = value

    collect(tomllib.loads(EXAMPLE.read_text("utf-8")), "")
    return values


def test_the_example_says_what_the_defaults_are():
    found = NodeConfig.model_validate(tomllib.loads(EXAMPLE.read_text("utf-8")))
    parts = {"protocol": found.protocol[0], "protocol.match": found.protocol[0].match}
    parts["destination"] = found.destination[0]
    differing = set()
    for table, key in example_values():
        default = FIELDS[table, key].default
        if default is PydanticUndefined:
            continue
        section = parts.get(table) or getattr(found, table)
        if getattr(section, key) != default:
            differing.add((table, key))
    assert differing == SHOWN


def test_keys_that_the_example_leaves_out_have_no_default_or_none():
    left_out = set(FIELDS) - set(example_values())
    assert {FIELDS[place].default for place in left_out if not optional(place)} == {None}


def optional(place):
    """Whether it is of a section that the example shows as a comment."""
    return place[0] in {"archive", "peer", "web_destination"} or place[0].endswith(".tls")


def test_a_section_that_is_commented_out_shows_its_defaults():
    for place in filter(optional, FIELDS):
        of, written = FIELDS[place], tomllib.loads(example_lines()[place][0])[place[1]]
        read = TypeAdapter(Annotated[of.annotation, *of.metadata]) if of.metadata else None
        shown = read.validate_python(written) if read else written
        assert of.default in (None, PydanticUndefined, shown), place


def test_an_empty_file_is_the_defaults(folder):
    found = read(folder, "")
    assert found.protocol == ()
    assert found.receiver == config.Receiver()


# --- what is refused ----------------------------------------------------------------------------

REFUSED = [
    # text, the key that is named, what is said of it
    ('[node]\nae_title = ""', "node.ae_title", "1 to 16 ASCII characters, no backslash"),
    ('[node]\nae_title = "   "', "node.ae_title", "1 to 16 ASCII"),
    ('[node]\nae_title = "12345678901234567"', "node.ae_title", "1 to 16 ASCII"),
    ("[node]\nae_title = 'A\\B'", "node.ae_title", "no backslash"),
    ('[node]\nae_title = "ÄE"', "node.ae_title", "1 to 16 ASCII"),
    ('[node]\nae_title = "A\\u0007B"', "node.ae_title", "1 to 16 ASCII"),
    ('[storage]\nreserve = "2 GB"', "storage.reserve", 'like "20 GiB".*B, KiB, MiB, GiB, TiB'),
    ("[storage]\nreserve = 2000", "storage.reserve", 'like "20 GiB"'),
    ('[receiver]\nnetwork_timeout = "1 year"', "receiver.network_timeout", "ms, s, min, h, d"),
    ('[receiver]\nnetwork_timeout = "-1 s"', "receiver.network_timeout", 'like "60 s"'),
    ("[receiver]\nport = 65536", "receiver.port", "less than or equal to 65535"),
    ("[receiver]\nport = 0", "receiver.port", "greater than or equal to 1"),
    ('[receiver]\nport = "DICOM"', "receiver.port", "valid integer"),
    ("[receiver]\nmax_associations = 0", "receiver.max_associations", "greater than or equal to 1"),
    (
        '[receiver]\nallowed_calling_ae_titles = ["A", ""]',
        "receiver.allowed_calling_ae_titles.1",
        "1 to 16 ASCII",
    ),
    (
        '[completion]\nquiet = "2 h"\ncap = "1 h"',
        "completion",
        "completion.cap must not be shorter than completion.quiet",
    ),
    ('[encoder]\nweights = "file"', "encoder", "needs encoder.file, a safetensors file"),
    ('[encoder]\nweights = "zoo"', "encoder.weights", "'packaged', 'file' or 'hub'"),
    ('[encoder]\nsha256 = "abc"', "encoder.sha256", re.escape("^[0-9a-f]{64}$")),
    ('[encoder]\ndevice = "gpu"', "encoder.device", re.escape(r"cpu|cuda(:\d+)?")),
    ("[encoder]\naxes = []", "encoder", "at least one"),
    ('[encoder]\naxes = ["axial", "axial"]', "encoder", "each axis at most once"),
    ('[encoder]\naxes = ["top"]', "encoder.axes.0", "'axial', 'coronal' or 'sagittal'"),
    ("[encoder]\nscales = []", "encoder", "at least one size of token"),
    ("[encoder]\nscales = 2", "encoder.scales", "valid tuple"),
    ("[[encoder.scales]]\nupsampling = 3", "encoder.scales.0.upsampling", "1 or 2"),
    (
        "[encoder]\nscales = [{}, {slices_per_token = 15}]",
        "encoder.scales.1.slices_per_token",
        "less than or equal to 14",
    ),
    (
        "[encoder]\nscales = [{slices_per_token = 0}]",
        "encoder.scales.0.slices_per_token",
        "greater than or equal to 1",
    ),
    (
        "[encoder]\nscales = [{layers = [8, -1]}]",
        "encoder.scales.0.layers.1",
        "greater than or equal to 0",
    ),
    ("[encoder]\nprojection_dim = -1", "encoder.projection_dim", "greater than or equal to 0"),
    ("[scoring]\nnearest_share = 1.1", "scoring.nearest_share", "less than or equal to 1"),
    ("[scoring]\nnearest_share = nan", "scoring.nearest_share", "finite number"),
    ("[scoring]\nsmoothing_mm = 21", "scoring.smoothing_mm", "less than or equal to 20"),
    ("[scoring]\nworkers = 0", "scoring.workers", "greater than or equal to 1"),
    ("[scoring]\nthreads = -1", "scoring.threads", "greater than or equal to 0"),
    ("[scoring]\nmax_attempts = 0", "scoring.max_attempts", "greater than or equal to 1"),
    ("[results]\nsegmentation = 7", "results.segmentation", "valid boolean"),
    (
        '[results]\nsecondary_capture_slices = "some"',
        "results.secondary_capture_slices",
        "'all' or 'findings'",
    ),
    (
        "[results]\nseries_number_segmentation = 0",
        "results.series_number_segmentation",
        "greater than or equal to 1",
    ),
    ('[web]\nbind = "0.0.0.0"', "web.bind", "'127.0.0.1' or '::1'"),
    ('[log]\nlevel = "CHATTY"', "log.level", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
    ("node = 3", "node", "valid dictionary"),
    ('[[protocol]]\nname = "p"', "protocol.0.match", "required"),
    ('[[protocol]]\nname = "p"\n[protocol.match]', "protocol.0.match.modality", "required"),
    (
        '[[protocol]]\nname = "p"\nmatch = {modality = "US"}',
        "protocol.0.match.modality",
        "'MR' or 'CT'",
    ),
    (PROTOCOL.format("").replace('"p"', '"Head T1"'), "protocol.0.name", re.escape("[a-z0-9]")),
    (PROTOCOL.format('mode = "on"'), "protocol.0.mode", "'live' or 'shadow'"),
    (PROTOCOL.format("min_reference = 2"), "protocol.0.min_reference", "equal to 3"),
    (
        PROTOCOL.format("min_reference = 9\nmax_reference = 8"),
        "protocol.0",
        "max_reference must not be below min_reference",
    ),
    (PROTOCOL.format("spacing_mm = 0"), "protocol.0.spacing_mm", "greater than 0"),
    (PROTOCOL.format("spacing_mm = inf"), "protocol.0.spacing_mm", "finite number"),
    (PROTOCOL.format("coarse_cells = -1"), "protocol.0.coarse_cells", "equal to 0"),
    (PROTOCOL.format("window_cells = -2"), "protocol.0.window_cells", "equal to -1"),
    (PROTOCOL.format("window_cells = 11"), "protocol.0.window_cells", "equal to 10"),
    (
        PROTOCOL.format('calibration = "analogue"\nguard_shared = true'),
        "protocol.0",
        "neither guard_shared nor coarse_cells",
    ),
    (
        PROTOCOL.format('calibration = "analogue"\ncoarse_cells = 8'),
        "protocol.0",
        "neither guard_shared nor coarse_cells",
    ),
    (PROTOCOL.format("scales = []"), "protocol.0", "at least one size of token"),
    (
        PROTOCOL.format('calibration = "none"\nwindow_cells = 1'),
        "protocol.0",
        "window_cells needs subjects in one space",
    ),
    (PROTOCOL.format('template = "medoid"'), "protocol.0", 'go together: a NIfTI file .* or "med'),
    (PROTOCOL.format('alignment = "rigid"'), "protocol.0", "go together"),
    (
        PROTOCOL.format('intensity = "hounsfield"\nharmonise = true'),
        "protocol.0",
        'harmonise is of MR, intensity = "percentiles"',
    ),
    (PROTOCOL.format("rechoose_growth = 1.1"), "protocol.0", "1.2 or more .* or 0"),
    (PROTOCOL.format("rechoose_growth = -1"), "protocol.0.rechoose_growth", "equal to 0"),
    (PROTOCOL.format("extent_mm = [161, 196]"), "protocol.0.extent_mm.2", "required"),
    (PROTOCOL.format("extent_mm = [161, 0, 161]"), "protocol.0.extent_mm.1", "greater than 0"),
    (PROTOCOL.format("window_hu = [40, 0]"), "protocol.0", r"window_hu is \[centre, width\]"),
    (PROTOCOL.format('body_part = "head"'), "protocol.0.body_part", re.escape("[A-Z0-9 _]")),
    (PROTOCOL.format("finding_threshold = nan"), "protocol.0.finding_threshold", "finite"),
    (PROTOCOL.format("finding_min_volume_ml = -1"), "protocol.0.finding_min_volume_ml", "equal to"),
    (PROTOCOL.format("max_findings = 51"), "protocol.0.max_findings", "equal to 50"),
    (
        PROTOCOL.format("") + 'series_description = "t1("',
        "protocol.0.match.series_description",
        r"'t1\(' is no pattern: missing \)",
    ),
    (
        PROTOCOL.format("") + "slice_spacing_mm = [3, 1]",
        "protocol.0.match.slice_spacing_mm",
        r"a range is \[smallest, largest\]",
    ),
    (
        PROTOCOL.format("") + 'orientation = "oblique"',
        "protocol.0.match.orientation",
        "'axial', 'coronal' or 'sagittal'",
    ),
    (PROTOCOL.format("") * 2, "file", r"two \[\[protocol\]\] have one name: \['p', 'p'\]"),
    (DESTINATION.format("") * 2, "file", r"two \[\[destination\]\] have one name"),
    ('[[destination]]\nname = "d"', "destination.0.port", "required"),
    (ARCHIVE.format("") * 2, "file", r"two \[\[archive\]\] have one name"),
    (ARCHIVE.format('retrieve = "c-move"'), "archive.0.retrieve", "'move' or 'get'"),
    (DESTINATION.format('retry_first = "0 s"'), "destination.0.retry_first", "greater than 0"),
    (DESTINATION.format('give_up = "9999 d"'), "destination.0.give_up", "less than or equal to"),
]


@pytest.mark.parametrize(("text", "key", "remedy"), REFUSED)
def test_a_refusal_names_the_file_the_key_and_what_to_write(folder, text, key, remedy):
    said = [line.removeprefix(f"{key}: ") for line in fault(folder, text) if f"{key}: " in line]
    assert len(said) == 1, fault(folder, text)
    assert re.search(remedy, said[0]), said


def test_an_archive_may_have_the_name_of_a_destination_and_is_found_by_it(folder):
    found = read(folder, DESTINATION.format("") + ARCHIVE.format('retrieve = "get"'))
    assert found.archive_named("d").retrieve == "get"
    with pytest.raises(ConfigError, match=r"no \[\[archive\]\] is named 'e'; there are \['d'\]"):
        found.archive_named("e")


def test_every_fault_of_a_file_is_named_at_once(folder):
    said = fault(folder, '[node]\nae_title = ""\n[receiver]\nport = 0\nprt = 1\n')
    assert [line.split(": ")[0] for line in said] == [
        "node.ae_title",
        "receiver.port",
        "receiver.prt",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[reciever]", "reciever: unknown key; did you mean 'receiver'?"),
        ('[node]\nae_tile = "A"', "node.ae_tile: unknown key; did you mean 'ae_title'?"),
        (
            PROTOCOL.format("") + 'orientaton = "axial"',
            "protocol.0.match.orientaton: unknown key; did you mean 'orientation'?",
        ),
        (
            DESTINATION.format('retry_frist = "1 s"'),
            "destination.0.retry_frist: unknown key; did you mean 'retry_first'?",
        ),
        (
            "[encoder]\nscales = [{upsamling = 2}]",
            "encoder.scales.0.upsamling: unknown key; did you mean 'upsampling'?",
        ),
        ("[log]\nxyz = 1", "log.xyz: unknown key; known here: level"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(folder, text, said):
    assert fault(folder, text) == [said]


@pytest.mark.parametrize("place", FIELDS, ids=".".join)
def test_a_key_with_a_slip_of_the_pen_is_led_back_to_the_right_one(folder, place):
    table, key = place
    slip = key[:-1] + key[-1] * 2
    head = (
        f"[[{table}]]"
        if table in {"protocol", "destination", "web_destination", "archive", "peer"}
        else f"[{table}]"
    )
    if table in {"protocol.match", "destination.tls", "archive.tls", "peer.tls"}:
        head = f'[[{table.split(".")[0]}]]\nname = "p"\n[{table}]'
    said = [line for line in fault(folder, f"{head}\n{slip} = 1") if slip in line.split(": ")[0]]
    assert len(said) == 1
    assert said[0].endswith(f"unknown key; did you mean {key!r}?")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[node\n", "line 1"),
        (b'[node]\nae_title = "A"\nae_title = "B"\n', "line 3"),
        (b'[node]\nae_title = "\xff"\n', "utf-8"),
    ],
)
def test_a_file_that_is_no_toml_is_refused_with_the_place(tmp_path, content, said):
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        config.load(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_says_where_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match=r"copy config\.example\.toml there") as caught:
        config.load(tmp_path / "none.toml")
    assert str(tmp_path / "none.toml") in str(caught.value)


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        config.load(tmp_path)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    """Editors on Windows write one."""
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf" + EXAMPLE.read_bytes())
    assert config.load(path).node.ae_title == "DICOM_NODE"


# --- paths --------------------------------------------------------------------------------------


def test_relative_paths_are_relative_to_the_file_and_not_to_the_caller(tmp_path, monkeypatch):
    (tmp_path / "etc").mkdir()
    (tmp_path / "elsewhere").mkdir()
    text = '[node]\ndata_dir = "data"\n[encoder]\nweights = "file"\nfile = "w.safetensors"\n'
    (tmp_path / "etc" / "config.toml").write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = config.load(Path("../etc/config.toml"))
    assert found.node.data_dir == tmp_path / "etc" / "data"
    assert found.encoder.file == tmp_path / "etc" / "w.safetensors"


def test_the_batch_s_own_template_is_no_path_unless_it_is_written_as_one(folder):
    own, other, none = (
        read(folder, PROTOCOL.format(text)).protocol[0]
        for text in (
            'alignment = "rigid"\ntemplate = "medoid"\nharmonise = true',
            'alignment = "rigid"\ntemplate = "./medoid"',
            "",
        )
    )
    assert (own.template, own.own) == ("medoid", ("template", "histogram"))
    assert (other.template, other.own) == (folder / "medoid", ())
    assert (none.template, none.own) == (None, ())


def test_absolute_paths_stay_as_they_are(tmp_path):
    text = f'[node]\ndata_dir = "{tmp_path}/d"\n[encoder]\nfile = "{tmp_path}/w"\n'
    found = read(tmp_path, text)
    assert found.node.data_dir == tmp_path / "d"
    assert found.encoder.file == tmp_path / "w"


def test_the_default_data_folder_lies_beside_the_file(tmp_path):
    assert read(tmp_path, "").node.data_dir == tmp_path / "dicom-node-data"


# --- quantities ---------------------------------------------------------------------------------

SECONDS = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86400}
BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}
LONGEST_S = 3650 * 86400
numbers = st.one_of(
    st.integers(0, 10**9), st.floats(0, 1e6).map(lambda value: float(f"{value:.6f}"))
)
blank = st.sampled_from(["", " ", "  "])


def plain(number):
    """The number in digits, without an exponent."""
    return str(number) if isinstance(number, int) else f"{number:.6f}"


@settings(deadline=None)
@given(number=numbers, unit=st.sampled_from(sorted(SECONDS)), gap=blank, edge=blank)
def test_a_duration_is_its_number_times_its_unit_within_the_bounds(folder, number, unit, gap, edge):
    text = f'[completion]\ncap = "3650 d"\nquiet = "{edge}{plain(number)}{gap}{unit}{edge}"'
    expected = number * SECONDS[unit]
    if 0 < expected <= LONGEST_S:
        assert read(folder, text).completion.quiet == pytest.approx(expected)
    else:
        (said,) = fault(folder, text)
        assert said.startswith("completion.quiet: Input should be ")


@settings(deadline=None)
@given(number=numbers, unit=st.sampled_from(sorted(BYTES)), gap=blank)
def test_a_size_is_its_number_times_its_unit_in_whole_bytes(folder, number, unit, gap):
    found = read(folder, f'[storage]\nreserve = "{plain(number)}{gap}{unit}"').storage.reserve
    assert found == pytest.approx(number * BYTES[unit], abs=1)
    assert isinstance(found, int)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("0 s", False),
        ("0.0 d", False),
        ("1 ms", True),
        ("3650 d", True),
        ("87600 h", True),
        ("3651 d", False),
        ("87601 h", False),
        ("9" * 400 + " s", False),
    ],
)
def test_durations_at_their_bounds(folder, text, valid):
    body = DESTINATION.format(f'give_up = "{text}"')
    if valid:
        assert read(folder, body).destination[0].give_up > 0
    else:
        assert fault(folder, body)[0].startswith("destination.0.give_up: ")


@pytest.mark.parametrize("bound", [0.01, 0.5, 1.0, 1, 60, 1000])
def test_a_scanner_s_quota_is_a_share_or_a_count_as_it_is_written(folder, bound):
    found = read(folder, PROTOCOL.format(f"max_per_scanner = {bound}")).protocol[0].max_per_scanner
    assert (found, type(found)) == (bound, type(bound))


@pytest.mark.parametrize("bound", ["0", "0.0", "-1", "1.5", "20.0", "nan", "true", '"half"'])
def test_any_other_quota_is_refused_and_shown_how_to_write(folder, bound):
    (said,) = fault(folder, PROTOCOL.format(f"max_per_scanner = {bound}"))
    assert re.match(r"protocol.0.max_per_scanner: .* neither a share \(0.5; .*count \(20\)", said)


def test_no_reserve_at_all_is_a_choice_and_an_endless_one_is_not(folder):
    assert read(folder, '[storage]\nreserve = "0 B"').storage.reserve == 0
    (said,) = fault(folder, f'[storage]\nreserve = "{"9" * 400} TiB"')
    assert said.endswith("is too large")


@settings(deadline=None)
@given(
    text=st.one_of(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12),
        st.builds("{}{}".format, numbers.map(plain), st.sampled_from(["", "S", "sec", "GB", "m"])),
    ).filter(lambda text: not re.fullmatch(r"\s*\d+(\.\d+)?\s*(ms|s|min|h|d)\s*", text))
)
def test_anything_else_is_no_duration_and_the_units_are_named(folder, text):
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    (said,) = fault(folder, f'[completion]\nquiet = "{quoted}"')
    assert said.startswith("completion.quiet: ")
    assert said.endswith('is not a quantity like "60 s" (units: ms, s, min, h, d)')


# --- AE titles, names, digests ------------------------------------------------------------------


@settings(deadline=None)
@given(title=st.text(max_size=20))
def test_an_ae_title_is_what_ps3_5_allows(title):
    """PS3.5 6.2: 16 characters of the default repertoire, no backslash, no control characters."""
    core = title.strip()
    allowed = 0 < len(core) <= 16 and all(" " <= c <= "~" and c != "\\" for c in title)
    try:
        found = config.Node(ae_title=title).ae_title
    except ValueError:
        assert not allowed
    else:
        assert allowed
        assert found == core


def test_a_protocol_is_found_by_its_name(folder):
    found = read(folder, PROTOCOL.format("") + PROTOCOL.format("").replace('"p"', '"q"'))
    assert found.protocol_named("q").name == "q"
    with pytest.raises(ConfigError, match=r"no \[\[protocol\]\] is named 'r'"):
        found.protocol_named("r")


def test_a_configuration_cannot_be_changed(folder):
    found = read(folder, "")
    with pytest.raises(ValueError, match="frozen"):
        found.receiver.port = 1


parts = st.lists(
    st.one_of(st.text(), st.integers(), st.tuples(st.text(), st.integers())), max_size=4
)


@given(one=parts, other=parts)
def test_a_digest_is_twelve_hex_digits_and_the_same_for_equal_parts_alone(one, other):
    assert re.fullmatch("[0-9a-f]{12}", config.digest(*one))
    assert (config.digest(*one) == config.digest(*other)) == (one == other)
