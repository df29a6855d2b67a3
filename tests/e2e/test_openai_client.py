"""The official OpenAI client, unchanged."""

from __future__ import annotations

import openai
import pytest


@pytest.fixture
def client(frontend):
    with openai.OpenAI(base_url=f"{frontend.address}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client):
    assert {model.id for model in client.models.list()} == {"mock", "smollm2"}


def test_chat(client):
    reply = client.chat.completions.create(model="smollm2", max_tokens=12, temperature=0,
                                           messages=[{"role": "user", "content": "Say hello."}])
    assert reply.choices[0].message.content
    assert 0 < reply.usage.completion_tokens <= 12


def test_chat_stream(client):
    stream = client.chat.completions.create(model="smollm2", max_tokens=12, temperature=0, stream=True,
                                            stream_options={"include_usage": True},
                                            messages=[{"role": "user", "content": "Say hello."}])
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert chunks[-1].usage.completion_tokens <= 12


def test_completion(client):
    reply = client.completions.create(model="mock", prompt="abc", max_tokens=7)
    assert reply.choices[0].text == "abcabca"


def test_error(client):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="mock", messages=[{"role": "user", "content": "x" * 600}])
