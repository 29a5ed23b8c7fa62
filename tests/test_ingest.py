"""Documents: read strictly, extracted by a process that may fail, found in folders."""

import io
import os
import zipfile
from pathlib import Path

import pytest

from octavo.errors import InputError, MissingExtraError
from octavo.ingest import child as ingest_child
from octavo.ingest import find_files, read_document, read_stream

SENTENCE = "The ferry left before dawn and nobody signed for the lamp oil in the cellar."


def pdf(pages: list[str], *, encrypt: bool = False) -> bytes:
    """Return a PDF with a line of text a page, written out by hand."""
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 40 700 Td ({text}) Tj ET" if text else ""
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents {len(objects)} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    count = len(objects) + 1
    end = f"trailer << /Size {count} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + f"xref\n0 {count}\n0000000000 65535 f \n{table}{end}".encode()


def docx(text: str, extra: bytes = b"") -> bytes:
    """Return a Word document of one paragraph."""
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    package = "http://schemas.openxmlformats.org/package/2006"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    files = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{main}"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
        f'Type="{office}" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{word}"><w:body><w:p><w:r><w:t>{text}</w:t>'
        "</w:r></w:p></w:body></w:document>",
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        if extra:
            archive.writestr("word/media/bomb.bin", extra)
    return out.getvalue()


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", b"\xef\xbb\xbf"),
        ("utf-16-le", b"\xff\xfe"),
        ("utf-16-be", b"\xfe\xff"),
        ("utf-32-le", b"\xff\xfe\0\0"),
    ],
)
def test_text_is_read_by_its_mark_or_strictly_as_utf_8(
    tmp_path: Path, encoding: str, mark: bytes
) -> None:
    text = "Grüße, 東京\r\n\n"
    path = write(tmp_path, "a.txt", mark + text.encode(encoding))
    assert read_document(path).text == text


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", "Grüße".encode("latin-1"), "not UTF-8"),
        ("a.txt", b"ab\0cd", "binary"),
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n\t", "empty"),
        ("a.pdf", b"%PDF-1.4 nothing", "PDF"),
        ("a.pdf", pdf(["", ""]), "scanned"),
        ("a.docx", b"PK no zip", "Word"),
        ("a.html", b"<html><body></body></html>", "no text"),
    ],
)
def test_what_holds_no_text_is_one_clear_error(
    tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_document(write(tmp_path, name, data))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for name in ("a.txt", "a.pdf"):
        with pytest.raises(InputError, match="no file"):
            read_document(tmp_path / name)
    with pytest.raises(InputError, match="folder"):
        read_document(tmp_path)


def test_a_pdf_is_text_with_its_pages_apart(tmp_path: Path) -> None:
    document = read_document(write(tmp_path, "a.pdf", pdf([SENTENCE, "Second page."])))
    first, second = document.text.split("\f")
    assert (first.strip(), second.strip()) == (SENTENCE, "Second page.")
    assert document.kind == "prose"


def test_the_main_text_of_a_page_is_read_and_scripts_are_not(tmp_path: Path) -> None:
    body = "".join(f"<p>{SENTENCE} It was day {n}.</p>" for n in range(9))
    page = f"<html><head><script>var evil</script></head><body><nav>Menu</nav>{body}</body></html>"
    text = read_document(write(tmp_path, "a.html", page)).text
    assert "It was day 3." in text
    assert "evil" not in text


def test_a_short_page_is_read_too(tmp_path: Path) -> None:
    page = "<html><body><h1>Tides</h1><p>Low at four.</p></body></html>"
    assert "Low at four." in read_document(write(tmp_path, "a.htm", page)).text


def test_a_word_document_is_read(tmp_path: Path) -> None:
    assert SENTENCE in read_document(write(tmp_path, "a.docx", docx(SENTENCE))).text


def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.docx", docx(SENTENCE, bytes(210 << 20)))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="unpacks to more"):
        read_document(path)


def test_a_reader_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "readers.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(ingest_child, "__file__", str(tmp_path / "child.py"))
    with pytest.raises(InputError, match="not read within"):
        ingest_child.extract(write(tmp_path, "a.pdf", b"x"), "pdf", max_seconds=0.3)


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ("import os\nos.abort()", InputError, "its reader ended with"),
        (
            "import sys\nsys.stderr.write('pypdfium2\\n')\nsys.exit(4)",
            MissingExtraError,
            "documents",
        ),
        ("import sys\nsys.stdout.write(' ')", InputError, "OCR"),
    ],
)
def test_a_reader_that_dies_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, kind: type[Exception], said: str
) -> None:
    (tmp_path / "readers.py").write_text(body)
    monkeypatch.setattr(ingest_child, "__file__", str(tmp_path / "child.py"))
    with pytest.raises(kind, match=said):
        ingest_child.extract(write(tmp_path, "a.pdf", b"x"), "pdf")


def test_the_reader_runs_no_module_of_the_folder_it_is_called_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "pypdfium2.py", "raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    assert SENTENCE in read_document(write(tmp_path, "a.pdf", pdf([SENTENCE]))).text


def test_files_are_found_by_name_folder_and_pattern(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "a.md",
        "src/main.py",
        "src/data.bin",
        ".git/x.txt",
        "node_modules/y.md",
        ".z.md",
    ):
        write(tmp_path, name, "text")
    os.symlink(tmp_path, tmp_path / "src" / "loop")
    os.symlink(tmp_path / "b.txt", tmp_path / "link.txt")
    names = [one.relative_to(tmp_path).as_posix() for one in find_files([tmp_path])]
    assert names == ["a.md", "b.txt", "src/main.py"]
    named = find_files([tmp_path / "src" / "data.bin", f"{tmp_path}/**/*.md", tmp_path / "a.md"])
    assert [one.name for one in named] == ["data.bin", "a.md", "y.md"]
    with pytest.raises(InputError, match="names no document"):
        find_files([tmp_path / "*.tex"])
    with pytest.raises(InputError, match="names no document"):
        find_files([tmp_path / "missing"])


def test_a_stream_is_read_as_text() -> None:
    assert read_stream(io.BytesIO(b"text"), "stdin").text == "text"
    with pytest.raises(InputError, match="stdin is empty"):
        read_stream(io.BytesIO(b""), "stdin")


def test_a_file_that_may_not_be_read_is_one_clear_error(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "text")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("the superuser reads everything")
    with pytest.raises(InputError, match="cannot read"):
        read_document(path)
