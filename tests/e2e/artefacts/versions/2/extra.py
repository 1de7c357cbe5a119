import json

import mlserver
from mlserver.codecs import StringCodec
from mlserver.types import InferenceResponse


# Over several lines, and with its settings left to the agent.
class Extra(
    mlserver.MLModel,
):
    """Answers with what it was given in `parameters.extra`."""

    async def predict(self, payload):
        extra = json.dumps(self.settings.parameters.extra, sort_keys=True)
        output = StringCodec.encode_output("extra", [extra])
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])
