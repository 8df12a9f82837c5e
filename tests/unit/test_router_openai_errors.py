"""Errors have OpenAI's shape, whoever found them."""

import json
from typing import Any

import pytest

from cascadia_router.openai_errors import engine_error, error_body


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "invalid_request_error"),
        (429, "rate_limit_error"),
        (503, "server_error"),
    ],
)
def test_the_status_settles_the_type(status: int, kind: str) -> None:
    assert json.loads(error_body(status, "no", code="c", param="p")) == {
        "error": {"message": "no", "type": kind, "param": "p", "code": "c"}
    }


@pytest.mark.parametrize(
    ("said", "error"),
    [
        # SGLang
        (
            {"object": "error", "message": "too long", "type": "BadRequestError", "param": "max_tokens", "code": 400},
            {"message": "too long", "type": "BadRequestError", "param": "max_tokens", "code": "400"},
        ),
        # llama.cpp
        (
            {"error": {"code": 400, "message": "bad role", "type": "invalid_request_error", "n_ctx": 512}},
            {"message": "bad role", "type": "invalid_request_error", "param": None, "code": "400", "n_ctx": 512},
        ),
        # vLLM
        (
            {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": None}},
            {"message": "no", "type": "BadRequestError", "param": None, "code": None},
        ),
        ({"error": "no"}, {"message": "no", "type": "invalid_request_error", "param": None, "code": None}),
    ],
)
def test_what_engines_say_is_kept(said: Any, error: Any) -> None:
    assert json.loads(engine_error(400, json.dumps(said).encode())) == {"error": error}


@pytest.mark.parametrize(
    "body", [b"", b"<html>no</html>", b"\xff", b"[]", b"null", b'{"detail": 1}', b'{"error": [1]}']
)
def test_anything_else_is_the_message(body: bytes) -> None:
    error = json.loads(engine_error(422, body))["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "refused_by_engine", None)
    assert error["message"]
