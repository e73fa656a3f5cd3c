"""The interface's documentation: Swagger UI from the package fastapi-swagger, so that it needs no network."""

from importlib import resources

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.responses import Response

from manifoldflow.serving.errors import Refused

FILES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}

# Addresses are relative: the page may lie behind the prefix of a proxy. The script is a file of its own, so that the page's
# policy need not allow scripts in it.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" type="image/png" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<noscript>This page needs JavaScript. The description itself is at <a href="openapi.json">openapi.json</a>.</noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = """SwaggerUIBundle({
  url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, layout: "BaseLayout", validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
});
"""


def add_docs(app: FastAPI, headers: dict[str, str]) -> None:
    """Add ``/docs`` and what it asks for.

    Args:
        app: without documentation of its own (``docs_url=None``).
        headers: of the page.
    """

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        from html import escape

        return HTMLResponse(PAGE.format(title=escape(app.title)), headers=headers)

    @app.get("/docs/{name}", include_in_schema=False)
    async def docs_file(name: str) -> Response:
        if name == "start.js":
            return Response(START, media_type="text/javascript", headers={"Cache-Control": "no-cache"})
        if name not in FILES:
            raise Refused(404, "there is no such file of the documentation; /docs is the page")
        try:
            content = (resources.files("fastapi_swagger") / "resources" / name).read_bytes()
        except (ModuleNotFoundError, OSError):
            hint = "the documentation's page needs the package 'fastapi-swagger': pip install 'manifoldflow[serve]'"
            raise Refused(404, hint) from None
        return Response(content, media_type=FILES[name], headers={"Cache-Control": "max-age=86400"})
