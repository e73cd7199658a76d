"""A process that runs moto, the library that imitates AWS's API: `python moto_server.py` prints its port.

`POST /fake-aws/<function>` calls a function of FUNCTIONS with a JSON object: what fake_aws_answers.py reads
and changes of moto's own state. `POST /fake-aws/fork` makes another such process whose account has the same
contents. Requests are answered one after another, because moto locks nothing and a process with threads
cannot be forked safely. All these processes end when stdin is closed, so that they never outlive the tests
that started them, even if those are killed.
"""

import gc
import json
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import moto.backends
from moto.applicationautoscaling.models import applicationautoscaling_backends
from moto.cloudwatch.models import cloudwatch_backends
from moto.core.models import DEFAULT_ACCOUNT_ID as ACCOUNT
from moto.ecr.models import ecr_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.sagemaker.models import FakeEndpointConfig, sagemaker_backends
from werkzeug.serving import BaseWSGIServer, make_server
from werkzeug.wrappers import Request, Response

PREFIX = "/fake-aws/"
REGION = "eu-west-1"


def sagemaker_state() -> dict[str, Any]:
    """Everything that SageMaker has, by name: the fields that the stand-in's answers depend on."""
    backend = sagemaker_backends[ACCOUNT][REGION]
    configs = {
        name: {"async_inference_config": config.async_inference_config}
        for name, config in backend.endpoint_configs.items()
    }
    endpoints = {
        name: {
            "arn": endpoint.arn,
            "endpoint_config_name": endpoint.endpoint_config_name,
            "endpoint_status": endpoint.endpoint_status,
        }
        for name, endpoint in backend.endpoints.items()
    }
    jobs = {name: {"status": job.transform_job_status} for name, job in backend.transform_jobs.items()}
    return {"models": list(backend._models), "configs": configs, "endpoints": endpoints, "jobs": jobs}


def set_endpoint(name: str, **attributes: str | None) -> None:
    """Set attributes of an endpoint: endpoint_status, failure_reason."""
    vars(sagemaker_backends[ACCOUNT][REGION].endpoints[name]).update(attributes)


def switch_endpoint(name: str, config: str) -> None:
    """Let an endpoint serve another configuration."""
    backend = sagemaker_backends[ACCOUNT][REGION]
    endpoint, variants = backend.endpoints[name], backend.endpoint_configs[config].production_variants
    endpoint.endpoint_config_name = config
    endpoint.production_variants = endpoint._process_production_variants(variants)


def remove_endpoint(name: str) -> None:
    """Delete an endpoint at once."""
    del sagemaker_backends[ACCOUNT][REGION].endpoints[name]


def set_transform_job(name: str, **attributes: str | None) -> None:
    """Set attributes of a batch transform job: transform_job_status, failure_reason."""
    vars(sagemaker_backends[ACCOUNT][REGION].transform_jobs[name]).update(attributes)


def alarm_names() -> list[str]:
    """The names of CloudWatch's alarms."""
    return [alarm.name for alarm in cloudwatch_backends[ACCOUNT][REGION].alarms.values()]


def remove_scaling_policies(resource_id: str) -> None:
    """Delete the scaling policies of a resource."""
    policies = applicationautoscaling_backends[ACCOUNT][REGION].policies
    for name in [name for name, policy in policies.items() if policy.resource_id == resource_id]:
        del policies[name]


def add_scan_result(result: dict[str, Any]) -> None:
    """Queue what ECR's next scan of an image finds."""
    ecr_backends[ACCOUNT][REGION].scan_finding_results.append(result)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        sagemaker_state,
        set_endpoint,
        switch_endpoint,
        remove_endpoint,
        set_transform_job,
        alarm_names,
        remove_scaling_policies,
        add_scan_result,
    )
}


class Handler(MotoRequestHandler):
    """Without a line per request."""

    def log(self, *args: object) -> None:
        pass


class Account:
    """WSGI: moto, with what this file adds."""

    def __init__(self) -> None:
        # moto's list of instance types is old.
        FakeEndpointConfig.validate_instance_type = lambda *_: None  # type: ignore[method-assign]
        services = frozenset(moto.backends.list_of_moto_modules())  # moto lists its folder at every request
        moto.backends.list_of_moto_modules = lambda: services
        self.aws = DomainDispatcherApplication(create_backend_app)
        self.server = self.listen()

    def listen(self) -> BaseWSGIServer:
        """A server on a free port."""
        return make_server("127.0.0.1", 0, self, request_handler=Handler)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """The response to one request."""
        name = environ["PATH_INFO"]
        if not name.startswith(PREFIX):
            return self.aws(environ, start_response)
        if name == f"{PREFIX}fork":
            reply = self.fork(environ["werkzeug.socket"])
        else:
            reply = FUNCTIONS[name.removeprefix(PREFIX)](**json.loads(Request(environ).get_data()))
        return Response(json.dumps(reply))(environ, start_response)

    def fork(self, connection: socket.socket) -> dict[str, int]:
        """Another process with this account's contents: its port and process id."""
        server = self.listen()
        gc.freeze()  # memory that garbage collection leaves alone stays shared
        process = os.fork()
        if process:
            server.server_close()
            return {"port": server.server_port, "process": process}
        os.close(connection.detach())
        self.server.server_close()
        self.server = server
        self.serve()  # for ever
        raise AssertionError

    def serve(self) -> None:
        """Answer requests, for ever."""
        threading.Thread(target=exit_with_parent, daemon=True).start()
        self.server.serve_forever()


def exit_with_parent() -> None:
    """End this process when stdin is closed, which also happens when the parent is killed."""
    os.read(0, 1)
    os._exit(0)


def main() -> None:
    """Serve until stdin is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the tests
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forked processes are not waited for
    warnings.simplefilter("ignore", DeprecationWarning)  # the other thread only reads stdin: forking is safe
    account = Account()
    print(account.server.server_port, flush=True)
    account.serve()


if __name__ == "__main__":
    main()
