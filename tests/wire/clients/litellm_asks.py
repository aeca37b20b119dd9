"""Asks all that LiteLLM's SDK can, and prints what came of it as one JSON object.

Run with a Python that has LiteLLM; nothing of ours is imported but what is asked for.

    litellm_asks.py WANTED     all questions; WANTED is a JSON object, see `test_litellm`
    litellm_asks.py WANTED leave    begins an endless stream, says "begun", leaves it, says "left"
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

# Else it fetches a list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

WANTED: dict[str, Any] = json.loads(sys.argv[1])
ASKED = [{"role": "user", "content": WANTED["question"]}]


def chat(model: str, **more: Any) -> Any:
    asked = {"messages": ASKED, "max_tokens": 8, "temperature": 0, "api_key": "any", **more}
    return litellm.completion(
        model=f"openai/{model}", api_base=WANTED["v1"], num_retries=0, max_retries=0, **asked
    )


def plain() -> Any:
    answer = chat("gpt-4o")
    return {
        "text": answer.choices[0].message.content,
        "model": answer.model,
        "tokens": answer.usage.completion_tokens,
    }


def streamed() -> Any:
    text, tokens = "", 0
    for piece in chat("tiny", stream=True, stream_options={"include_usage": True}):
        if piece.choices:
            text += piece.choices[0].delta.content or ""
        if getattr(piece, "usage", None):
            tokens = piece.usage.completion_tokens
    return {"text": text, "tokens": tokens}


def _calls(message: Any) -> list[Any]:
    return [[call.function.name, call.function.arguments] for call in message.tool_calls or ()]


def _several(ask: Callable[[int], Any]) -> Any:
    for seed in range(WANTED["attempts"]):
        choice = ask(seed).choices[0]
        # One that the limit cut has a call that is none.
        if choice.finish_reason == "tool_calls" and len(calls := _calls(choice.message)) > 1:
            return calls
    return []


def _tools(seed: int, **more: Any) -> Any:
    wanted = {"tools": WANTED["tools"], "tool_choice": "required", "parallel_tool_calls": True}
    return chat(WANTED["tools_model"], **wanted, seed=seed, temperature=0.8, max_tokens=600, **more)


def tools() -> Any:
    return _several(_tools)


def tools_streamed() -> Any:
    def ask(seed: int) -> Any:
        pieces = [*_tools(seed, stream=True)]
        return litellm.stream_chunk_builder(pieces, messages=ASKED)

    return _several(ask)


def tool_named() -> Any:
    choice = {"type": "function", "function": {"name": "get_time"}}
    answer = chat(WANTED["tools_model"], tools=WANTED["tools"], tool_choice=choice, max_tokens=600)
    return _calls(answer.choices[0].message)


def formed() -> Any:
    schema = {"name": "person", "strict": True, "schema": WANTED["schema"]}
    wanted = {"type": "json_schema", "json_schema": schema}
    answer = chat("tiny", response_format=wanted, max_tokens=600)
    return json.loads(answer.choices[0].message.content)


def logprobs() -> Any:
    answer = chat("tiny", logprobs=True, top_logprobs=2)
    return [len(token.top_logprobs) for token in answer.choices[0].logprobs.content]


def completions() -> Any:
    answer = litellm.text_completion(
        model="text-completion-openai/tiny", prompt="import", max_tokens=4,
        api_base=WANTED["v1"], api_key="any",
    )  # fmt: skip
    return answer.choices[0].text


def embeddings() -> Any:
    answer = litellm.embedding(
        model="openai/embed", input=["one", "two"], api_base=WANTED["v1"], api_key="any",
        encoding_format="float",
    )  # fmt: skip
    return [len(one["embedding"]) for one in answer.data]


def rerank() -> Any:
    # It has no reranker of OpenAI's kind; Jina's speaks as llama-server does.
    answer = litellm.rerank(
        model="jina_ai/rank", query="weather", documents=["a", "b"], api_key="any",
        api_base=WANTED["v1"] + "/rerank",
    )  # fmt: skip
    return sorted(one["index"] for one in answer.results)


def responses() -> Any:
    answer = litellm.responses(
        model="openai/tiny", input=WANTED["question"], max_output_tokens=8,
        api_base=WANTED["v1"], api_key="any",
    )  # fmt: skip
    return answer.output[-1].content[0].text


def messages() -> Any:
    """Anthropic's protocol."""
    answer = litellm.completion(
        model="anthropic/tiny", messages=ASKED, max_tokens=8, temperature=0,
        api_base=WANTED["base"], api_key="any", num_retries=0,
    )  # fmt: skip
    return answer.choices[0].message.content


def messages_streamed() -> Any:
    pieces = litellm.completion(
        model="anthropic/tiny", messages=ASKED, max_tokens=8, temperature=0, stream=True,
        api_base=WANTED["base"], api_key="any", num_retries=0,
    )  # fmt: skip
    return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)


def auto() -> Any:
    return chat("auto", tools=WANTED["tools"]).model


def picture() -> Any:
    url = f"data:image/png;base64,{WANTED['pixel']}"
    part = {"type": "image_url", "image_url": {"url": url}}
    return chat("tiny", messages=[{"role": "user", "content": [part]}])


def unknown_model() -> Any:
    return chat("gpt-9")


def too_long() -> Any:
    return chat("tiny", messages=[{"role": "user", "content": "word " * WANTED["context"]}])


def failed() -> Any:
    return chat("failed")


def stranger() -> Any:
    return chat("tiny", api_key="wrong", extra_headers=WANTED["from_elsewhere"])


def spent() -> Any:
    for _ in range(2):
        answer = chat("tiny", api_key=WANTED["spent"], extra_headers=WANTED["from_elsewhere"])
    return answer


def breaks() -> Any:
    return [*chat("breaks", stream=True, max_tokens=4000, extra_body={"ignore_eos": True})]


def leave() -> None:
    stream = chat("tiny", stream=True, max_tokens=8000, extra_body={"ignore_eos": True})
    next(iter(stream))
    print("begun", flush=True)
    sys.stdin.readline()
    stream.completion_stream.close()
    print("left", flush=True)
    sys.stdin.readline()


QUESTIONS = (
    plain, streamed, tools, tools_streamed, tool_named, formed, logprobs, completions, embeddings,
    rerank, responses, messages, messages_streamed, auto, picture, unknown_model, too_long, failed,
    stranger, spent, breaks,
)  # fmt: skip


def asked(question: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"answer": question()}
    except Exception as error:
        return {
            "raised": [kind.__name__ for kind in type(error).__mro__],
            "status": getattr(error, "status_code", None),
            "said": str(error),
        }


if __name__ == "__main__":
    if sys.argv[2:] == ["leave"]:
        leave()
    else:
        print(json.dumps({one.__name__: asked(one) for one in QUESTIONS}, default=str))
