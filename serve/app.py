"""Ray Serve around the handlers, for AWS's Ray serving container (and `serve run config.yaml` anywhere).

The container's adapter forwards SageMaker's requests to Ray's "/" and relays status and headers. It reports
the endpoint healthy as soon as Ray's proxy runs, before this model is loaded; early requests wait in Ray.
"""

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from inference import model_fn, warm_up
from server import MODEL_DIR, REQUEST_SLOTS, answer, return_large_blocks


# More than `answer` has slots for, so that the others get the contract's 503 and not Ray's own.
@serve.deployment(num_replicas=1, max_ongoing_requests=4 * REQUEST_SLOTS)
class Classifier:
    """The only replica: its engine uses every core already, a second one would compete with it."""

    def __init__(self) -> None:
        return_large_blocks()
        self.model, self.suspect = model_fn(MODEL_DIR), False

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        response = await answer(self.model, request)
        self.suspect |= response.status_code == 500
        return response

    def check_health(self) -> None:
        """Ray calls this every 10 s and replaces a replica that raises; it warms up again after a 500."""
        if self.suspect:
            warm_up(self.model)
            self.suspect = False


app = Classifier.bind()  # type: ignore[attr-defined]  # ray types the decorated class as itself
