"""AWS's responses where moto has none or another: functions of the account, the request and its JSON.

Each returns a dict (200), a Problem (ValidationException), a Response, or None: then moto answers.
"""

import json
import time
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from werkzeug.wrappers import Request, Response

if TYPE_CHECKING:
    from fake_aws import FakeAccount

REGION = "eu-west-1"
ACCOUNT = "123456789012"


class Problem(str):
    """A ValidationException's message."""

    code = "ValidationException"


class Missing(Problem):
    """The message of a service whose code for a missing resource is this one."""

    code = "ResourceNotFound"


Answer = dict[str, Any] | Problem | Response | None


def taken(name: str, known: Container[str], what: str) -> Problem | None:
    return Problem(f'Cannot create already existing {what} "{name}".') if name in known else None


# --- SageMaker, where moto accepts what AWS rejects


def create_model(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    return taken(given["ModelName"], cloud.moto.sagemaker().models, "model")


def create_endpoint_config(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    return taken(given["EndpointConfigName"], cloud.moto.sagemaker().configs, "endpoint configuration")


def create_endpoint(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    name, config, there = given["EndpointName"], given["EndpointConfigName"], cloud.moto.sagemaker()
    if problem := taken(name, there.endpoints, "endpoint"):
        return problem
    if config in there.configs:
        end, reason = cloud.outcome_of(config) or ("InService", "")
        cloud.transitions[name] = ["Creating", cloud.polls, end, reason]
    return None


def update_endpoint(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    name, config, there = given["EndpointName"], given["EndpointConfigName"], cloud.moto.sagemaker()
    endpoint = there.endpoints.get(name)
    if endpoint is None:
        return Problem(f"Could not find endpoint {name}.")
    if config not in there.configs:
        return Problem(f"Could not find endpoint configuration {config}.")
    if name in cloud.transitions or endpoint.endpoint_status == "Failed":
        return Problem(f"Cannot update in-progress endpoint {endpoint.arn}.")
    cloud.updates.append(given)
    end, reason = cloud.outcome_of(config) or (config, "")
    cloud.transitions[name] = ["Updating", cloud.polls, end, reason]
    return {"EndpointArn": endpoint.arn}


def delete_endpoint(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    name = given["EndpointName"]
    if name not in cloud.moto.sagemaker().endpoints:
        return None
    if name in cloud.transitions:
        return Problem(f"Cannot delete endpoint {name} while it is {cloud.transitions[name][0]}.")
    cloud.transitions[name] = ["Deleting", cloud.polls, "gone", ""]
    return {}


def describe_endpoint(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    """Each call brings an endpoint in transition nearer to its outcome; then moto answers."""
    name = given["EndpointName"]
    if name not in cloud.transitions or name not in cloud.moto.sagemaker().endpoints:
        return None
    status, polls, end, reason = cloud.transitions[name]
    if polls > 0:
        cloud.transitions[name][1] -= 1
        cloud.moto.call("set_endpoint", name=name, endpoint_status=status)
        return None
    del cloud.transitions[name]
    if end == "gone":
        cloud.moto.call("remove_endpoint", name=name)
        return None
    failed = end == "Failed" and status == "Creating"
    state = {"endpoint_status": "Failed" if failed else "InService", "failure_reason": reason or None}
    cloud.moto.call("set_endpoint", name=name, **state)
    if end != "Failed" and status == "Updating":  # else AWS keeps the old configuration
        cloud.moto.call("switch_endpoint", name=name, config=end)
    return None


def list_tags(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    kind, name = given["ResourceArn"].split(":")[-1].split("/")
    there = cloud.moto.sagemaker()
    known = {"model": there.models, "endpoint": there.endpoints, "endpoint-config": there.configs}
    return Problem(f"Could not find {kind} {name}.") if name not in known.get(kind, [name]) else None


def create_transform_job(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    """All outputs are written at once; the job ends after some polls, as an endpoint does."""
    reply = Response.from_app(cloud.moto, request.environ)
    name = given["TransformJobName"]
    cloud.moto.call("set_transform_job", name=name, transform_job_status="InProgress")
    cloud.transitions[f"job {name}"] = ["InProgress", cloud.polls, *cloud.job_outcome]
    if cloud.job_outcome[0] == "Completed":
        there, _, prefix = given["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"][5:].partition("/")
        aim, _, folder = given["TransformOutput"]["S3OutputPath"][5:].partition("/")
        s3 = cloud.client("s3")
        for found in s3.list_objects_v2(Bucket=there, Prefix=prefix).get("Contents", []):
            picture = s3.get_object(Bucket=there, Key=found["Key"])["Body"].read()
            name = found["Key"].removeprefix(prefix).lstrip("/")
            answer = cloud.answer(None, {"Content-Type": given["TransformInput"]["ContentType"]}, picture)[1]
            s3.put_object(Bucket=aim, Key=f"{folder.rstrip('/')}/{name}.out", Body=answer)
    return reply


def describe_transform_job(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    """Then moto answers."""
    name = f"job {given['TransformJobName']}"
    if name not in cloud.transitions:
        return None
    _, polls, end, reason = cloud.transitions[name]
    cloud.transitions[name][1] -= 1
    if polls <= 0:
        del cloud.transitions[name]
        state = {"transform_job_status": end, "failure_reason": reason}
        cloud.moto.call("set_transform_job", name=given["TransformJobName"], **state)
    return None


def stop_transform_job(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    name = given["TransformJobName"]
    status = cloud.moto.sagemaker().jobs[name].status
    if status != "InProgress":
        return Problem(f"The request was rejected because the transform job is in status {status}.")
    cloud.transitions.pop(f"job {name}", None)
    cloud.moto.call("set_transform_job", name=name, transform_job_status="Stopped")
    return {}


# --- its runtime


def invoke_endpoint(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    name = request.path.split("/")[2]
    endpoint = cloud.moto.sagemaker().endpoints.get(name)
    if endpoint is None or endpoint.endpoint_status not in ("InService", "Updating"):
        return Problem(f"Endpoint {name} of account {ACCOUNT} not found.")
    status, answer = cloud.answer(endpoint, request.headers, request.get_data())
    if status == 200:
        return Response(answer, content_type="application/json")
    words = answer.decode(errors="replace")
    error = {
        "Message": f'Received server error ({status}) from primary with message "{words}".',
        "OriginalStatusCode": status,
        "OriginalMessage": words,
        "LogStreamArn": "",
    }
    headers = {"x-amzn-errortype": "ModelError"}
    return Response(json.dumps(error), 424, headers, content_type="application/json")


def invoke_endpoint_async(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    there = cloud.moto.sagemaker()
    endpoint = there.endpoints[request.path.split("/")[2]]
    places = there.configs[endpoint.endpoint_config_name].async_inference_config["OutputConfig"]
    bucket, _, key = request.headers["X-Amzn-SageMaker-InputLocation"][5:].partition("/")
    s3 = cloud.client("s3")
    picture = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    status, answer = cloud.answer(endpoint, request.headers, picture)
    name = f"/{key.rpartition('/')[2]}.out"
    bucket, _, path = places["S3OutputPath" if status == 200 else "S3FailurePath"][5:].partition("/")
    s3.put_object(Bucket=bucket, Key=path + name, Body=answer)
    headers = {
        "X-Amzn-SageMaker-OutputLocation": places["S3OutputPath"] + name,
        "X-Amzn-SageMaker-FailureLocation": places["S3FailurePath"] + name,
    }
    return Response(json.dumps({"InferenceId": "1"}), 202, headers, content_type="application/json")


# --- other services


def list_service_quotas(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    quotas = enumerate(cloud.quotas.items())
    return {
        "Quotas": [
            {"QuotaName": name, "QuotaCode": f"L-{number:08}", "Value": value, "ServiceCode": "sagemaker"}
            for number, (name, value) in quotas
        ]
    }


def get_metric_data(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    """Percentiles, which moto does not compute; the rest is moto's."""
    if not cloud.percentiles:
        return None
    results = []
    for query in given["MetricDataQueries"]:
        stat = query["MetricStat"]
        value = cloud.percentiles.get(f"{stat['Metric']['MetricName']} {stat['Stat']}")
        known = (
            {"Timestamps": [time.time()], "Values": [value]} if value else {"Timestamps": [], "Values": []}
        )
        results.append({"Id": query["Id"], "StatusCode": "Complete", **known})
    return {"MetricDataResults": results}


def delete_alarms(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    """Then moto answers; AWS deletes none of them if one does not exist."""
    unknown = set(given["AlarmNames"]) - set(cloud.moto.call("alarm_names"))
    return Missing(f"there is no alarm {min(unknown)}") if unknown else None


def deregister_scalable_target(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    """Then moto answers; AWS deletes the target's policies with it."""
    cloud.moto.call("remove_scaling_policies", resource_id=given["ResourceId"])
    return None


def simulate_principal_policy(cloud: "FakeAccount", request: Request, given: dict[str, Any]) -> Answer:
    form = {key: values[0] for key, values in parse_qs(request.get_data(as_text=True)).items()}
    actions = [value for key, value in form.items() if key.startswith("ActionNames.member.")]
    decisions = {one: "implicitDeny" if one in cloud.denied_actions else "allowed" for one in actions}
    results = "".join(
        f"<member><EvalActionName>{action}</EvalActionName><EvalDecision>{decision}</EvalDecision></member>"
        for action, decision in decisions.items()
    )
    xml = (
        '<SimulatePrincipalPolicyResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/">'
        f"<SimulatePrincipalPolicyResult><IsTruncated>false</IsTruncated><EvaluationResults>{results}"
        "</EvaluationResults></SimulatePrincipalPolicyResult></SimulatePrincipalPolicyResponse>"
    )
    return Response(xml, content_type="text/xml")


ANSWERS: dict[str, Callable[["FakeAccount", Request, dict[str, Any]], Answer]] = {
    "application-autoscaling:DeregisterScalableTarget": deregister_scalable_target,
    "sagemaker:CreateModel": create_model,
    "sagemaker:CreateEndpointConfig": create_endpoint_config,
    "sagemaker:CreateEndpoint": create_endpoint,
    "sagemaker:UpdateEndpoint": update_endpoint,
    "sagemaker:DeleteEndpoint": delete_endpoint,
    "sagemaker:DescribeEndpoint": describe_endpoint,
    "sagemaker:ListTags": list_tags,
    "sagemaker:CreateTransformJob": create_transform_job,
    "sagemaker:DescribeTransformJob": describe_transform_job,
    "sagemaker:StopTransformJob": stop_transform_job,
    "sagemaker:InvokeEndpoint": invoke_endpoint,
    "sagemaker:InvokeEndpointAsync": invoke_endpoint_async,
    "cloudwatch:DeleteAlarms": delete_alarms,
    "cloudwatch:GetMetricData": get_metric_data,
    "servicequotas:ListServiceQuotas": list_service_quotas,
    "iam:SimulatePrincipalPolicy": simulate_principal_policy,
}
