class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("the weights are of another model")

    def execute(self, requests):
        return []
