"""Speaks the tensors that OpenAI's API becomes: repeats what chats say, and does what some of them ask for."""

import asyncio
import json

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse


class Chat(MLModel):
    async def load(self) -> bool:
        self.go = asyncio.Event()
        self.left = 0
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = {i.name: i for i in payload.inputs}
        if "input" in inputs:
            return self.response(self.embeddings(inputs["input"]))
        if "prompt" in inputs:
            return self.response(self.completions(texts(inputs["prompt"]), options(payload)))
        return self.response(self.chat({name: texts(i) for name, i in inputs.items()}, options(payload)))

    async def predict_stream(self, payloads):
        payload = await payloads.__anext__()
        inputs = {i.name: texts(i) for i in payload.inputs}
        if "prompt" in inputs:
            for letter in inputs["prompt"][0]:
                yield self.response({"text": [letter]})
            return
        asked = inputs["content"][-1]
        if asked in ("wait", "leave", "break"):
            yield self.response({"role": ["assistant"], "content": ["first"]})
            if asked == "break":
                raise ValueError("asked to break")
            try:
                # Until another request says so; a client that leaves ends it.
                await self.go.wait()
            except BaseException:
                self.left += 1
                raise
            self.go.clear()
            yield self.response({"role": ["assistant"], "content": [" second"]})
            return
        said = self.chat(inputs, options(payload))
        if "tool_calls" in said:
            yield self.response(said)
            return
        words = said["content"][0].split(" ")
        for at, word in enumerate(words):
            yield self.response({"role": ["assistant"], "content": [word if at == 0 else " " + word]})
        yield self.response({"usage": said["usage"]})

    def chat(self, inputs, given):
        role, content, kind = (inputs[name][-1] for name in ("role", "content", "type"))
        if content == "fail":
            raise InferenceError("asked to fail")
        if content == "raise":
            raise ValueError("asked to raise")
        if content == "go":
            self.go.set()
        if content == "left?":
            return said(str(self.left))
        if content == "whole":
            choice = {"index": 0, "message": {"role": "assistant", "content": "of my own"}, "finish_reason": "length"}
            return {"output_all": [json.dumps({"model": "inner", "choices": [choice]}, indent=1)]}
        if role == "user" and "tools" in inputs:
            function = json.loads(inputs["tools"][0])["function"]["name"]
            call = {"id": "call_1", "type": "function"}
            call["function"] = {"name": function, "arguments": json.dumps({"of": content})}
            return {"role": ["assistant"], "content": [""], "tool_calls": [json.dumps([call])]}
        if role == "tool":
            asked = json.loads(inputs["tool_calls"][-2])[0]["function"]["name"]
            return said(f"{asked} said {content} to {inputs['tool_call_id'][-1]}")
        if kind != "text":
            parts = json.loads(content)
            return said(f"{kind}: {parts[1]['image_url']['url']}")
        return said(" ".join([f"{role}: {content}", *(f"{name}={given[name]}" for name in sorted(given))]))

    def completions(self, prompts, given):
        if "size" in given:
            return {"url": [f"http://images/{given['size']}/{n}" for n in range(given["n"])]}
        return {"text": [prompt[::-1] for prompt in prompts], "finish_reason": ["stop"] * len(prompts)}

    def embeddings(self, given):
        if given.datatype == "INT64":
            return NumpyCodec.encode_output("embedding", NumpyCodec.decode_input(given) / 2)
        rows = [[len(text), *(text.count(letter) / 4 for letter in "abc")] for text in texts(given)]
        return NumpyCodec.encode_output("embedding", np.array(rows, np.float64))

    def response(self, outputs) -> InferenceResponse:
        if isinstance(outputs, dict):
            outputs = [StringCodec.encode_output(name, data) for name, data in outputs.items()]
        else:
            outputs = [outputs]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)


def said(content):
    used = {"prompt_tokens": 1, "completion_tokens": len(content.split()), "total_tokens": 1 + len(content.split())}
    return {"role": ["assistant"], "content": [content], "type": ["text"], "usage": [json.dumps(used)]}


def texts(tensor):
    return StringCodec.decode_input(tensor)


def options(payload):
    return getattr(payload.parameters, "llm_parameters", None) or {}
