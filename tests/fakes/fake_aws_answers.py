"""What AWS answers and moto does not: functions of the cloud, the request and its JSON, by AWS's own names.

Each returns a dict (200), a Problem (ValidationException), a Response, or None: then moto answers.
"""

import json
import time
from urllib.parse import parse_qs

from werkzeug.wrappers import Response

REGION = "eu-west-1"
ACCOUNT = "123456789012"


class Problem(str):
    """A ValidationException's message."""

    code = "ValidationException"


class Missing(Problem):
    """The message where AWS has a code of its own for what is not there."""

    code = "ResourceNotFound"


def taken(name, known, what):
    return Problem(f'Cannot create already existing {what} "{name}".') if name in known else None


# --- SageMaker, where moto is too kind


def create_model(cloud, request, given):
    return taken(given["ModelName"], cloud.moto.sagemaker().models, "model")


def create_endpoint_config(cloud, request, given):
    return taken(given["EndpointConfigName"], cloud.moto.sagemaker().configs, "endpoint configuration")


def create_endpoint(cloud, request, given):
    name, config, there = given["EndpointName"], given["EndpointConfigName"], cloud.moto.sagemaker()
    if problem := taken(name, there.endpoints, "endpoint"):
        return problem
    if config in there.configs:
        end, reason = cloud.fate(config) or ("InService", "")
        cloud.moving[name] = ["Creating", cloud.looks, end, reason]
    return None


def update_endpoint(cloud, request, given):
    name, config, there = given["EndpointName"], given["EndpointConfigName"], cloud.moto.sagemaker()
    endpoint = there.endpoints.get(name)
    if endpoint is None:
        return Problem(f"Could not find endpoint {name}.")
    if config not in there.configs:
        return Problem(f"Could not find endpoint configuration {config}.")
    if name in cloud.moving or endpoint.endpoint_status == "Failed":
        return Problem(f"Cannot update in-progress endpoint {endpoint.arn}.")
    cloud.updates.append(given)
    end, reason = cloud.fate(config) or (config, "")
    cloud.moving[name] = ["Updating", cloud.looks, end, reason]
    return {"EndpointArn": endpoint.arn}


def delete_endpoint(cloud, request, given):
    name = given["EndpointName"]
    if name not in cloud.moto.sagemaker().endpoints:
        return None
    if name in cloud.moving:
        return Problem(f"Cannot delete endpoint {name} while it is {cloud.moving[name][0]}.")
    cloud.moving[name] = ["Deleting", cloud.looks, "gone", ""]
    return {}


def describe_endpoint(cloud, request, given):
    """Then moto answers; but each look brings a moving endpoint nearer to its end."""
    name = given["EndpointName"]
    if name not in cloud.moving or name not in cloud.moto.sagemaker().endpoints:
        return
    status, looks, end, reason = cloud.moving[name]
    if looks > 0:
        cloud.moving[name][1] -= 1
        cloud.moto.call("set_endpoint", name=name, endpoint_status=status)
        return
    del cloud.moving[name]
    if end == "gone":
        cloud.moto.call("remove_endpoint", name=name)
        return
    failed = end == "Failed" and status == "Creating"
    state = {"endpoint_status": "Failed" if failed else "InService", "failure_reason": reason or None}
    cloud.moto.call("set_endpoint", name=name, **state)
    if end != "Failed" and status == "Updating":  # else AWS goes on with the old configuration
        cloud.moto.call("switch_endpoint", name=name, config=end)


def list_tags(cloud, request, given):
    kind, name = given["ResourceArn"].split(":")[-1].split("/")
    there = cloud.moto.sagemaker()
    known = {"model": there.models, "endpoint": there.endpoints, "endpoint-config": there.configs}
    return Problem(f"Could not find {kind} {name}.") if name not in known.get(kind, [name]) else None


