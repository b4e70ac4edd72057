"""The pages that show the API, /docs and /redoc, without a request to anywhere else."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

FILES = "/docs-files"

# what the pages may load and call: this service. Whatever else their scripts ask for, the browser refuses.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "worker-src 'self' blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


def add_documentation(app: FastAPI) -> None:
    """Serve the pages and what they load; the application has none of its own."""
    app.mount(FILES, StaticFiles(directory=_folder()), name="docs-files")
    app.add_route("/docs", _docs, include_in_schema=False)
    app.add_route("/redoc", _redoc, include_in_schema=False)


def _folder() -> Path:
    """Where the package keeps the scripts; it is not imported, for it would only make an application."""
    spec = find_spec("fastapi_offline")
    assert spec is not None, "a dependency"
    assert spec.submodule_search_locations is not None, "a package"
    return Path(spec.submodule_search_locations[0]) / "static"


async def _docs(request: Request) -> HTMLResponse:
    app, root = request.app, request.scope.get("root_path", "")
    page = get_swagger_ui_html(
        openapi_url=f"{root}{app.openapi_url}",
        title=app.title,
        swagger_js_url=f"{root}{FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{FILES}/swagger-ui.css",
        swagger_favicon_url=f"{root}{FILES}/favicon.png",
    )
    page.headers["Content-Security-Policy"] = _POLICY
    return page


async def _redoc(request: Request) -> HTMLResponse:
    app, root = request.app, request.scope.get("root_path", "")
    page = get_redoc_html(
        openapi_url=f"{root}{app.openapi_url}",
        title=app.title,
        redoc_js_url=f"{root}{FILES}/redoc.standalone.js",
        redoc_favicon_url=f"{root}{FILES}/favicon.png",
        with_google_fonts=False,
    )
    page.headers["Content-Security-Policy"] = _POLICY
    return page
