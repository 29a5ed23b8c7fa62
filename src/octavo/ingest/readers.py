"""What runs in the child process: one file in, its text on stdout; imports nothing of octavo.

Exit codes: 0 done, 3 refused (one line on stderr says why), 4 a library is missing (named there).
"""

import io
import resource
import sys
import zipfile
from collections.abc import Callable

_MEMORY_BYTES, _CPU_SECONDS, _FILE_BYTES = 2 << 30, 120, 300 << 20
_DOCX_BYTES = 200 << 20
"""Unpacked; a zip file of a few kilobytes may unpack to gigabytes."""
_HTML_BYTES = 20 << 20


class Refusal(Exception):
    """A file that cannot be read, with the reason."""


def read_pdf(path: str) -> str:
    """Return the text of every page; a form feed stands between pages."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise Refusal("is locked with a password; save it without one") from error
        raise Refusal(f"is no readable PDF ({error}); open and save it again") from error
    pages = []
    for number in range(len(document)):
        page = document[number]
        text = page.get_textpage().get_text_range()
        pages.append(text.replace("\r\n", "\n").replace("\f", "\n"))
        page.close()
    # PDFium marks a word that was hyphenated at a line's end; the word is made whole again.
    whole = "\f".join(pages).replace("\ufffe\n", "").replace("\ufffe", "")
    if not whole.strip():
        raise Refusal("has no text layer: it was scanned; put it through OCR first")
    return whole


def read_html(path: str) -> str:
    """Return the main text; where there is no main part, all of the text."""
    import trafilatura

    with open(path, "rb") as file:
        data = file.read(_HTML_BYTES + 1)
    if len(data) > _HTML_BYTES:
        raise Refusal(f"is larger than {_HTML_BYTES >> 20} MiB; split it")
    text = trafilatura.extract(
        data, include_comments=False, include_tables=True, deduplicate=False, no_fallback=True
    )
    if not text:
        _, text, _ = trafilatura.baseline(data)
    if not text:
        raise Refusal("holds no text in its markup; save it as text")
    return str(text)


def read_docx(path: str) -> str:
    """Return the raw text of a Word document."""
    import mammoth

    try:
        with zipfile.ZipFile(path) as archive:
            left = _DOCX_BYTES
            for info in archive.infolist():
                with archive.open(info) as member:  # what a zip says of its sizes may be a lie
                    while piece := member.read(1 << 20):
                        left -= len(piece)
                        if left < 0:
                            raise Refusal(f"unpacks to more than {_DOCX_BYTES >> 20} MiB")
        with open(path, "rb") as file:
            text: str = mammoth.extract_raw_text(io.BytesIO(file.read())).value
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise Refusal(f"is no Word document ({error}); open and save it again") from error
    if not text.strip():
        raise Refusal("holds no text; save it as text")
    return text


READERS: dict[str, Callable[[str], str]] = {"pdf": read_pdf, "html": read_html, "docx": read_docx}


def main(reader: str, path: str) -> int:
    """Read one file within limits."""
    for kind, limit in (
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(kind, (limit, limit))
        except (OSError, ValueError):  # macOS has no limit on addresses
            continue
    try:
        text = READERS[reader](path)
    except Refusal as refusal:
        sys.stderr.write(f"{refusal}\n")
        return 3
    except ImportError as error:
        sys.stderr.write(f"{error.name}\n")
        return 4
    except MemoryError:
        sys.stderr.write("takes more memory than a document should; convert it to text first\n")
        return 3
    except Exception as error:  # libraries raise what they like; all mean "not readable"
        what = " ".join(str(error).split())[:200]
        sys.stderr.write(f"cannot be read ({type(error).__name__}: {what}); save it again\n")
        return 3
    # Half a surrogate pair, which some files hold, is no character.
    sys.stdout.buffer.write(
        text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    )
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
