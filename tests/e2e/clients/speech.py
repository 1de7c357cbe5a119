"""Documentation, 8427-8454: sends a recording, prints the request's id, what was said and its sentiment.

    speech.py URL RESOURCE
"""

import base64
import json
import sys
import urllib.request

url, resource = sys.argv[1:]
# There is no microphone: the stand-in for the speech model takes the recording as text.
recording = base64.b64encode(b"Cambridge is a great place.").decode()
tensor = {"name": "args", "parameters": {"content_type": "base64"}, "data": [recording], "datatype": "BYTES", "shape": [1]}
request = urllib.request.Request(
    url,
    json.dumps({"inputs": [tensor]}).encode(),
    {"Content-Type": "application/json", "seldon-model": resource},
)
with urllib.request.urlopen(request) as response:
    sentiment, text = (output["data"][0] for output in json.load(response)["outputs"])
    print(response.headers["x-request-id"])
print(base64.b64decode(text))
print(base64.b64decode(sentiment))
