"""`/v1/contexts` and `/v1/files`: texts folded once and asked many times, by who made them."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.datastructures import FormData, UploadFile

from octavo.ask.sources import TextSource, find_passages, join_passages
from octavo.serve.backends.base import AnswerJob
from octavo.serve.database import MAX_ROWS
from octavo.serve.requests import AppendRequest, AskRequest, ContextRequest
from octavo.serve.routes.chat import usage_of
from octavo.serve.service import Service, extract, no_file, owner_of, service_of
from octavo.serve.wire import RequestError, new_id, now, reply, shape, unless_gone

router = APIRouter(prefix="/v1", tags=["contexts and files"])
Limit = Annotated[int, Query(ge=1, le=100)]
SHAPE = (
    "id",
    "object",
    "created_at",
    "name",
    "model",
    "ratio",
    "source_tokens",
    "latents",
    "bytes",
)
PAGE = ("object", "data", "first_id", "last_id", "has_more")


@router.post(
    "/contexts",
    responses=shape("The context, or a list of them for several files.", "object"),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": ContextRequest.model_json_schema()},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file"],
                        "properties": {
                            "file": {
                                "type": "array",
                                "items": {"type": "string", "format": "binary"},
                            },
                            "ratio": {"type": "integer", "minimum": 1},
                            "name": {"type": "string"},
                        },
                    }
                },
            },
        }
    },
)
async def create_context(request: Request) -> Response:
    """Fold a text (JSON) or files (multipart) and keep them."""
    service, owner = service_of(request), owner_of(request)
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form() as form:
            asked = await _uploaded(form)
        made = [await unless_gone(request, _add(service, owner, one)) for one in asked]
        return reply(made[0] if len(made) == 1 else {"object": "list", "data": made})
    body = ContextRequest.model_validate_json(await request.body())
    return reply(await unless_gone(request, _add(service, owner, body)))


async def _uploaded(form: FormData) -> list[ContextRequest]:
    """Return what a form asks to keep, its files read as text."""
    files = [one for one in form.getlist("file") if isinstance(one, UploadFile)]
    ratio = str(form.get("ratio") or "")
    if not files or (ratio and not ratio.isdecimal()):
        raise RequestError("the form needs a file, and a ratio that is a number", param="file")
    asked = []
    for one in files:
        text = await asyncio.to_thread(extract, await one.read(), one.filename or "")
        name = str(form.get("name") or one.filename or "") if len(files) == 1 else one.filename
        asked.append(ContextRequest(text=text, name=name or None, ratio=int(ratio or 0) or None))
    return asked


async def _add(service: Service, owner: str, asked: ContextRequest) -> dict[str, Any]:
    if service.database.count("context") >= MAX_ROWS["context"]:
        raise RequestError("the store is full; delete contexts", status=429)
    entry = await asyncio.to_thread(
        service.store.add, asked.text, model=service.backend.model, ratio=asked.ratio,
        tags=asked.tags or (),
    )  # fmt: skip
    kept = {"id": entry.id, "name": asked.name, "created_at": now()}
    service.database.put("context", entry.id, owner, kept)
    return _shown(service, kept)


def _shown(service: Service, kept: dict[str, Any]) -> dict[str, Any]:
    """Return a context as the wire has it."""
    entry = service.store.entry(kept["id"])
    return {
        "id": entry.id, "object": "context", "created_at": kept["created_at"], "name": kept["name"],
        "model": entry.model or service.backend.name, "ratio": entry.ratio,
        "source_tokens": entry.source_tokens, "latents": entry.latents, "parts": entry.parts,
        "passages": entry.passages, "characters": entry.characters, "bytes": entry.num_bytes,
        "tags": list(entry.tags),
    }  # fmt: skip


def _find(service: Service, id: str, owner: str) -> dict[str, Any]:
    service.check_context(id, owner)
    entry = service.store.entry(id)
    kept = service.database.get("context", entry.id, owner)
    return kept or {"id": entry.id, "name": entry.title, "created_at": int(entry.created)}


@router.get("/contexts", responses=shape("A page, the newest first.", *PAGE))
async def list_contexts(request: Request, limit: Limit = 20, after: str | None = None) -> Response:
    """List contexts."""
    service, owner = service_of(request), owner_of(request)
    bodies, has_more = service.database.page(
        "context", owner, after=after, limit=limit, is_newest_first=True
    )
    shown = []
    for kept in bodies:
        try:
            shown.append(_shown(service, kept))
        except ValueError:  # evicted, or removed by another program
            continue
    return reply(page_of(shown, has_more))


def page_of(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """Return a page of a list."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {
        "object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more,
    }  # fmt: skip


ANSWER = ("object", "passages")


@router.post(
    "/contexts/ask", responses=shape("Passages with their places, and an answer.", *ANSWER)
)
async def ask(request: Request, body: AskRequest) -> Response:
    """Find the passages that a question rests on, and answer from them."""
    service, owner = service_of(request), owner_of(request)
    for id in body.context_ids:
        service.check_context(id, owner)
    sources = [_source(service, id) for id in body.context_ids]
    found = await asyncio.to_thread(find_passages, body.question, sources, body.passages)
    passages = [
        {
            "context_id": body.context_ids[one.source], "index": one.passage.index,
            "start": one.passage.start, "end": one.passage.end, "line": one.passage.line,
            "heading": one.passage.heading, "text": one.text, "score": float(one.score),
            "marks": [list(mark) for mark in one.marks],
        }
        for one in found
    ]  # fmt: skip
    answer: dict[str, Any] = {"object": "answer", "passages": passages, "text": None}
    if body.answer and found:
        read = join_passages({(one.source, one.passage.index): one.text for one in found})
        message = {"role": "user", "content": f"{read}\n\n{body.question}"}
        opened = await service.open(
            AnswerJob(messages=[message], max_new_tokens=body.max_tokens or 64)
        )

        async def said() -> str:
            return "".join([piece.text async for piece in service.pieces(opened)])

        text = await unless_gone(request, said())
        answer |= {"text": text.strip(), "usage": usage_of(opened.tally)}
    return reply(answer)


