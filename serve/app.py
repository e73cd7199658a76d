"""Ray Serve round the handlers, for AWS's Ray serving container (and `serve run config.yaml` anywhere).

The container's adapter posts SageMaker's requests to Ray's "/" and relays status and headers. It reports the
endpoint healthy as soon as Ray's proxy runs, before this model is loaded; requests that come early wait here.
"""

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from inference import model_fn, warm_up
from server import MODEL_DIR, PLACES, answer


# Ray hands on more than the PLACES that `answer` has, so that the rest hears "busy" in the contract's words.
@serve.deployment(num_replicas=1, max_ongoing_requests=4 * PLACES)
class Classifier:
    """The one replica: its engine uses every core already, and a second one would be in its way."""

    def __init__(self) -> None:
        self.model, self.suspect = model_fn(MODEL_DIR), False

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        response = await answer(self.model, request)
        self.suspect |= response.status_code == 500
        return response

    def check_health(self) -> None:
        """Ray asks every 10 s, and replaces a replica that raises: after a failure it must prove itself."""
        if self.suspect:
            warm_up(self.model)
            self.suspect = False


app = Classifier.bind()
