"""What Dagster's webserver refuses, and what its own pages and programs may."""

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from capstone_dagster.webserver import Guard


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse("answered")


async def listen(socket: WebSocket) -> None:
    await socket.accept("graphql-ws")
    await socket.close()


@pytest.fixture
def client() -> TestClient:
    app = Starlette(
        routes=[
            Route("/{path:path}", answer, methods=["GET", "POST", "HEAD"]),
            WebSocketRoute("/graphql", listen),
        ]
    )
    return TestClient(
        Guard(app, {"localhost", "dagster.example.org", "::1"}), base_url="http://localhost:3000"
    )


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/runs", {}, 200),
        ("GET", "/runs", {"host": "dagster.example.org"}, 200),
        ("GET", "/runs", {"host": "[::1]:3000"}, 200),
        ("GET", "/runs", {"host": "attacker.example:3000"}, 403),  # DNS rebinding
        ("GET", "/runs", {"host": "[::1"}, 403),
        ("GET", "/server_info", {"host": "10.0.3.7:3000"}, 200),  # a load balancer
        ("POST", "/server_info", {"host": "10.0.3.7:3000"}, 403),
        ("POST", "/graphql", {}, 200),  # a program
        ("POST", "/graphql", {"origin": "http://localhost:3000"}, 200),
        ("POST", "/graphql", {"origin": "http://localhost:8000"}, 403),  # another page of this machine
        ("POST", "/graphql", {"origin": "https://attacker.example"}, 403),
        ("POST", "/graphql", {"origin": "null"}, 403),
        ("POST", "/graphql?query=mutation{x}", {}, 403),
        ("GET", "/graphql", {}, 200),  # the playground
        ("GET", "/graphql?query=mutation{stopSensor}", {}, 403),
        ("GET", "/graphql?a=1&query=%7Bversion%7D", {"origin": "https://attacker.example"}, 403),
        ("GET", "/prefix/graphql?query=x", {}, 403),
    ],
)
def test_a_request_is_answered_only_if_it_is_one_of_ours(
    client: TestClient, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    assert client.request(method, path, headers=headers).status_code == status


def test_other_pages_do_not_listen_to_subscriptions(client: TestClient) -> None:
    address = "ws://localhost:3000/graphql"
    with client.websocket_connect(address, headers={"origin": "http://localhost:3000"}):
        pass
    for headers in ({"origin": "https://attacker.example"}, {"host": "attacker.example"}):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(address, headers=headers):
            pass
