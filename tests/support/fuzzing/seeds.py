"""The targets by name, and the inputs that each of them begins with: good ones, and some of each way of being bad."""

from __future__ import annotations

import base64
import io
import json
from typing import Any, Final

import numpy as np
import soundfile

from support.fuzzing import targets as t
from support.fuzzing.fuzzer import Target


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _chunk(**more: Any) -> dict[str, Any]:
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], **more}


def _delta(delta: Any, reason: str | None = None, index: int = 0) -> dict[str, Any]:
    return _chunk(choices=[{"index": index, "delta": delta, "finish_reason": reason}])


CALL: Final = {
    "index": 0,
    "id": "call_1",
    "type": "function",
    "function": {"name": "look_up", "arguments": '{"a": 1}'},
}
USAGE: Final = {
    "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1}, "completion_tokens_details": {"reasoning_tokens": 1},
}  # fmt: skip
LOGPROBS: Final = {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}]}
CHUNKS: Final = [
    _delta({"role": "assistant", "content": ""}),
    _delta({"reasoning_content": "Hm."}),
    _delta({"content": f"{t.WORD} "}),
    _delta({"tool_calls": [CALL]}),
    _delta({"refusal": "No."}),
    _chunk(choices=[{"index": 0, "delta": {"content": "a"}, "logprobs": LOGPROBS, "finish_reason": None}]),
    _delta([], "stop"),
    _chunk(usage=USAGE),
]
COMPLETION: Final = {
    "id": "c1", "object": "chat.completion", "created": 1, "model": "m", "usage": USAGE, "system_fingerprint": "f",
    "choices": [
        {
            "index": 0, "finish_reason": "tool_calls", "logprobs": LOGPROBS, "matched_stop": None,
            "message": {
                "role": "assistant", "content": f"{t.WORD} speaks", "reasoning_content": "Hm.",
                "tool_calls": [{k: v for k, v in CALL.items() if k != "index"}],
            },
        }
    ],
}  # fmt: skip
_DONE: Final = b"event: done\ndata: [DONE]\n\n"
_ERROR: Final = {"error": {"message": "it failed", "type": "rate_limit_error", "code": 429}}


def _event(value: Any, name: bytes = b"data", end: bytes = b"\n") -> bytes:
    return b"event: " + name + end + b"data: <<" + _json(value) + b">>" + end + end


_SSE: Final = [
    b"\0event: data\ndata: a\n\nevent: done\ndata: [DONE]\n\n",
    b"\0\xef\xbb\xbfdata: a\r\n\r\n: ping\r\ndata: b\rdata\r\r",
    b"\x8aevent: data\ndata: " + b"a" * 40 + b"\n\n",
    b"\0id: 1\nretry: 5\nevent\ndata:b\ndata: c\n\n",
]
_STREAMS: Final = [
    b"".join(map(_event, CHUNKS)) + _DONE,
    b"".join(_event(each, end=b"\r\n") for each in CHUNKS) + b"data: [DONE]\n\n",
    _event(CHUNKS[2])
    + b'event: error\ndata: {"error": {"message": "it failed", "type": "server_error"}}\n\n',
    _event(CHUNKS[2]) + _event(_ERROR, b"error"),
    _event(CHUNKS[2]) + _event({**CHUNKS[3], **_ERROR}) + _DONE,
    _event(CHUNKS[2]) + b"event: data\ndata: 00112233\n\n",
    _event(_delta({"content": "b"}, index=1)) + _event(_delta({}, "length", index=1)) + _DONE,
]
_ENVELOPE: Final = (
    b'{"status": 200, "data": {"encryptedResponse": "<<%b>>", "nonce": "NONCE"}, "error": null}'
)
_COMPLETIONS: Final = [
    _ENVELOPE % _json(COMPLETION),
    _ENVELOPE % _json({"choices": [{"message": {"content": "a"}}]}),
    _ENVELOPE % _json(_ERROR),
    _json({"status": 503, "data": None, "error": "unavailable", "support_id": "support_1"}),
]
_TRANSCRIPTIONS: Final = [
    b"\0" + t.WORD.encode(),
    b"\1" + _json({"text": t.WORD}),
    b"\2" + _json(
        {
            "text": t.WORD, "language": "english", "duration": 2.0, "task": "transcribe",
            "segments": [{"id": 0, "start": 0.0, "end": 2.0, "text": t.WORD, "avg_logprob": -0.1}],
            "words": [{"word": t.WORD, "start": 0.0, "end": 2.0}],
        }
    ),
    b"\3" + _json(
        {
            "metadata": {"duration": 2.0},
            "results": {
                "channels": [
                    {
                        "detected_language": "en",
                        "alternatives": [{"transcript": t.WORD, "words": [{"word": t.WORD, "start": 0.0, "end": 1.0}]}],
                    }
                ]
            },
        }
    ),
]  # fmt: skip
_ERRORS: Final = [
    b"429\n2\n/rvenc/chat/completions\n" + _json({"error": {"message": "slow down", "type": "t", "code": "c"}}),
    b"400\n\n/rvenc/chat/completions\n" + _json(
        {"status": 400, "error": "wrong", "validator": {"temperature": ["too hot"]}, "support_id": "support_1"}
    ),
    b"403\n\n/rvenc/audio/translations\n" + _json({"error": "missing scope audio.translation"}),
    b"503\nWed, 21 Oct 2026 07:28:00 GMT\n/models\n<html>unavailable</html>",
    b"400\n\n/rvenc/chat/completions\n" + _json({"error": "failed to decrypt: the enclave key has expired"}),
    b"400\n\n\n" + _json({"error": {"message": "too long", "code": "context_length_exceeded", "param": "messages"}}),
    b"500\n1e9\n\n",
]  # fmt: skip
_MODELS: Final = [
    _json(
        {
            "status": 200,
            "data": [
                {
                    "id": "1", "model": "openai/gpt-oss-120b", "name": "n", "description": "d", "type": "CHAT",
                    "enabled": True, "input_modalities": ["text"], "price_config": {"a": 1}, "context_window": 10,
                }
            ],
        }
    ),
    _json({"data": {"models": [{"id": "1"}]}}),
    _json({"status": 401, "error": "no", "data": None}),
]  # fmt: skip
_PUBLIC: Final = bytes(t.PRIVATE.public_key())
_KEYS: Final = [
    _json({"publicKey": _PUBLIC.hex()}),
    _json({"data": {"public_key": _PUBLIC.hex()}}),
    _PUBLIC.hex().encode(),
    base64.b64encode(_PUBLIC),
    _PUBLIC,
]
_KEY_FILES: Final = [
    t.key_image(),
    t.KEK.hex().encode() + b"\n",
    base64.b64encode(t.KEK),
    b"PREMKEYS\0\2",
]


