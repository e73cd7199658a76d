"""Ray Serve round the handlers, for AWS's Ray serving container (and `serve run config.yaml` anywhere).

The container's adapter posts SageMaker's requests to Ray's "/" and relays status and headers. It reports the
endpoint healthy as soon as Ray's proxy runs, before this model is loaded; requests that come early wait here.
"""

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from inference import model_fn
from server import MODEL_DIR, answer


@serve.deployment(max_ongoing_requests=32)
class Classifier:
    """One replica: one loaded model, which uses every core that the engine finds."""

    def __init__(self) -> None:
        self.model = model_fn(MODEL_DIR)

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        return await answer(self.model, request)


app = Classifier.bind()
