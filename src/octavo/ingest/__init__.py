"""Read documents of many kinds as text: plain, Markdown, code, PDF, HTML, docx; folders of them."""

from octavo.ingest.document import EXTRACTED, DocumentText, kind_of, read_document, read_stream
from octavo.ingest.find import find_files

__all__ = [
    "EXTRACTED", "DocumentText", "find_files", "kind_of", "read_document", "read_stream",
]  # fmt: skip
