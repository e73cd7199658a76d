"""AWS's protocols: what a request is called, and how each of them writes an error."""

import json
import re
from urllib.parse import parse_qs

from werkzeug.wrappers import Request, Response

S3_CALLS = {  # method, whether there is a key, a word in the query: what AWS calls it; the first that fits
    ("HEAD", True, ""): "HeadObject",
    ("HEAD", False, ""): "HeadBucket",
    ("GET", False, "versions"): "ListObjectVersions",
    ("GET", False, "uploads"): "ListMultipartUploads",
    ("GET", False, "list-type"): "ListObjectsV2",
    ("GET", True, ""): "GetObject",
    ("PUT", False, "publicAccessBlock"): "PutPublicAccessBlock",
    ("PUT", False, "encryption"): "PutBucketEncryption",
    ("PUT", False, ""): "CreateBucket",
    ("PUT", True, "partNumber"): "UploadPart",
    ("PUT", True, ""): "PutObject",
    ("POST", False, "delete"): "DeleteObjects",
    ("POST", True, "uploads"): "CreateMultipartUpload",
    ("POST", True, "uploadId"): "CompleteMultipartUpload",
    ("DELETE", True, "uploadId"): "AbortMultipartUpload",
}
SCHEDULER_CALLS = {
    "POST": "CreateSchedule",
    "PUT": "UpdateSchedule",
    "GET": "GetSchedule",
    "DELETE": "DeleteSchedule",
}


def name_of(request: Request, body: bytes) -> str:
    """A request as AWS calls it: sagemaker:CreateModel, s3:HeadObject."""
    scope = re.search(r"Credential=[^/]+/\d+/[^/]+/([^/]+)/", request.headers.get("Authorization", ""))
    service = scope[1].replace("monitoring", "cloudwatch") if scope else "?"
    if target := request.headers.get("X-Amz-Target"):
        return f"{service}:{target.rpartition('.')[2]}"
    if service in ("iam", "sts"):
        return f"{service}:{parse_qs(body.decode())['Action'][0]}"
    if service == "scheduler":
        known = request.path.count("/") > 1
        return f"scheduler:{SCHEDULER_CALLS[request.method] if known else 'ListSchedules'}"
    if service == "sagemaker":
        return "sagemaker:" + ("InvokeEndpointAsync" if "async" in request.path else "InvokeEndpoint")
    kind = (request.method, "/" in request.path.strip("/"))
    query = request.query_string.decode()
    found = (name for (*one, word), name in S3_CALLS.items() if tuple(one) == kind and word in query)
    return f"{service}:{next(found, request.method)}"


def refusal(request: Request, call: str, status: int, code: str, message: str) -> Response:
    """An error as each of AWS's protocols writes it."""
    service = call.partition(":")[0]
    if code == "AccessDeniedException":
        message = f"{message} to perform: {call} on resource: * because no policy allows it"
    if service == "s3":
        names = {"ThrottlingException": "SlowDown", "AccessDeniedException": "AccessDenied"}
        code = names.get(code, code)
        status = 503 if code == "SlowDown" else status
        xml = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        return Response("" if request.method == "HEAD" else xml, status, content_type="application/xml")
    if service in ("iam", "sts"):
        xml = f"<Code>{code.removesuffix('Exception')}</Code><Message>{message}</Message>"
        return Response(
            f"<ErrorResponse><Error>{xml}</Error></ErrorResponse>", status, content_type="text/xml"
        )
    error = json.dumps({"__type": code, "message": message, "Message": message})
    return Response(error, status, {"x-amzn-errortype": code}, content_type="application/x-amz-json-1.1")
