"""Other models than the session's: architectures, sharded weights, names in the Hugging Face cache."""

from __future__ import annotations

import pathlib

import pytest

from dynamo_lab.settings import MODELS, VERSIONS
from dynamo_lab.worker import Worker


def random_model(name: str) -> pathlib.Path:
    path = MODELS / name
    if not (path / "config.json").is_file():
        pytest.fail(f"no model in {path}: run scripts/models --all")
    return path


def text_of_model(box, *flags, prompt: str = "hello", name: str = "m", **options) -> str:
    store = box.file_store(f"store-{len(list(box.dir.iterdir()))}")
    worker = Worker(box, store, *flags, served_model_name=name, **options).wait_ready()
    frontend = box.frontend(VERSIONS[-1], store).wait_model(name)
    try:
        reply = frontend.completion(name, prompt, max_tokens=12, temperature=0, ignore_eos=True)
        assert reply["usage"]["completion_tokens"] == 12
        return reply["choices"][0]["text"]
    finally:
        frontend.stop()
        assert worker.process.stop() == 0


@pytest.mark.parametrize("model", ["llama3", "qwen3"])
def test_architecture(box, model):
    assert text_of_model(box, "--model", random_model(f"random/{model}"))


def test_sharded_weights_are_the_same_model(box):
    assert text_of_model(box, "--model", random_model("random-sharded/qwen3")) \
        == text_of_model(box, "--model", random_model("random/qwen3"))


def test_name_in_the_hugging_face_cache(box, tmp_path):
    """The layout that huggingface_hub leaves: refs/main names a snapshot."""
    repository = tmp_path / "hub" / "models--somebody--little"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(random_model("random/qwen3"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    assert text_of_model(box, "--model", "somebody/little", env={"HF_HUB_CACHE": str(tmp_path / "hub")})
    assert text_of_model(box, "--model", "somebody/little", env={"HF_HOME": str(tmp_path), "HF_HUB_CACHE": ""})


def test_model_is_called_by_its_path_without_a_name(box, store):
    model = random_model("random/qwen3")
    Worker(box, store, "--model", model).wait_ready()
    box.frontend(VERSIONS[-1], store).wait_model(str(model))
