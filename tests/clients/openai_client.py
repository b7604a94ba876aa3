"""Does through each gateway what users of the `openai` package do, and checks the answers.

    openai_client.py [--model NAME] [--skip NAME] [--worker URL] URL [URL …]

Prints one line for each check and gateway; exit 1 when one failed. Retries of the client are off: a gateway that needs them fails. The
exception is the check `retries`, for which `--worker` names simulated workers that are told to answer 429.
"""

import argparse
import asyncio
import json
import math
import sys
import time
import urllib.request

import openai

PROMPT = [{"role": "user", "content": "hello, gateway"}]


def models(client, model):
    ids = [each.id for each in client.models.list()]
    assert model in ids, f"{model} is not among {ids}"
    return f"{len(ids)} models"


def chat(client, model):
    answer = client.chat.completions.create(model=model, messages=PROMPT, max_tokens=8)
    choice = answer.choices[0]
    assert choice.message.role == "assistant", answer
    assert choice.finish_reason in ("stop", "length"), answer
    assert answer.usage.completion_tokens > 0 and answer.usage.prompt_tokens > 0, answer
    return f"{answer.usage.completion_tokens} tokens"


def stream(client, model):
    chunks = list(client.chat.completions.create(model=model, messages=PROMPT, max_tokens=8, stream=True,
                                                 stream_options={"include_usage": True}))
    finishes = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    usage = [chunk.usage for chunk in chunks if chunk.usage]
    assert len(finishes) == 1, f"{len(finishes)} finish reasons"
    assert usage and usage[-1].completion_tokens > 0, "no usage at the end"
    return f"{len(chunks)} chunks"


def completion(client, model):
    answer = client.completions.create(model=model, prompt="hello", max_tokens=4)
    assert answer.choices[0].text and answer.usage.completion_tokens > 0, answer
    return f"{answer.usage.completion_tokens} tokens"


def responses(client, model):
    """Made, continued, read and deleted, each as any of the gateways may get it."""
    made = client.responses.create(model=model, input="hello")
    assert made.status == "completed" and made.output_text, made
    with client.responses.create(model=model, input="hello", stream=True) as events:
        events = list(events)
    assert events[0].type == "response.created" and events[-1].type == "response.completed", [e.type for e in events]
    streamed = events[0].response.id
    more = client.responses.create(model=model, input="and", previous_response_id=made.id)
    for every in everywhere(client):
        for name in (made.id, streamed, more.id):
            assert every.responses.retrieve(name).id == name
    other = everywhere(client)[-1]
    other.responses.cancel(streamed)
    for name in (made.id, streamed, more.id):
        other.responses.delete(name)
    try:
        client.responses.retrieve(made.id)
    except openai.NotFoundError:
        return f"{len(events)} events, read at {len(everywhere(client))} gateways"
    raise AssertionError("a deleted response was answered")


def asynchronous(client, model):
    """Thirty-two at a time, streams among them, over one client."""
    async def one(client, n):
        if n % 2:
            answer = await client.chat.completions.create(model=model, messages=PROMPT, max_tokens=8)
            return answer.usage.completion_tokens
        chunks = await client.chat.completions.create(model=model, messages=PROMPT, max_tokens=8, stream=True)
        finishes = [c.finish_reason async for chunk in chunks for c in chunk.choices if c.finish_reason]
        assert len(finishes) == 1, finishes
        return 1

    async def run():
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0, timeout=60) as many:
            return await asyncio.gather(*(one(many, n) for n in range(32)))

    counts = asyncio.run(run())
    assert all(counts), counts
    return f"{len(counts)} requests"


def left_early(client, model):
    """A stream that is given up, and the same client goes on."""
    chunks = client.chat.completions.create(model=model, messages=PROMPT, max_tokens=64, stream=True)
    next(iter(chunks))
    chunks.close()
    return chat(client, model)


def retries(client, model):
    """Every worker says 429 once and when to come again: the client does, and sees no error."""
    for url in WORKERS:
        arm(url, ["429:first-1"])
    try:
        again = client.with_options(max_retries=len(WORKERS))
        raw = again.chat.completions.with_raw_response.create(model=model, messages=PROMPT, max_tokens=4)
        assert raw.status_code == 200 and raw.retries_taken >= 1, f"{raw.retries_taken} retries"
        return f"{raw.retries_taken} retries"
    finally:
        for url in WORKERS:
            arm(url, [])


def arm(url, faults):
    data = json.dumps({"faults": faults}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{url}/sim/faults", data), timeout=5).read()


GATEWAYS, WORKERS = [], []


def everywhere(client):
    return [client.with_options(base_url=f"{url}/v1") for url in GATEWAYS]


def embeddings(client, model):
    # The package asks for base64 and decodes it.
    answer = client.embeddings.create(model=model, input=["one text", "another"])
    assert [each.index for each in answer.data] == [0, 1], answer
    for each in answer.data:
        norm = math.sqrt(sum(v * v for v in each.embedding))
        assert abs(norm - 1) < 1e-3, f"norm {norm}"
    assert answer.data[0].embedding != answer.data[1].embedding
    return f"{len(answer.data[0].embedding)} dimensions"


def unknown_model(client, model):
    try:
        client.chat.completions.create(model=f"no-{model}", messages=PROMPT)
    except openai.NotFoundError as error:
        assert error.code == "model_not_found", error
        return "404 model_not_found"
    raise AssertionError("an unknown model was answered")


CHECKS = [models, chat, stream, completion, responses, asynchronous, left_early, retries, embeddings, unknown_model]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("urls", nargs="+", metavar="URL", help="base URL of a gateway, without /v1")
    parser.add_argument("--model", default="sim")
    parser.add_argument("--skip", action="append", default=[], choices=[check.__name__ for check in CHECKS])
    parser.add_argument("--worker", action="append", default=[], metavar="URL", help="a simulated worker of the model")
    args = parser.parse_args()
    GATEWAYS.extend(args.urls)
    WORKERS.extend(args.worker)
    failed = 0
    for url in args.urls:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        for check in CHECKS:
            if check.__name__ in args.skip or check is retries and not WORKERS:
                continue
            started = time.monotonic()
            try:
                outcome = check(client, args.model)
                word = "ok  "
            except Exception as error:  # Whatever went wrong is this check's result.
                outcome, word, failed = f"{type(error).__name__}: {error}", "FAIL", failed + 1
            print(f"{word} {args.model:6} {url:24} {check.__name__:14} {(time.monotonic() - started) * 1000:6.0f} ms  {outcome}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
