"""The XML reader against what a stranger could write."""

from __future__ import annotations

import time

import pytest

from scenekd.xml_files import read_xml


def _write(tmp_path, text: str, encoding: str = "utf-8"):
    path = tmp_path / "a.xml"
    path.write_bytes(text.encode(encoding))
    return path


def test_reads_annotations(tmp_path):
    """Text, nesting and other encodings; comments are no elements."""
    text = "<a><!-- no --><size><width> 3 </width></size><object/><object/></a>"
    for encoding, head in (("utf-8", ""), ("utf-16", '<?xml version="1.0" encoding="utf-16"?>')):
        root = read_xml(_write(tmp_path, head + text, encoding))
        assert root.findtext("size/width") == " 3 "
        assert len(list(root.iterfind("object"))) == 2
        assert [child.tag for child in root] == ["size", "object", "object"]


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><a/>',
        "<!DOCTYPE a><a/>",
    ],
)
def test_a_document_type_is_refused(tmp_path, text):
    """External entities and external types are neither read nor expanded."""
    with pytest.raises(ValueError, match="document type|no well-formed XML"):
        read_xml(_write(tmp_path, text))


def test_expansion_is_refused_quickly(tmp_path):
    """Ten to the ninth copies through nested entities, in an attribute and in the text."""
    entities = '<!ENTITY e0 "lol">' + "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10))
    start = time.perf_counter()
    for body in ("<a>&e9;</a>", '<a b="&e9;"/>'):
        with pytest.raises(ValueError, match="document type|no well-formed XML"):
            read_xml(_write(tmp_path, f"<!DOCTYPE a [{entities}]>{body}"))
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("text", ["", "no xml", "<a><b></a>", "<a>" * 100_000])
def test_broken_files_are_one_value_error(tmp_path, text):
    """Empty, unbalanced and absurdly deep files."""
    with pytest.raises(ValueError, match="no well-formed XML"):
        read_xml(_write(tmp_path, text))


def test_a_refused_file_leaves_nothing_for_the_next(tmp_path):
    """One parser reads all files: neither an error nor a document type of one file reaches the next."""
    for bad in ("<a><b></a>", '<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>'):
        with pytest.raises(ValueError):
            read_xml(_write(tmp_path, bad))
        assert read_xml(_write(tmp_path, "<a><b>1</b></a>")).findtext("b") == "1"
        with pytest.raises(ValueError, match="no well-formed XML"):
            read_xml(_write(tmp_path, "<a>&x;</a>"))
