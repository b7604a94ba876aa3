"""Does through each gateway what users of the `openai` package do, and checks the answers.

    openai_client.py [--model NAME] [--skip embeddings] URL [URL …]

Prints one line for each check and gateway; exit 1 when one failed. Retries of the client are off: a gateway that needs them fails.
"""

import argparse
import math
import sys
import time

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


CHECKS = [models, chat, stream, embeddings, unknown_model]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("urls", nargs="+", metavar="URL", help="base URL of a gateway, without /v1")
    parser.add_argument("--model", default="sim")
    parser.add_argument("--skip", action="append", default=[], choices=[check.__name__ for check in CHECKS])
    args = parser.parse_args()
    failed = 0
    for url in args.urls:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        for check in CHECKS:
            if check.__name__ in args.skip:
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
