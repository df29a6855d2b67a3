"""Several choices and log-probabilities of the prompt, through the frontends that know them."""

from __future__ import annotations

import math

import pytest

import dynamo_lab as lab

PROMPT = "Once upon a time"


@pytest.fixture
def frontend_1_5(frontend, since_1_5):
    if not since_1_5:
        pytest.skip("frontends before 1.5 mix the texts of choices")
    return frontend


def test_chat_with_two_choices(frontend_1_5):
    body = dict(n=2, temperature=1.0, seed=11, max_tokens=8, ignore_eos=True)
    reply = frontend_1_5.chat("smollm2", "Tell me a story", **body)
    choices = sorted(reply["choices"], key=lambda choice: choice["index"])
    assert [choice["index"] for choice in choices] == [0, 1]
    assert [choice["finish_reason"] for choice in choices] == ["length", "length"]
    texts = [choice["message"]["content"] for choice in choices]
    assert texts[0] != texts[1]
    assert reply["usage"]["completion_tokens"] == 16

    # Streamed they are the same, and the second one is what its seed gives alone.
    streamed = {0: "", 1: ""}
    finishes = []
    for event in frontend_1_5.chat_stream("smollm2", "Tell me a story", **body):
        for choice in (event.json or {}).get("choices", []):
            streamed[choice["index"]] += choice["delta"].get("content") or ""
            finishes += [choice["index"]] if choice.get("finish_reason") else []
    assert [streamed[0], streamed[1]] == texts
    assert sorted(finishes) == [0, 1]
    alone = frontend_1_5.chat("smollm2", "Tell me a story", **{**body, "n": 1, "seed": 12})
    assert alone["choices"][0]["message"]["content"] == texts[1]


def test_completion_with_more_choices_than_fit_at_once(frontend_1_5):
    reply = frontend_1_5.completion("smollm2", PROMPT, n=100, temperature=1.0, max_tokens=2, ignore_eos=True)
    assert sorted(choice["index"] for choice in reply["choices"]) == list(range(100))
    assert reply["usage"]["completion_tokens"] == 200


def test_cancelled_choices_leave_nothing(frontend_1_5, cluster):
    stream = frontend_1_5.chat_stream("smollm2", "Tell me a story", n=4, temperature=1.0, max_tokens=500, ignore_eos=True)
    next(iter(stream))
    stream.close()
    cluster.workers["smollm2"].wait_idle()


def test_prompt_logprobs(frontend_1_5):
    reply = frontend_1_5.chat("smollm2", "hello", max_tokens=2, temperature=0, prompt_logprobs=2,
                              nvext={"extra_fields": ["engine_data"]})
    scores = reply["nvext"]["engine_data"]["prompt_logprobs"]
    if lab.version_key(frontend_1_5.version) >= (1, 6):
        assert len(reply["prompt_logprobs"]) == len(scores)
    assert len(scores) == reply["usage"]["prompt_tokens"]
    assert scores[0] is None
    for entry in scores[1:]:
        assert 2 <= len(entry) <= 3
        assert all(value["logprob"] <= 0 and math.isfinite(value["logprob"]) for value in entry.values())
        assert {1, 2} <= {value.get("rank") for value in entry.values()}


def test_echo_is_served(frontend):
    """Frontends ask for prompt log-probabilities then, and show neither these nor the prompt."""
    reply = frontend.completion("smollm2", PROMPT, max_tokens=3, temperature=0, echo=True)
    assert reply["choices"][0]["finish_reason"] == "length"
