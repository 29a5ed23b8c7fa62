"""Read documents of many kinds as text: plain, Markdown, code, PDF, HTML, docx; folders of them."""

from octavo.ingest.document import Document, read_document, read_stream
from octavo.ingest.find import find_files

__all__ = ["Document", "find_files", "read_document", "read_stream"]
