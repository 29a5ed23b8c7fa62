"""Ask a folder of documents: passages with their places, and an answer where it can be trusted.

python examples/ask_folder.py FOLDER QUESTION [--model FOLDER]
"""

import argparse
from pathlib import Path

import octavo
from octavo.ask.answer import answer_from
from octavo.ask.sources import TextSource, find_passages
from octavo.ingest import find_files, read_document

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path)
parser.add_argument("question")
parser.add_argument("--model", help="a checkpoint folder or hub id; by default the shipped model")
asked = parser.parse_args()

store = octavo.Store()  # keeps the index of every document for the next question
sources = []
for path in find_files([asked.folder]):
    document = read_document(path)
    index = store.index_of(document.text, document.kind)
    sources.append(TextSource(title=str(path), index=index, read=lambda one=document: one.text))

found = find_passages(asked.question, sources, 8)
for one in found[:3]:
    print(f"{one.title}:{one.passage.line}  {one.passage.heading or ''}")
    print(f"    {' '.join(one.text.split())}")

answer = answer_from(octavo.load(asked.model), asked.question, found)
print(answer.text if answer.is_sure else "the model is not sure; see the passages")
