"""The web chat as an application, on its own address or below a server's."""

from __future__ import annotations

import atexit
import os
import tempfile

from fastapi import FastAPI

from tilewise.errors import InvalidConfig
from tilewise.host import require_extra
from tilewise.ui.servers import Servers


def mount(app: FastAPI, servers: Servers, path: str) -> FastAPI:
    """Add the page to an application. Raises InvalidConfig where gradio is not installed."""
    require_extra("gradio", "ui", "the web chat")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    uploads = tempfile.TemporaryDirectory(prefix="tilewise-ui-")  # for this user alone, and removed at the end
    atexit.register(uploads.cleanup)
    os.environ["GRADIO_TEMP_DIR"] = uploads.name
    import gradio

    from tilewise.ui.chat_tab import PICTURES
    from tilewise.ui.page import build_page

    page, arguments = build_page(servers)
    # Without it gradio does not look where a file of a request lies, and any file of this machine could be asked for.
    page.has_launched = True
    mounted: FastAPI = gradio.mount_gradio_app(
        app, page, path, footer_links=["settings"], ssr_mode=False, show_error=True, pwa=False, mcp_server=False,
        enable_monitoring=False, run_history=False, allowed_paths=[str(PICTURES)], **arguments,
    )  # fmt: skip
    return mounted


def run(servers: Servers, host: str, port: int) -> None:
    """Serve the page until it is told to end. Port 0 = any that is free."""
    import uvicorn

    app = mount(FastAPI(openapi_url=None), servers, "/")
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=2)
    try:
        listening = config.bind_socket()
    except SystemExit:
        raise InvalidConfig(f"Port {port} of {host} cannot be listened at: choose another one by --port.") from None
    listening.listen()  # whoever reads the line below may come before the application has started
    print(f"The web chat runs on http://{host}:{listening.getsockname()[1]} (Press CTRL+C to quit)", flush=True)
    uvicorn.Server(config).run([listening])
