"""Asks a model as OpenAI's own client does, in every way that is served, and prints what came back.

    openai_client.py HOST:PORT MODEL
"""

import sys
import time

import openai

host, model = sys.argv[1:]


def connect(path="infer", name=model):
    return openai.OpenAI(
        base_url=f"http://{host}/v2/models/{name}/{path}", api_key="unused", max_retries=0, timeout=30
    )


client = connect()


def ask(content, **more):
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return client.chat.completions.create(model=model, messages=messages, **more)


def stream(content, **more):
    return ask(content, stream=True, **more)


def words(chunks):
    return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]


print("models:", [listed.id for listed in client.models.list()], client.models.retrieve(model).object)

answer = ask("hello", temperature=0.5, extra_body={"own": "option"})
print("chat:", answer.choices[0].message.content, "|", answer.choices[0].finish_reason, answer.usage.total_tokens)
print("it is:", answer.object, answer.model == model, answer.id.startswith("chatcmpl-"), abs(answer.created - time.time()) < 60)
parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "http://a/b.png"}}]
print("parts:", ask([{"role": "user", "content": parts}]).choices[0].message.content)
print("whole:", ask("whole").model, ask("whole").choices[0].message.content, ask("whole").choices[0].finish_reason)

tools = [{"type": "function", "function": {"name": "weigh", "parameters": {"type": "object", "properties": {}}}}]
choice = ask("a feather", tools=tools, tool_choice="auto", parallel_tool_calls=False).choices[0]
call = choice.message.tool_calls[0]
print("tool:", choice.finish_reason, choice.message.content, call.id, call.function.name, call.function.arguments)
talk = [
    {"role": "user", "content": "a feather"},
    choice.message,
    {"role": "tool", "tool_call_id": call.id, "content": "3 g"},
]
print("tool's answer:", ask(talk).choices[0].message.content)
deltas = [chunk.choices[0] for chunk in stream("a feather", tools=tools)]
call = deltas[0].delta.tool_calls[0]
print("tool, streamed:", call.index, call.function.name, call.function.arguments, deltas[-1].finish_reason)

chunks = list(stream("hello there", stream_options={"include_usage": True}))
print("stream:", words(chunks), [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1])
print("chunks are:", {chunk.object for chunk in chunks}, len({chunk.id for chunk in chunks}), chunks[-1].usage.total_tokens)

# The model says the second part only when it is told to, which can only happen once the first has come out.
events = stream("wait")
first = next(iter(events)).choices[0].delta.content
ask("go")
print("as they come:", [first, *words(events)])

# One that is left ends at the model too.
events = stream("leave")
next(iter(events))
events.close()
deadline = time.monotonic() + 30
while ask("left?").choices[0].message.content == "0" and time.monotonic() < deadline:
    time.sleep(0.05)
print("left:", ask("left?").choices[0].message.content)

with connect("infer_stream").chat.completions.stream(model=model, messages=[{"role": "user", "content": "joined by the client"}]) as joined:
    joined.until_done()
    print("path of streams:", joined.get_final_completion().choices[0].message.content)

print("completions:", [choice.text for choice in client.completions.create(model=model, prompt=["abc", "de"]).choices])
print("completions, streamed:", [chunk.choices[0].text for chunk in client.completions.create(model=model, prompt="abc", stream=True)])
for more in ({}, {"encoding_format": "float"}):
    answer = client.embeddings.create(model=model, input=["abcab", "z"], **more)
    print("embeddings:", [row.embedding for row in answer.data])
print("embeddings of numbers:", [row.embedding for row in client.embeddings.create(model=model, input=[[1, 2], [3, 4]]).data])
images = client.images.generate(model=model, prompt="a cat", n=2, size="256x256", response_format="url")
print("images:", [image.url for image in images.data])
print("large:", len(ask("x" * 5_000_000).choices[0].message.content))


def failure(what, asked):
    try:
        asked()
    except openai.APIStatusError as error:
        print(f"{what}:", type(error).__name__, error.status_code, error.type, error.code, error.param, "|", error.body["message"])
    except openai.APIError as error:
        print(f"{what}:", type(error).__name__, error.code, "|", error.message)
    else:
        print(f"{what}: nothing failed")


failure("refused by the model", lambda: ask("fail"))
failure("the model raised", lambda: ask("raise"))
failure("a stream that breaks", lambda: list(stream("break")))
failure("too large", lambda: ask("x" * 17_000_000))
failure("no messages", lambda: ask([]))
failure("another model", lambda: client.chat.completions.create(model="other", messages=[{"role": "user", "content": "a"}]))
ghost = connect(name="ghost")
failure("no such model", lambda: ghost.chat.completions.create(model="ghost", messages=[{"role": "user", "content": "a"}]))
