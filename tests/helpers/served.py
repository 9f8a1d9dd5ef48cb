"""The clinic's endpoint in a thread, a share of whose requests fails in a way that servers do."""

import asyncio
import json
import socket
import threading

import uvicorn
from fastapi import Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from promedical_utils.clinic import server
from promedical_utils.clinic.people import uniform

FAULTS = ("429", "500", "timeout", "dropped", "not_json", "empty", "truncated", "malformed")
FAULTS += ("foreign",)
FOREIGN = (
    "Leider kann ich auf diese Frage nur in deutscher Sprache antworten, und eine strukturierte "
    "Antwort ist mir hier nicht möglich."
)


class Server:
    """``clinic`` on a free loopback port, as a context manager: it answers while it is open.

    ``kinds`` are those of FAULTS that occur; a time-out takes ``slow`` seconds. With ``key`` a
    request must carry it.
    """

    def __init__(self, clinic, faults=0.0, slow=1.0, key="", kinds=FAULTS):
        self.faults, self.slow, self.key, self.kinds, self.requests = faults, slow, key, kinds, 0
        app = server.app(clinic)
        app.middleware("http")(self._spoil)
        settings = uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off")
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._uvicorn = uvicorn.Server(settings)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def __enter__(self) -> "Server":
        self._thread = threading.Thread(target=self._uvicorn.run, args=([self._socket],))
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._uvicorn.should_exit = True
        self._thread.join()

    def _fault(self) -> str | None:
        """How this request fails; drawn by its number, so that a retry may do better."""
        if uniform("fault", self.requests) >= self.faults:
            return None
        return self.kinds[int(uniform("kind", self.requests) * len(self.kinds))]

    async def _spoil(self, request: Request, call_next) -> Response:
        self.requests += 1
        fault = self._fault()
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "wrong key"}}, 401)
        if fault in ("429", "500"):
            wait = {"retry-after-ms": "1"}
            return JSONResponse({"error": {"message": "asked for"}}, int(fault), wait)
        if fault in ("timeout", "dropped"):
            await asyncio.sleep(self.slow if fault == "timeout" else 0)
            for connection in list(self._uvicorn.server_state.connections):
                if connection.client == tuple(request.client):
                    connection.transport.close()  # what is returned is then sent nowhere
            return Response()
        if fault == "not_json":
            return HTMLResponse("<html>gateway</html>")
        answer = await call_next(request)
        if fault is None or answer.status_code != 200:
            return answer
        content = json.loads(b"".join([part async for part in answer.body_iterator]))
        [choice] = content["choices"]
        choice["message"]["content"] = _spoiled(choice["message"]["content"], fault)
        choice["finish_reason"] = "length" if fault == "truncated" else "stop"
        return JSONResponse(content)


def _spoiled(text: str, fault: str) -> str:
    """An answer that came through, and is none."""
    if fault == "malformed":  # a verdict or a criterion too many, or no JSON any more
        content = json.loads(text) if text.startswith("{") else {}
        rows = next((v for v in content.values() if isinstance(v, list) and v), None)
        if rows is None:
            return text.replace("}", "", 1)
        rows.append(rows[0])
        return json.dumps(content)
    return {"empty": "", "truncated": text[: len(text) // 2], "foreign": FOREIGN}[fault]
