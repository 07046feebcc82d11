"""Instances whose attributes hold anything: the inbox takes them, the worker refuses by name."""

import contextlib
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid

from dicom_node import volume
from dicom_node.errors import InstanceRejected, NodeError
from dicom_node.inbox import Inbox
from tests.make.instances import Geometry, encode, make_series, received

GEOMETRY = Geometry(rows=8, columns=8, n_slices=9)
#: what the request says too, and where the pixels are: without them nothing is filed
IDENTITY = {0x00080016, 0x00080018, 0x0020000D, 0x0020000E}
PIXELS = {0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280100, 0x7FE00010}
#: attributes that the node reads, and that a sender may get wrong
READ = (
    *(0x00080005, 0x00080008, 0x00080020, 0x00080030, 0x00080060, 0x00080070, 0x00081030),
    *(0x00100010, 0x00100020, 0x00100030, 0x00100040, 0x00101010, 0x00180015, 0x00180050),
    *(0x00180080, 0x00180081, 0x00180087, 0x00181210, 0x00200011, 0x00200013, 0x00200032),
    *(0x00200037, 0x00200052, 0x00201002, 0x00201041, 0x00280006, 0x00280030, 0x00280101),
    *(0x00280102, 0x00280103, 0x00280120, 0x00281050, 0x00281052, 0x00281053, 0x00283000),
    *(0x00082218, 0x00089215, 0x52009229, 0x52009230, 0x00409096, 0x00091001, 0x00291010),
)
SHORT = [b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN"]
SHORT += [b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"]
LONG = [b"OB", b"OW", b"OF", b"OD", b"UN", b"UT", b"UC", b"UR"]


def element(tag, vr, value):
    """One element, Explicit VR Little Endian, padded to an even length."""
    value += b" " if len(value) % 2 else b""
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    if vr in SHORT:
        return head + struct.pack("<H", len(value)) + value
    return head + struct.pack("<HL", 0, len(value)) + value


def sequence(tag, items):
    """A sequence of defined length."""
    content = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item for item in items)
    return element(tag, b"SQ", content)


values = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b" ", b"\\", b"\\\\", b"nan", b"1e999", b"-1", b"99999999999", b"^"]),
    st.text("0123456789.\\-+eE ", max_size=30).map(str.encode),
)
plain = st.tuples(st.sampled_from(READ), st.sampled_from([*SHORT, *LONG]), values).map(
    lambda made: (made[0], element(*made))
)
elements = st.recursive(
    plain,
    lambda inner: st.tuples(
        st.sampled_from(READ), st.lists(st.lists(inner, max_size=3), max_size=3)
    ).map(
        lambda made: (
            made[0],
            sequence(made[0], [b"".join(e for _, e in sorted(item)) for item in made[1]]),
        )
    ),
    max_leaves=6,
)


def parts(ds):
    """Tag -> encoded element of a whole instance."""
    data, found, at = encode(ds), {}, 0
    while at < len(data):
        group, number, vr = struct.unpack_from("<HH2s", data, at)
        if vr in SHORT:
            size = 8 + struct.unpack_from("<H", data, at + 6)[0]
        else:
            size = 12 + struct.unpack_from("<L", data, at + 8)[0]
        found[group << 16 | number] = data[at : at + size]
        at += size
    return found


SERIES = [(ds, parts(ds)) for ds in make_series("MR", GEOMETRY)]


@pytest.mark.filterwarnings("ignore")  # of values: the node's libraries warn of each
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changed=st.lists(elements, min_size=1, max_size=5),
    removed=st.sets(st.sampled_from(READ), max_size=3),
    everywhere=st.booleans(),
)
def test_whatever_attributes_hold_an_instance_is_filed_and_its_series_built_or_refused(
    changed, removed, everywhere
):
    with tempfile.TemporaryDirectory() as folder:
        inbox, files = Inbox(Path(folder), 0), []
        for number, (ds, whole) in enumerate(SERIES):
            made = dict(whole)
            if everywhere or number == 0:
                made = {tag: e for tag, e in made.items() if tag not in removed} | {
                    tag: e for tag, e in changed if tag not in IDENTITY | PIXELS
                }
            data = b"".join(made[tag] for tag in sorted(made))
            with contextlib.suppress(InstanceRejected):  # a character set that is a sequence
                filed = inbox.file_instance(received(ds, uid.ExplicitVRLittleEndian, data))
                files.append(Path(folder) / filed.file_name)
        assert len(files) == 9 or everywhere or len(files) == 8
        with contextlib.suppress(NodeError):  # any other error is a fault
            assert volume.build(files).voxels.shape[1:] == (8, 8)