def create_transform_job(cloud, request, given):
    """The answers to all pictures are written here and now; the job ends after some looks, as an endpoint."""
    reply = Response.from_app(cloud.moto, request.environ)
    name = given["TransformJobName"]
    cloud.moto.call("set_transform_job", name=name, transform_job_status="InProgress")
    cloud.moving[f"job {name}"] = ["InProgress", cloud.looks, *cloud.job_end]
    if cloud.job_end[0] == "Completed":
        there, _, prefix = given["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"][5:].partition("/")
        aim, _, folder = given["TransformOutput"]["S3OutputPath"][5:].partition("/")
        s3 = cloud.client("s3")
        for found in s3.list_objects_v2(Bucket=there, Prefix=prefix).get("Contents", []):
            picture = s3.get_object(Bucket=there, Key=found["Key"])["Body"].read()
            name = found["Key"].removeprefix(prefix).lstrip("/")
            answer = cloud.answer(None, {"Content-Type": given["TransformInput"]["ContentType"]}, picture)[1]
            s3.put_object(Bucket=aim, Key=f"{folder.rstrip('/')}/{name}.out", Body=answer)
    return reply


def describe_transform_job(cloud, request, given):
    """Then moto answers."""
    name = f"job {given['TransformJobName']}"
    if name not in cloud.moving:
        return
    _, looks, end, reason = cloud.moving[name]
    cloud.moving[name][1] -= 1
    if looks <= 0:
        del cloud.moving[name]
        state = {"transform_job_status": end, "failure_reason": reason}
        cloud.moto.call("set_transform_job", name=given["TransformJobName"], **state)


def stop_transform_job(cloud, request, given):
    name = given["TransformJobName"]
    status = cloud.moto.sagemaker().jobs[name].status
    if status != "InProgress":
        return Problem(f"The request was rejected because the transform job is in status {status}.")
    cloud.moving.pop(f"job {name}", None)
    cloud.moto.call("set_transform_job", name=name, transform_job_status="Stopped")
    return {}


# --- its runtime


def invoke_endpoint(cloud, request, given):
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


def invoke_endpoint_async(cloud, request, given):
    there = cloud.moto.sagemaker()
    endpoint = there.endpoints[request.path.split("/")[2]]
    places = there.configs[endpoint.endpoint_config_name].async_inference_config["OutputConfig"]
    there, _, key = request.headers["X-Amzn-SageMaker-InputLocation"][5:].partition("/")
    s3 = cloud.client("s3")
    picture = s3.get_object(Bucket=there, Key=key)["Body"].read()
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


def list_service_quotas(cloud, request, given):
    quotas = enumerate(cloud.quotas.items())
    return {
        "Quotas": [
            {"QuotaName": name, "QuotaCode": f"L-{number:08}", "Value": value, "ServiceCode": "sagemaker"}
            for number, (name, value) in quotas
        ]
    }


def get_metric_data(cloud, request, given):
    """Percentiles, of which moto makes nothing; the rest is moto's."""
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


def delete_alarms(cloud, request, given):
    """Then moto answers; AWS deletes none of them where it does not know one."""
    unknown = set(given["AlarmNames"]) - set(cloud.moto.call("alarm_names"))
    return Missing(f"there is no alarm {min(unknown)}") if unknown else None


def deregister_scalable_target(cloud, request, given):
    """Then moto answers; AWS takes the target's policies away with it."""
    cloud.moto.call("remove_scaling_policies", resource_id=given["ResourceId"])


def simulate_principal_policy(cloud, request, given):
    form = {key: values[0] for key, values in parse_qs(request.get_data(as_text=True)).items()}
    actions = [value for key, value in form.items() if key.startswith("ActionNames.member.")]
    results = "".join(
        f"<member><EvalActionName>{action}</EvalActionName>"
        f"<EvalDecision>{'implicitDeny' if action in cloud.denied else 'allowed'}</EvalDecision></member>"
        for action in actions
    )
    xml = (
        '<SimulatePrincipalPolicyResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/">'
        f"<SimulatePrincipalPolicyResult><IsTruncated>false</IsTruncated><EvaluationResults>{results}"
        "</EvaluationResults></SimulatePrincipalPolicyResult></SimulatePrincipalPolicyResponse>"
    )
    return Response(xml, content_type="text/xml")


ANSWERS = {
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
