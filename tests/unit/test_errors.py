"""The exception tree: every leaf has a message, a disposition and its place in the picture."""

import ast
import re
from pathlib import Path

import pytest

import dicom_node
from dicom_node import errors
from dicom_node.errors import Disposition, InstanceRejected, NodeError, StoreStatus

PACKAGE = Path(dicom_node.__file__).parent


def below(kind):
    """All classes under `kind`."""
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


ALL = [NodeError, *below(NodeError)]
LEAVES = [kind for kind in ALL if not kind.__subclasses__()]


def tree():
    """Class name -> (name of its base, what stands behind it), from the module's docstring."""
    found, parents, last = {}, {}, 0
    for line in errors.__doc__.splitlines():
        head = re.match(r"    ([│├└─ ]*)([A-Z]\w+)((?: \(\.\w+[^)]*\))?) *(.*)", line)
        more = re.match(r"    [│ ]+ {8,}([A-Z]\w+.*)", line)
        if more and len(line) - len(line.lstrip("│ ")) > 20:
            _take_leaves(found, more[1], parents[last])
        elif head:
            last = len(head[1]) // 4
            parents[last] = head[2]
            found[head[2]] = (parents.get(last - 1), head[4])
            _take_leaves(found, head[4], head[2])
    return found


def _take_leaves(found, text, base):
    """Leaves are listed behind their base, in CamelCase and separated by commas."""
    for name in re.findall(r"\b((?:[A-Z][a-z]*){2,}[a-z]+|\w+SOPClass)\b", text):
        found[name] = (base, "")


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = {name: base for name, (base, _) in tree().items()}
    assert drawn == {
        kind.__name__: None if kind is NodeError else kind.__base__.__name__ for kind in ALL
    }


def test_the_dispositions_in_the_docstring_are_the_dispositions():
    named = {
        name: word
        for name, (_, text) in tree().items()
        for word in re.findall(r"\b(HALT|REJECT|WAIT|RETRY)\b", text)
    }
    assert len(named) >= 9
    for kind in ALL:
        expected = next(named[c.__name__] for c in kind.__mro__ if c.__name__ in named)
        assert kind.disposition is Disposition[expected], kind


def test_no_exception_of_ours_is_defined_elsewhere():
    """A class that nobody sees here has no disposition that anybody checks."""
    names = {kind.__name__ for kind in ALL}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and path.name != "errors.py":
                bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
                assert not bases & names, f"{path}: {node.name}"


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_the_first_line_of_the_docstring_is_the_default_message(kind):
    first = (kind.__dict__["__doc__"] or "").strip().splitlines()[0]
    assert re.fullmatch(r"[A-Z].{10,}\.", first)
    assert str(kind()) == first
    assert str(kind("what went wrong")) == "what went wrong"


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_each_leaf_has_a_disposition_and_is_caught_as_ours(kind):
    assert isinstance(kind.disposition, Disposition)
    with pytest.raises(NodeError):
        raise kind


def test_refused_instances_answer_with_the_statuses_of_the_standard():
    """PS3.4 Table B.2-1 and, for the SOP Class, PS3.7 9.1.1.1.9."""
    answers = {kind.__name__: kind().status for kind in below(InstanceRejected)}
    assert answers == {
        "UnsupportedSOPClass": 0x0122,
        "DataSetMismatch": 0xA900,
        "UnreadableDataSet": 0xC000,
    }
    assert errors.InboxFull().status == 0xA700
    assert {*answers.values(), 0xA700, 0x0000} == {int(status) for status in StoreStatus}
    assert all(isinstance(kind.status, StoreStatus) for kind in below(InstanceRejected))


def test_identifiers_are_attributes_of_the_error():
    error = errors.StoreFailed("refused", destination="pacs", status=0xA700)
    assert (str(error), error.destination, error.status) == ("refused", "pacs", 0xA700)
    assert errors.StoreFailed().status == 0
