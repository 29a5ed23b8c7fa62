"""The application: routes, errors, the page; and `run`, which serves it until it is stopped."""

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.exceptions import HTTPException

import octavo
from octavo.errors import ConfigError, OctavoError
from octavo.serve.backends.agent import AGENT_NAME
from octavo.serve.limits import Guard, Keys, is_loopback
from octavo.serve.routes import chat, contexts, responses
from octavo.serve.service import Service, service_of
from octavo.serve.wire import ERRORS, RequestError, error_body, reply, shape

PAGE = Path(__file__).with_name("page.html")
_CONTENT_POLICY = (
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def make_app(service: Service, keys: Keys | None = None) -> Any:
    """Return the ASGI application of a service, behind its guard."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="octavo", version=octavo.__version__, lifespan=lifespan, responses=ERRORS,
        description="Compressed contexts behind the API that clients know.", redoc_url=None,
    )  # fmt: skip
    app.state.service = service
    for router in (chat.router, contexts.router, responses.router):
        app.include_router(router)
    _add_own_routes(app)
    for kind in (OctavoError, HTTPException, RequestValidationError, ValidationError, Exception):
        app.add_exception_handler(kind, _refuse)
    return Guard(app, keys=keys, limits=service.limits)


def _add_own_routes(app: FastAPI) -> None:
    """Add what is about the server itself."""

    @app.get("/v1/models", responses=shape("The models.", "object", "data"), tags=["answers"])
    async def list_models(request: Request) -> Response:
        """List the model that answers."""
        models = _models(service_of(request))
        return reply({"object": "list", "data": models, "models": models})

    @app.get(
        "/v1/models/{model:path}",
        responses=shape("The model.", "id", "object", "created", "owned_by"),
        tags=["answers"],
    )
    async def get_model(request: Request, model: str) -> Response:
        """Show a model."""
        name = service_of(request).model_of(model)
        return reply(next(one for one in _models(service_of(request)) if one["id"] == name))

    @app.get("/health", responses=shape("It runs.", "status"), tags=["server"])
    async def health() -> Response:
        """Say that the process runs."""
        return reply({"status": "ok"})

    @app.get("/ready", responses=shape("It can answer.", "status"), tags=["server"])
    async def ready(request: Request) -> Response:
        """Say whether the backend can answer."""
        if not await service_of(request).backend.check():
            raise RequestError("the backend cannot be reached", status=503)
        return reply({"status": "ready"})

    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        """Show counts and times for Prometheus."""
        found = generate_latest(service_of(request).metrics.registry)
        return Response(found, media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """Show the page."""
        headers = {"content-security-policy": _CONTENT_POLICY, "x-content-type-options": "nosniff"}
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=headers)


def _models(service: Service) -> list[dict[str, Any]]:
    """Return the model that answers, and the agent that answers by it."""
    model = service.backend.model
    shown = {
        "object": "model", "created": 1767225600, "owned_by": "octavo",
        "ratios": model.ratios if model else [],
        "max_model_len": model.engine.max_positions if model else None,
    }  # fmt: skip
    names = [service.backend.name, *([AGENT_NAME] if model else [])]
    return [{"id": name, **shown} for name in names]


async def _refuse(request: Request, error: Exception) -> Response:
    """Say any error in the one form that clients read."""
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is nothing at {request.url.path[:80]}; see /docs"
        error = RequestError(
            message, status=error.status_code, code=code, headers=dict(error.headers or {})
        )
    elif isinstance(error, RequestValidationError | ValidationError):
        first = error.errors()[0]
        place = ".".join(str(one) for one in first["loc"] if one != "body")
        error = RequestError(f"{place or 'the body'}: {first['msg']}", param=place or None)
    else:
        service_of(request).note(error)
    status, body, headers = error_body(error)
    return reply(body, status, headers)


def check_host(host: str, keys: Keys | None) -> None:
    """Refuse to listen where others are, without keys."""
    if keys is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} lets other machines in, and there are no keys; give --api-key-file, "
            "or leave the host at 127.0.0.1"
        )


def run(service: Service, *, host: str, port: int, keys: Keys | None, on_ready: Any) -> None:
    """Serve until interrupted; answers under way then have ten seconds to end."""
    check_host(host, keys)
    config = uvicorn.Config(
        make_app(service, keys), host=host, port=port, log_config=None, access_log=False,
        timeout_graceful_shutdown=10, server_header=False, ws="none", lifespan="on",
    )  # fmt: skip
    logger = logging.getLogger("octavo.serve")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
    server = uvicorn.Server(config)
    on_ready()
    server.run()
