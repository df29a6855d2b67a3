"""Chat and completions through official frontends, streaming and not: text, usage, finish reasons, limits."""

from __future__ import annotations

import concurrent.futures

import pytest

import dynamo_lab as lab
from dynamo_lab.settings import VERSIONS

PROMPT = "The capital of France is"


def test_models_are_listed(frontend):
    assert sorted(frontend.models()) == ["mock", "smollm2"]
    endpoints = frontend.health()["endpoints"]
    assert any("mock.generate" in endpoint for endpoint in endpoints)
    assert any("native.generate" in endpoint for endpoint in endpoints)


def test_chat(frontend, model):
    reply = frontend.chat(model, "hello", max_tokens=6, ignore_eos=True, temperature=0)
    assert reply["choices"][0]["message"]["content"]
    assert reply["choices"][0]["finish_reason"] == "length"
    usage = reply["usage"]
    assert usage["completion_tokens"] == 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + 6


def test_chat_stream_gives_the_same_text(frontend, model):
    body = dict(max_tokens=12, ignore_eos=True, temperature=0)
    whole = frontend.chat(model, "hello", **body)
    events = list(frontend.chat_stream(model, "hello", stream_options={"include_usage": True}, **body))
    assert events[-1].data == "[DONE]"
    chunks = [event.json for event in events if event.json]
    assert lab.text_of(iter(events)) == whole["choices"][0]["message"]["content"]
    finishes = [choice.get("finish_reason") for chunk in chunks for choice in chunk["choices"]]
    assert [reason for reason in finishes if reason] == ["length"]
    usages = [c["usage"] for c in chunks if c.get("usage")]
    assert usages[-1]["completion_tokens"] == 12
    assert usages[-1]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert sum(1 for c in chunks if c["choices"] and c["choices"][0]["delta"].get("content")) >= 6, "it must stream"


def test_completion_and_its_stream(frontend, model):
    body = dict(max_tokens=10, ignore_eos=True, temperature=0)
    reply = frontend.completion(model, PROMPT, **body)
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 10
    stream = frontend.stream("/v1/completions", {"model": model, "prompt": PROMPT, "stream": True, **body})
    assert lab.text_of(stream) == reply["choices"][0]["text"]


def test_all_releases_give_the_same_greedy_text(cluster, model):
    texts = {version: frontend.completion(model, PROMPT, max_tokens=16, temperature=0)["choices"][0]["text"]
             for version, frontend in cluster.frontends.items()}
    assert len(set(texts.values())) == 1, texts


def test_real_model_knows_paris(frontend):
    assert "Paris" in frontend.completion("smollm2", PROMPT, max_tokens=8, temperature=0)["choices"][0]["text"]


def test_completion_echoes_its_tokens(frontend):
    """Token for token through the whole path, as text and as token ids."""
    assert frontend.completion("mock", "abc", max_tokens=8)["choices"][0]["text"] == "abcabcab"
    reply = frontend.completion("mock", [120, 121], max_tokens=5)
    assert reply["choices"][0]["text"] == "xyxyx"
    assert reply["usage"] | {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7} == reply["usage"]


def test_several_prompts(frontend):
    reply = frontend.completion("mock", ["ab", "xyz"], max_tokens=4)
    assert {choice["index"]: choice["text"] for choice in reply["choices"]} == {0: "abab", 1: "xyzx"}


def test_multi_byte_text_is_never_broken(frontend):
    prompt = "naïve 🙂 日本語 "
    length = len(prompt.encode())
    stream = frontend.stream("/v1/completions", {"model": "mock", "prompt": prompt, "max_tokens": 2 * length, "stream": True})
    assert lab.text_of(stream) == 2 * prompt


def test_natural_end(frontend):
    """The echo of a chat prompt contains the end token: the worker stops there and does not show it."""
    reply = frontend.chat("mock", "hello")
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["choices"][0]["message"]["content"].endswith("hello")
    assert "</s>" not in reply["choices"][0]["message"]["content"]


def test_natural_end_of_real_model(frontend):
    reply = frontend.chat("smollm2", "Answer with one word: what is the capital of France?", max_tokens=200, temperature=0)
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert "<|im_end|>" not in reply["choices"][0]["message"]["content"]


def test_min_tokens_delays_the_end(frontend):
    plain = frontend.chat("mock", "hi")["usage"]["completion_tokens"]
    delayed = frontend.chat("mock", "hi", min_tokens=plain + 2)["usage"]["completion_tokens"]
    assert delayed > plain + 1


