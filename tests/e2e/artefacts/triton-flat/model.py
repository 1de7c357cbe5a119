"""No version folder and no config.pbtxt: Triton asks the model for its tensors."""

import triton_python_backend_utils as pb


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "INPUT", "data_type": "TYPE_INT32", "dims": [2]})
        config.add_output({"name": "OUTPUT", "data_type": "TYPE_INT32", "dims": [2]})
        config.set_max_batch_size(0)
        return config

    def execute(self, requests):
        doubled = lambda request: pb.get_input_tensor_by_name(request, "INPUT").as_numpy() * 2
        return [pb.InferenceResponse([pb.Tensor("OUTPUT", doubled(request))]) for request in requests]
