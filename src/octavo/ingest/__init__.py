"""Read documents of many kinds as text: plain, Markdown, code, PDF, HTML, docx; folders of them."""

from octavo.ingest.document import DocumentText, read_document, read_stream
from octavo.ingest.find import find_files

__all__ = ["DocumentText", "find_files", "read_document", "read_stream"]