def test_ignore_eos(frontend):
    reply = frontend.chat("mock", "hi", ignore_eos=True, max_tokens=30)
    assert reply["usage"]["completion_tokens"] == 30
    assert reply["choices"][0]["finish_reason"] == "length"


def test_without_max_tokens_the_context_is_the_limit(frontend, mock):
    reply = frontend.completion("mock", "abc")
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 512 - 3
    mock.wait_idle()


def test_stop_string(frontend, model, since_1_5):
    body = dict(max_tokens=24, temperature=0)  # with ignore_eos frontends drop the stop strings
    text = frontend.completion(model, PROMPT, **body)["choices"][0]["text"]
    stop = text.split()[2]
    reply = frontend.completion(model, PROMPT, stop=[stop], **body)["choices"][0]
    if since_1_5:
        assert reply["text"] == text[:text.index(stop)]
    else:  # older frontends have already sent the tokens that only begin the stop string
        assert text[:text.index(stop) + len(stop) - 1].startswith(reply["text"])
        assert len(reply["text"]) >= text.index(stop)
    assert reply["finish_reason"] == "stop"
    kept = frontend.completion(model, PROMPT, stop=[stop], include_stop_str_in_output=True, **body)["choices"][0]
    assert kept["text"] == text[:text.index(stop) + len(stop)]


def test_stop_string_ends_the_work_of_the_engine(frontend, mock):
    frontend.completion("mock", "abcd", stop=["d"], max_tokens=500)
    mock.wait_idle()


def test_stop_token_ids(frontend, since_1_5):
    body = {"model": "mock", "prompt": "abcd", "stop_token_ids": [ord("c")], "max_tokens": 20}
    status, reply = frontend.post("/v1/completions", body, raise_error=False)
    if not since_1_5:
        assert status == 400  # by the frontend itself
        return
    assert reply["choices"][0]["text"] == "ab"
    assert reply["choices"][0]["finish_reason"] == "stop"


def test_one_choice_asked_for(frontend, model):
    assert len(frontend.chat(model, "hello", n=1, max_tokens=3, ignore_eos=True)["choices"]) == 1


def test_chat_logprobs(frontend, model):
    reply = frontend.chat(model, "hello", max_tokens=5, ignore_eos=True, temperature=0, logprobs=True, top_logprobs=3)
    entries = reply["choices"][0]["logprobs"]["content"]
    assert len(entries) == 5
    for entry in entries:
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) >= 3
        best = [alternative["logprob"] for alternative in entry["top_logprobs"]]
        assert best == sorted(best, reverse=True)


def test_greedy_token_is_the_best_alternative(frontend):
    reply = frontend.chat("smollm2", "hello", max_tokens=5, ignore_eos=True, temperature=0, logprobs=True, top_logprobs=2)
    for entry in reply["choices"][0]["logprobs"]["content"]:
        assert entry["logprob"] == pytest.approx(entry["top_logprobs"][0]["logprob"], abs=1e-6)


def test_completion_logprobs(frontend, model):
    reply = frontend.completion(model, PROMPT, max_tokens=4, ignore_eos=True, temperature=0, logprobs=2)
    assert len(reply["choices"][0]["logprobs"]["token_logprobs"]) == 4


def test_seed_repeats_and_seeds_differ(frontend):
    def sample(seed: int) -> str:
        return frontend.completion("smollm2", "Once upon a time", max_tokens=16, temperature=1.0, top_p=0.95,
                                   seed=seed, ignore_eos=True)["choices"][0]["text"]
    assert sample(7) == sample(7)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_prefix_is_reused(frontend):
    prompt = f"For the frontend of release {frontend.version}: " + "count one two three four five six seven. " * 12
    first = frontend.completion("smollm2", prompt, max_tokens=2, temperature=0)
    again = frontend.completion("smollm2", prompt, max_tokens=2, temperature=0)
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32


def test_parallel_streams_are_not_mixed_up(frontend):
    prompts = [f"<{number:02}>" for number in range(32)]

    def ask(prompt: str) -> str:
        return lab.text_of(frontend.stream("/v1/completions", {"model": "mock", "prompt": prompt, "max_tokens": 40,
                                                               "stream": True}))
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(ask, prompts)) == [10 * prompt for prompt in prompts]


@pytest.mark.skipif(len(VERSIONS) < 2, reason="needs two releases")
def test_two_releases_at_the_same_time(cluster):
    with concurrent.futures.ThreadPoolExecutor(len(VERSIONS)) as pool:
        replies = pool.map(lambda fe: fe.completion("smollm2", PROMPT, max_tokens=12, temperature=0),
                           cluster.frontends.values())
    assert len({reply["choices"][0]["text"] for reply in replies}) == 1