def _source(service: Service, id: str) -> TextSource:
    def read() -> str:
        return service.store.text(id)

    return TextSource(title=id, index=service.store.index(id), read=read)


@router.get("/contexts/{context_id}", responses=shape("The context.", *SHAPE))
async def get_context(request: Request, context_id: str) -> Response:
    """Show a context."""
    service = service_of(request)
    return reply(_shown(service, _find(service, context_id, owner_of(request))))


@router.delete("/contexts/{context_id}", responses=shape("It is gone.", "id", "deleted"))
async def delete_context(request: Request, context_id: str) -> Response:
    """Delete a context; another key that has the same keeps it."""
    service, owner = service_of(request), owner_of(request)
    id = _find(service, context_id, owner)["id"]
    service.database.delete("context", id, owner)
    if not service.database.count("context", id):
        await asyncio.to_thread(service.store.remove, id)
    return reply({"id": id, "object": "context.deleted", "deleted": True})


@router.get("/contexts/{context_id}/passages", responses=shape("Passages.", "object", "data"))
async def get_passages(
    request: Request, context_id: str, first: Annotated[int, Query(ge=0)] = 0, limit: Limit = 20
) -> Response:
    """Expand: show passages of the raw text, from one on."""
    service = service_of(request)
    id = _find(service, context_id, owner_of(request))["id"]
    text, index = service.store.text(id), service.store.index(id)
    data = [
        {
            "index": at, "start": one.start, "end": one.end, "line": one.line,
            "heading": one.heading, "text": text[one.start : one.end],
        }
        for at in range(first, min(first + limit, len(index)))
        for one in [index.passage(at)]
    ]  # fmt: skip
    return reply({"object": "list", "data": data, "has_more": first + limit < len(index)})


@router.post("/contexts/{context_id}/append", responses=shape("The grown context.", *SHAPE))
async def append(request: Request, context_id: str, body: AppendRequest) -> Response:
    """Make the context of a text and what follows it; the one before stays."""
    service, owner = service_of(request), owner_of(request)
    kept = _find(service, context_id, owner)
    if not body.text:
        raise RequestError("the text to append is empty", param="text")
    entry = service.store.entry(kept["id"])
    text = service.store.text(entry.id) + body.text
    asked = ContextRequest(text=text, name=kept["name"], ratio=entry.ratio or None)
    return reply(await unless_gone(request, _add(service, owner, asked)))


# -- files ---------------------------------------------------------------------------------------

FILE = ("id", "object", "bytes", "created_at", "filename", "purpose", "status")


@router.post(
    "/files",
    responses=shape("The file.", *FILE),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file"],
                        "properties": {
                            "file": {"type": "string", "format": "binary"},
                            "purpose": {"type": "string"},
                        },
                    }
                }
            },
        }
    },
)
async def create_file(request: Request) -> Response:
    """Upload a document, whose text is taken at once, so that a bad one is refused here."""
    service, owner = service_of(request), owner_of(request)
    async with request.form() as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise RequestError("the form needs a file", param="file")
        data, name = await file.read(), (file.filename or "file.txt")[:255]
        purpose = str(form.get("purpose") or "user_data")
    if service.database.count("file") >= MAX_ROWS["file"]:
        raise RequestError("there are too many files; delete some", status=429)
    await asyncio.to_thread(extract, data, name)
    made: dict[str, Any] = {
        "id": new_id("file"), "object": "file", "bytes": len(data), "created_at": now(),
        "filename": name, "purpose": purpose, "status": "processed",
    }  # fmt: skip
    service.database.put("file", made["id"], owner, made, data)
    return reply(made)


@router.get("/files", responses=shape("A page, the newest first.", *PAGE))
async def list_files(request: Request, limit: Limit = 20, after: str | None = None) -> Response:
    """List files."""
    data, has_more = service_of(request).database.page(
        "file", owner_of(request), after=after, limit=limit, is_newest_first=True
    )
    return reply(page_of(list(data), has_more))


@router.get("/files/{file_id}", responses=shape("The file.", *FILE))
async def get_file(request: Request, file_id: str) -> Response:
    """Show a file."""
    found = service_of(request).database.get("file", file_id, owner_of(request))
    if found is None:
        raise no_file(file_id)
    return reply(found)


@router.get(
    "/files/{file_id}/content",
    responses={200: {"description": "Its bytes.", "content": {"application/octet-stream": {}}}},
)
async def get_file_content(request: Request, file_id: str) -> Response:
    """Return a file as it was uploaded."""
    data = service_of(request).database.data("file", file_id, owner_of(request))
    if data is None:
        raise no_file(file_id)
    return Response(data, media_type="application/octet-stream")


@router.delete("/files/{file_id}", responses=shape("It is gone.", "id", "deleted"))
async def delete_file(request: Request, file_id: str) -> Response:
    """Delete a file."""
    if not service_of(request).database.delete("file", file_id, owner_of(request)):
        raise no_file(file_id)
    return reply({"id": file_id, "object": "file", "deleted": True})
