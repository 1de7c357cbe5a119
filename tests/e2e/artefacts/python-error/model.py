"""Cannot be loaded."""

from mlserver import MLModel


class Failing(MLModel):
    async def load(self) -> bool:
        raise ValueError("these weights do not fit")