def _sound(form: str, subtype: str, rate: int = 8_000, channels: int = 1, seconds: float = 0.6) -> bytes:
    clock = np.arange(int(rate * seconds)) / rate
    tone = 0.3 * np.sin(2 * np.pi * 440 * clock) * (clock % 0.3 < 0.2)
    tone += 0.02 * np.random.default_rng(1).standard_normal(len(clock))
    file = io.BytesIO()
    soundfile.write(file, np.stack([tone] * channels, axis=1), rate, format=form, subtype=subtype)
    return file.getvalue()


_SOUNDS: Final = [
    _sound("WAV", "PCM_16"), _sound("WAV", "PCM_U8", seconds=1.0), _sound("WAV", "PCM_24", channels=2, seconds=0.3),
    _sound("WAV", "FLOAT", seconds=0.3), _sound("WAV", "ULAW", seconds=1.0), _sound("WAVEX", "PCM_16", seconds=0.4),
    _sound("FLAC", "PCM_16"), _sound("OGG", "VORBIS", seconds=0.4), _sound("OGG", "OPUS", seconds=0.4),
    _sound("MP3", "MPEG_LAYER_III", seconds=0.4), _sound("AIFF", "PCM_16", seconds=0.3),
    _sound("MP3", "MPEG_LAYER_III", seconds=6.0),
    b"\0\0\0\x20ftypM4A \0\0\0\0", b"\x1a\x45\xdf\xa3 webm",
]  # fmt: skip
_RECORDINGS: Final = [size + each for each in _SOUNDS for size in (b"\0", b"\x80")]
_PARAMS: Final = [
    _json(
        {
            "model": "m", "stream": True, "temperature": 0.5, "top_p": 1, "n": 1, "seed": 1, "stop": ["a"],
            "max_completion_tokens": 5, "logit_bias": {"1": 2}, "logprobs": True, "top_logprobs": 2,
            "metadata": {"a": t.WORD}, "modalities": ["text"], "reasoning_effort": "low", "verbosity": "low",
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
            "stream_options": {"include_usage": True}, "tool_choice": {"type": "function", "function": {"name": "f"}},
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "prediction": {"type": "content", "content": t.WORD}, "audio": {"format": "wav", "voice": "ash"},
            "web_search_options": {"user_location": {"type": "approximate", "approximate": {"city": t.WORD}}},
            "messages": [
                {"role": "developer", "content": t.WORD, "name": "a"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": t.WORD},
                        {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
                        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                        {"type": "file", "file": {"file_data": "data:text/plain;base64,AAAA", "filename": "a.txt"}},
                    ],
                },
                {
                    "role": "assistant", "content": None, "reasoning_content": t.WORD,
                    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": t.WORD}]},
            ],
        }
    ),
    _json({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "extra_body": {"top_k": 4}}),
    _json({"model": "m", "messages": [{"role": "user", "content": {"$": "surrogate"}}], "stop": {"$": "tuple"}}),
    _json({"model": "w", "prompt": t.WORD, "language": "en", "response_format": "verbose_json",
           "timestamp_granularities": ["word", "segment"], "temperature": 0.5}),
]  # fmt: skip
_MESSAGES: Final = [
    _json(
        [
            {"role": "system", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "human",
                "content": [
                    "a",
                    {"type": "image", "base64": "AAAA", "mime_type": "image/png", "extras": {"detail": "low"}},
                    {"type": "image_url", "image_url": "https://example.com/a.png"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                    {"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"},
                    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
                    {"type": "file", "base64": "AAAA", "mime_type": "text/plain", "filename": "a.txt"},
                    {"type": "file", "file": {"file_id": "f"}},
                    {"type": "document", "source": {"type": "text", "data": "a"}, "title": "a"},
                    {"type": "text-plain", "text": "a"},
                ],
            },
            {
                "role": "ai", "name": "b",
                "content": [
                    {"type": "reasoning", "summary": [{"text": "a"}]}, {"type": "thinking", "thinking": "a"},
                    {"type": "text", "text": "a"}, {"type": "tool_use", "id": "2", "name": "g", "input": {"a": 1}},
                    {"type": "refusal", "refusal": "No."}, {"type": "non_standard", "value": {"type": "refusal"}},
                ],
                "tool_calls": [{"id": "1", "name": "f", "args": {"a": 1}}],
                "additional_kwargs": {"refusal": "No.", "audio": {"id": "a"}, "function_call": {"name": "f"}},
            },
            {"role": "tool", "content": "a", "tool_call_id": "1"},
        ]
    )
]  # fmt: skip
_CHAT: Final = b'{"encryptedInference": "<<%b>>", "cipherText": "CIPHER", "nonce": "NONCE"}'
_ASKED: Final = _json(
    {"model": "openai/gpt-oss-120b", "messages": [{"role": "user", "content": f"Say {t.WORD}."}]}
)
_HEARD: Final = (
    b'{"encryptedInference": "<<%b>>", "cipherText": "CIPHER", "nonce": "NONCE", "encryptedFile": "<<RIFF>>", '
    b'"fileNonce": "NONCE", "encryptedFileName": "<<a.wav>>", "fileNameNonce": "NONCE"}'
    % _json({"model": "openai/whisper-large-v3", "prompt": t.WORD, "language": "en"})
)
_BODIES: Final = [_CHAT % _ASKED, _CHAT % _PARAMS[0], _HEARD, b"{}"]


def _post(path: bytes, body: bytes, more: bytes = b"") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: @HOST@\r\nAuthorization: Bearer @KEY@\r\nContent-Length: @LENGTH@\r\n%b\r\n"
    return head % (path, more) + body


_REQUESTS: Final = [
    _post(b"/rvenc/chat/completions", _CHAT % _ASKED, b"Content-Type: application/json\r\n"),
    _post(b"/rvenc/audio/transcriptions", _HEARD),
    _post(b"/rvenc/chat/completions", b"@ENCLAVE@" + _CHAT % _ASKED),
    b"GET /models?type=CHAT HTTP/1.1\r\nHost: @HOST@\r\nAuthorization: @KEY@\r\n\r\n",
    b"GET /publicKey@ENCLAVE@ HTTP/1.1\r\nHost: @HOST@\r\n\r\n",
    b"POST /rvenc/chat/completions HTTP/1.1\r\nHost: @HOST@\r\nAuthorization: @KEY@\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
]

TARGETS: Final = {
    target.name: target
    for target in (
        Target("sse", t.run_sse, _SSE),
        Target("stream", t.run_stream, _STREAMS),
        Target("completion", t.run_completion, _COMPLETIONS),
        Target("answers", t.run_answers, [b"\n".join(map(_json, (COMPLETION, *CHUNKS)))]),
        Target("transcription", t.run_transcription, _TRANSCRIPTIONS),
        Target("errors", t.run_errors, _ERRORS),
        Target("models", t.run_models, _MODELS),
        Target("key", t.run_key, _KEYS),
        Target("keyfile", t.run_keyfile, _KEY_FILES, setting=t.folder),
        Target("recording", t.run_recording, _RECORDINGS, setting=t.quiet),
        Target("decode", t.run_decode, _SOUNDS, setting=t.quiet),
        Target("params", t.run_params, _PARAMS, [b'{"$": "nan"}', b'{"$": "set"}', b'{"$": "object"}']),
        Target("messages", t.run_messages, _MESSAGES),
        Target("enclave", t.run_enclave, _BODIES),
        Target("http", t.run_http, _REQUESTS, [b"@HOST@", b"@KEY@", b"@LENGTH@", b"Expect: 100-continue\r\n"],
               follows=False, setting=t.served),
    )
}  # fmt: skip
