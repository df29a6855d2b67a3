"""What the user sees of a request that cannot be served: always an HTTP error of that request, per release."""

from __future__ import annotations

import pytest

import dynamo_lab as lab

TOO_LONG = "x" * 600  # the mock worker's context holds 512


def chat_status(frontend: lab.Frontend, model: str, prompt: str = "hi", **body) -> tuple[int, str]:
    status, reply = frontend.post("/v1/chat/completions", lab.chat_body(model, prompt, body), raise_error=False)
    return status, str(reply)


def completion_status(frontend: lab.Frontend, model: str, prompt, **body) -> tuple[int, str]:
    status, reply = frontend.post("/v1/completions", {"model": model, "prompt": prompt, **body}, raise_error=False)
    return status, str(reply)


def shows_reason(frontend: lab.Frontend) -> bool:
    """1.6 replaces a worker's text by a general one."""
    return lab.version_key(frontend.version) < (1, 6)


def completion_error(frontend: lab.Frontend) -> int:
    """Up to 1.0 an error item of a completion that is not streamed becomes a 500, whatever its code."""
    return 400 if lab.version_key(frontend.version) >= (1, 5) else 500


def test_prompt_longer_than_the_context(frontend):
    status, text = chat_status(frontend, "mock", TOO_LONG)
    assert status == 400, text


def test_completion_longer_than_the_context(frontend):
    status, text = completion_status(frontend, "mock", TOO_LONG)
    assert status in (400, completion_error(frontend)), text


@pytest.mark.parametrize("constraint", [
    {"guided_json": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    {"guided_regex": "[0-9]+"}, {"guided_choice": ["a", "b"]}, {"guided_grammar": 'root ::= "a"'}],
    ids=lambda c: next(iter(c)))
def test_guided_decoding_is_refused_by_name(frontend, model, constraint):
    status, text = chat_status(frontend, model, max_tokens=4, **constraint)
    assert status == 400, text
    if shows_reason(frontend):
        assert "guided_decoding" in text


def test_response_format_json(frontend):
    status, text = chat_status(frontend, "mock", max_tokens=4, response_format={"type": "json_object"})
    # 0.8 drops the member before the worker sees it.
    assert status == (200 if lab.version_key(frontend.version) < (1, 0) else 400), text


def test_several_choices_are_refused_by_name(frontend, model, since_1_5):
    if since_1_5 and model != "mock":
        return  # test_choices.py
    status, text = chat_status(frontend, model, n=2, temperature=1.0, max_tokens=4)
    assert status == 400, text
    if shows_reason(frontend):
        assert "n" in text
    assert completion_status(frontend, model, "abc", n=2, temperature=1.0)[0] == completion_error(frontend)


@pytest.mark.parametrize("identifier", [261, 49_999_999, 2**32 - 1])
def test_token_ids_outside_the_vocabulary(frontend, identifier):
    status, text = completion_status(frontend, "mock", [97, identifier], max_tokens=4)
    assert status == completion_error(frontend), text


def test_unknown_model(frontend):
    assert chat_status(frontend, "nobody")[0] == 404


def test_max_tokens_zero(frontend, since_1_5):
    status, reply = frontend.post("/v1/chat/completions", lab.chat_body("mock", "hi", {"max_tokens": 0}), raise_error=False)
    if since_1_5:
        assert status == 400  # by the frontend itself
        return
    assert status == 200, reply
    assert reply["choices"][0]["finish_reason"] == "length"
    assert not reply["choices"][0]["message"].get("content")


def test_error_of_a_stream(frontend):
    """Status 200 is on its way before the worker answers; the stream then carries the error and ends."""
    events = list(frontend.chat_stream("mock", "hi", n=2, temperature=1.0))
    assert any(event.event == "error" or "error" in (event.json or {}) for event in events), events
    assert not lab.text_of(iter(events))


def test_options_that_the_frontend_serves_are_no_error(frontend):
    for body in ({"user": "somebody"}, {"logit_bias": {"65": 1}}, {"metadata": {"a": "b"}}):
        assert chat_status(frontend, "mock", max_tokens=4, **body)[0] == 200, body


def test_worker_survives_many_errors(frontend, mock):
    before = mock.instances()
    for _ in range(20):
        assert chat_status(frontend, "mock", TOO_LONG)[0] == 400
    assert frontend.completion("mock", "abc", max_tokens=3)["choices"][0]["text"] == "abc"
    assert mock.instances() == before
    mock.wait_idle()
