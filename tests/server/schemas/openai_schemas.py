"""JSON Schemas of the objects in OpenAI's API reference, for responses.

Fields that clients read unconditionally are required. Unknown fields are forbidden, except our
extensions.
"""

from typing import Any


def obj(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


STRING: dict[str, Any] = {"type": "string"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
NULL: dict[str, Any] = {"type": "null"}
SECONDS: dict[str, Any] = {"type": "integer", "minimum": 1_600_000_000}

USAGE = obj(
    {
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "total_tokens": COUNT,
        "prompt_tokens_details": obj({"cached_tokens": COUNT}),
    }
)
TOP_LOGPROB = {
    "token": STRING,
    "logprob": {"type": "number", "minimum": -9999, "maximum": 0},
    "bytes": nullable(array({"type": "integer", "minimum": 0, "maximum": 255})),
}
LOGPROBS = obj(
    {
        "content": nullable(array(obj(TOP_LOGPROB | {"top_logprobs": array(obj(TOP_LOGPROB))}))),
        "refusal": NULL,
    }
)
CALL = obj(
    {
        "id": STRING,
        "type": {"const": "function"},
        "function": obj({"name": STRING, "arguments": STRING}),
    }
)
FINISH: dict[str, Any] = {"enum": ["stop", "length", "tool_calls", "content_filter"]}

CHAT_COMPLETION = obj(
    {
        "id": {"type": "string", "pattern": "^chatcmpl-"},
        "object": {"const": "chat.completion"},
        "created": SECONDS,
        "model": STRING,
        "choices": array(
            obj(
                {
                    "index": COUNT,
                    "message": obj(
                        {
                            "role": {"const": "assistant"},
                            "content": nullable(STRING),
                            "refusal": NULL,
                        },
                        {"tool_calls": array(CALL), "reasoning_content": STRING},
                    ),
                    "logprobs": nullable(LOGPROBS),
                    "finish_reason": FINISH,
                }
            )
        ),
        "usage": USAGE,
        "system_fingerprint": NULL,
    }
)
CALL_DELTA = obj(
    {"index": COUNT, "function": obj({}, {"name": STRING, "arguments": STRING})},
    {"id": STRING, "type": {"const": "function"}},
)
CHAT_CHUNK = obj(
    {
        "id": {"type": "string", "pattern": "^chatcmpl-"},
        "object": {"const": "chat.completion.chunk"},
        "created": SECONDS,
        "model": STRING,
        "choices": array(
            obj(
                {
                    "index": COUNT,
                    "delta": obj(
                        {},
                        {
                            "role": {"const": "assistant"},
                            "content": STRING,
                            "reasoning_content": STRING,
                            "tool_calls": array(CALL_DELTA),
                        },
                    ),
                    "logprobs": nullable(LOGPROBS),
                    "finish_reason": nullable(FINISH),
                }
            )
        ),
        "system_fingerprint": NULL,
    },
    {"usage": nullable(USAGE)},
)
COMPLETION = obj(
    {
        "id": {"type": "string", "pattern": "^cmpl-"},
        "object": {"const": "text_completion"},
        "created": SECONDS,
        "model": STRING,
        "choices": array(
            obj(
                {
                    "index": COUNT,
                    "text": STRING,
                    "finish_reason": nullable(FINISH),
                    "logprobs": nullable(
                        obj(
                            {
                                "tokens": array(STRING),
                                "token_logprobs": array(nullable({"type": "number"})),
                                "top_logprobs": nullable(
                                    array(
                                        nullable(
                                            {
                                                "type": "object",
                                                "additionalProperties": {"type": "number"},
                                            }
                                        )
                                    )
                                ),
                                "text_offset": array(COUNT),
                            }
                        )
                    ),
                }
            )
        ),
        "system_fingerprint": NULL,
    },
    {"usage": nullable(USAGE)},
)
MODELS = obj(
    {
        "object": {"const": "list"},
        "data": array(
            obj(
                {
                    "id": STRING,
                    "object": {"const": "model"},
                    "created": SECONDS,
                    "owned_by": STRING,
                },
                {"max_model_len": COUNT, "execution_path": STRING, "execution_reason": STRING},
            )
        ),
    }
)
EMBEDDINGS = obj(
    {
        "object": {"const": "list"},
        "data": array(
            obj(
                {
                    "object": {"const": "embedding"},
                    "index": COUNT,
                    "embedding": {"anyOf": [STRING, array({"type": "number"})]},
                }
            )
        ),
        "model": STRING,
        "usage": obj({"prompt_tokens": COUNT, "total_tokens": COUNT}),
    }
)
ERROR = obj(
    {
        "error": obj(
            {
                "message": STRING,
                "type": STRING,
                "param": nullable(STRING),
                "code": nullable(STRING),
            }
        )
    }
)
