"""Which scanner made a series: told apart for a quota, without its serial number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicom_node.scanner import scanner_of, software_of

PRISMA = {"Manufacturer": "SIEMENS ", "ManufacturerModelName": "Prisma  Fit"}


def header(**values):
    ds = Dataset()
    for name, value in values.items():
        setattr(ds, name, value)
    return ds


def test_a_scanner_is_its_make_its_model_and_a_digest_of_its_serial_number():
    one = scanner_of(header(**PRISMA, DeviceSerialNumber="166001"))
    assert one.startswith("SIEMENS Prisma Fit #")
    assert "166001" not in one
    assert one == scanner_of(header(**PRISMA, DeviceSerialNumber="166001", StationName="MR2"))
    assert one != scanner_of(header(**PRISMA, DeviceSerialNumber="166002"))


def test_a_station_tells_scanners_apart_that_have_no_serial_number():
    one, other = (scanner_of(header(**PRISMA, StationName=name)) for name in ("MR1", "MR2"))
    assert one != other
    assert "MR1" not in one


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ""),
        ({"Manufacturer": None, "DeviceSerialNumber": ""}, ""),
        (PRISMA, "SIEMENS Prisma Fit"),
        ({"ManufacturerModelName": "Ingenia"}, "Ingenia"),
    ],
)
def test_what_is_missing_is_left_out(values, expected):
    assert scanner_of(header(**values)) == expected


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (None, ""),
        ("syngo  MR XA30 ", "syngo MR XA30"),
        (["27", "LX", "MR Software release:RX27.0"], "27 LX MR Software release:RX27.0"),
        (["", "2.1"], "2.1"),
        (["x" * 60, "yyyyyy"], "x" * 60 + " yyy"),
    ],
)
def test_software_is_what_was_sent_in_one_short_line(sent, expected):
    assert software_of(header(SoftwareVersions=sent)) == expected
    assert software_of(Dataset()) == ""


@given(st.text(st.characters(codec="utf-8", exclude_characters="\\\x00"), max_size=64))
def test_whatever_stands_there_it_is_one_short_line(text):
    ds = Dataset()
    ds.add_new("Manufacturer", "UT", text)
    ds.add_new("DeviceSerialNumber", "UT", text)
    found = scanner_of(ds)
    assert found.isprintable()
    assert len(found) <= 64 + len(" #") + 12
