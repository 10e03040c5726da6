"""OpenAI's own client against a real server on a tiny base: what it sends is understood, and it reads what it gets."""

from collections.abc import Iterator

import openai
import pytest

from server.model.base import load_base
from server.model.chat import ChatFormat
from tests.support import tiny
from tests.support.server import RelayServer

QUESTION = "tell me about the fox"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayServer]:
    root = tmp_path_factory.mktemp("openai")
    folder = tiny.write_base(root / "tiny")
    chat = ChatFormat(load_base(str(folder), dtype="fp32", device="cpu", cache=root).tokenizer)
    adapter = tiny.write_adapter(root / "one", folder, kind="alora", invocation=chat.generation_prompt)
    flags = ("--dtype", "fp32", "--no-demo", "--kv-memory", "64MiB")
    with RelayServer(store=root / "store", base=str(folder), log=root / "log", flags=flags) as running:
        selecting = {"indicators": {"accept": "<<pos>>", "reject": "<<neg>>"}, "threshold": 0.001}
        running.register(adapter, "one", selecting)
        yield running


@pytest.fixture
def client(server: RelayServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("model", ["tiny", "one", "one@1", "relay/chain"])
def test_a_conversation_is_answered_and_streamed_alike(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], max_completion_tokens=20, temperature=0
    )
    text = whole.choices[0].message.content
    assert text
    assert whole.usage
    streamed = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        max_completion_tokens=20,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = streamed
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.usage == whole.usage


def test_a_conversation_goes_on_with_the_answer_as_it_came(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="one", messages=[{"role": "user", "content": QUESTION}], max_tokens=8)
    second = client.chat.completions.create(
        model="one",
        messages=[
            {"role": "user", "content": QUESTION},
            first.choices[0].message.model_dump(),  # type: ignore[list-item]
            {"role": "user", "content": "and then?"},
        ],
        max_tokens=8,
    )
    assert second.usage
    assert first.usage
    assert second.usage.prompt_tokens > first.usage.total_tokens


def test_raw_text_is_continued(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt=QUESTION, max_tokens=12, temperature=0)
    parts = client.completions.create(model="tiny", prompt=QUESTION, max_tokens=12, temperature=0, stream=True)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text


def test_models_are_listed_and_shown(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "relay/chain", "one"]
    assert client.models.retrieve("one@1").id == "one@1"


def test_mistakes_are_the_clients_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.UnprocessableEntityError, match="send 1 or nothing") as refused:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}], n=3)
    assert refused.value.param == "n"
