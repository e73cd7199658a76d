"""Upload to S3: `python package/upload.py --archive FILE.tar.gz --project NAME --out uploaded.json`.

The key contains the archive's hash: the same archive is uploaded once, and a new one never overwrites an old
one. `--out` is written for deploy: the object's address and its sha256.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

MAX_PROJECT_NAME = 40  # as in deploy/aws/names.py
PART = 8 * 2**20  # bytes; boto3's default part size. S3's checksum of a multipart object depends on it

ADVICE = (  # a pattern in the name of botocore's exception or in AWS's error code, and the advice
    ("NoCredentials|PartialCredentials", "run `aws configure` or `aws sso login`, or set AWS_PROFILE"),
    ("Expired|SSO|TokenRefresh|TokenRetrieval", "log in again (`aws sso login`) and run the command again"),
    ("InvalidClientTokenId|InvalidAccessKeyId|Signature|Unrecog", "check `aws sts get-caller-identity`"),
    ("ProfileNotFound", "`aws configure list-profiles` shows those that exist"),
    ("NoRegion", "set AWS_DEFAULT_REGION or run `aws configure`"),
    ("AccessDenied|Forbidden|^403$", "`invoke role` prints the policy that your AWS identity needs"),
    ("NoSuchBucket|^404$", "the bucket was deleted meanwhile: run the command again"),
    (
        "Connect|Timeout|HTTPClient|Proxy|SSL",
        "check the network, the proxy and the Region",
    ),
    ("", "run the command again"),
)


class Parser(argparse.ArgumentParser):
    """Reports an invalid command line as one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message}: see {self.prog} --help\n")


class UploadError(Exception):
    """An error that the user can fix; `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = arguments(argv)
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return upload(args)
    except UploadError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("stopped: run the same command again to upload", file=sys.stderr)
        return 130
    except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 3


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__.splitlines()[0].partition(":")[0])
    parser.add_argument("--archive", type=Path, required=True, help="the .tar.gz to upload")
    parser.add_argument("--project", required=True, help="the first part of the key")
    parser.add_argument("--bucket", help="default: SageMaker's own, created if it is missing")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write for deploy")
    parser.add_argument(
        "--optional", action="store_true", help="without credentials, exit with 0 and a message"
    )
    return parser.parse_args(argv)


def upload(args: argparse.Namespace) -> int:
    """Upload the archive unless S3 has it, and write --out. Raises UploadError and what boto3 raises."""
    import boto3

    if len(args.project) > MAX_PROJECT_NAME or not re.fullmatch("[a-z0-9](-*[a-z0-9])*", args.project):
        rule = f"at most {MAX_PROJECT_NAME} lower-case letters, digits and hyphens"
        text = f"a project's name on SageMaker has {rule}"
        raise UploadError(f"{text}, not {args.project!r}: change `project`", 2)
    session = boto3.Session()
    if session.get_credentials() is None:
        if args.optional:
            print(f"{args.archive}: not uploaded (no AWS credentials); `invoke deploy` uploads it")
            return 0
        raise UploadError(f"no AWS credentials were found: {ADVICE[0][1]}", 3)
    if not session.region_name:
        raise UploadError(f"no AWS Region is set: {ADVICE[4][1]}", 2)
    if not args.archive.is_file():
        raise UploadError(f"{args.archive} was not found: run `invoke package` first", 2)
    with open(args.archive, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    s3, account = clients(session)
    bucket = find_bucket(s3, args.bucket, session.region_name, account)
    target = {"Bucket": bucket, "Key": f"{args.project}/{sha256[:12]}/model.tar.gz"}
    url = f"s3://{bucket}/{target['Key']}"
    size = f"{args.archive.stat().st_size / 1e6:.1f} MB"
    if is_uploaded(s3, target, args.archive, sha256):
        print(f"{url}: already uploaded, {size}")
    else:
        send(s3, target, args.archive, sha256, f"{size} to {url}")
        print(f"{url}: uploaded, {size}, checksum verified")
    facts = {"url": url, "bucket": bucket, "sha256": sha256}
    facts |= {"region": session.region_name, "account": account}
    write(args.out, json.dumps(facts, indent=2) + "\n")
    return 0


def clients(session: Any) -> tuple[Any, str]:
    """A client of S3 that retries, and the account's number."""
    from botocore.config import Config

    attempts = int(os.environ.get("AWS_MAX_ATTEMPTS", 6))
    config = Config(connect_timeout=10, retries={"mode": "standard", "total_max_attempts": attempts})
    account = session.client("sts", config=config).get_caller_identity()["Account"]
    return session.client("s3", config=config), account


def find_bucket(s3: Any, given: str | None, region: str, account: str) -> str:
    """The bucket's name; SageMaker's default bucket is created if it is missing.

    Raises UploadError if a given bucket does not exist, or if the bucket is in another Region than `region`:
    SageMaker creates a model only from an archive in its own Region.
    """
    bucket = given or f"sagemaker-{region}-{account}"
    # Anyone can guess the default name and create that bucket first: its owner must be this account.
    owner = {} if given else {"ExpectedBucketOwner": account}
    head = unless_missing(s3.head_bucket, Bucket=bucket, **owner)
    if head is None and given:
        text = f"there is no bucket {bucket}: create it, or leave `bucket` empty for SageMaker's own"
        raise UploadError(text, 3)
    if head is None:
        create_bucket(s3, bucket, region)
    elif head.get("BucketRegion", region) != region:
        text = f"the bucket {bucket} is in {head['BucketRegion']}, but the endpoint would be in {region}"
        raise UploadError(f"{text}: set AWS_DEFAULT_REGION, or name another bucket", 2)
    return bucket


def create_bucket(s3: Any, bucket: str, region: str) -> None:
    """Create a private, encrypted bucket."""
    # S3 rejects us-east-1 as a LocationConstraint: it is the default.
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    with contextlib.suppress(s3.exceptions.BucketAlreadyOwnedByYou):  # a request that boto3 retried
        s3.create_bucket(Bucket=bucket, **where)
    s3.get_waiter("bucket_exists").wait(Bucket=bucket, WaiterConfig={"Delay": 2, "MaxAttempts": 15})
    rules = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(rules, True))
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
    print(f"s3://{bucket}: created, private and encrypted")


def is_uploaded(s3: Any, target: dict[str, str], archive: Path, sha256: str) -> bool:
    """Whether S3 has exactly this archive, by its size, our sha256 in the metadata and S3's own checksum."""
    head = unless_missing(s3.head_object, **target, ChecksumMode="ENABLED")
    return bool(
        head
        and head["ContentLength"] == archive.stat().st_size
        and head["Metadata"].get("sha256") == sha256
        and head.get("ChecksumSHA256", "").partition("-")[0] == checksum(archive)
    )


def checksum(archive: Path) -> str:
    """The SHA-256 that S3 reports: of the object, or of its parts' digests after a multipart upload."""
    with open(archive, "rb") as file:
        digests = [hashlib.sha256(part).digest() for part in iter(lambda: file.read(PART), b"")]
    # boto3 uses a multipart upload from one part's size on.
    several = archive.stat().st_size >= PART
    return base64.b64encode(hashlib.sha256(b"".join(digests)).digest() if several else digests[0]).decode()


def send(s3: Any, target: dict[str, str], archive: Path, sha256: str, what: str) -> None:
    """Upload in parts, with a progress bar on a terminal. Raises UploadError if S3 then has other content."""
    from boto3.s3.transfer import TransferConfig
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"uploading {what}", file=sys.stderr, flush=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"uploading {what}", total=archive.stat().st_size)
        s3.upload_file(
            str(archive),
            **target,
            ExtraArgs={"Metadata": {"sha256": sha256}, "ChecksumAlgorithm": "SHA256"},
            Config=TransferConfig(multipart_threshold=PART, multipart_chunksize=PART),
            Callback=lambda sent: bar.update(task, advance=sent),
        )
    if not is_uploaded(s3, target, archive, sha256):
        raise UploadError(f"the object in S3 differs from {archive}: run the command again", 3)


def unless_missing(call: Any, **request: Any) -> dict | None:
    """The response of a HEAD request, or None if it is 404."""
    from botocore.exceptions import ClientError

    try:
        return call(**request)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchBucket", "NoSuchKey"):
            return None
        raise


def sentence(error: Exception) -> str:
    """An error of boto3 on one line, with advice."""
    cause = error.__cause__ or error.__context__ or error  # s3transfer wraps the original error
    for candidate in (error, cause):
        reply = getattr(candidate, "response", None) or {}  # botocore's connection errors have None
        name = reply.get("Error", {}).get("Code") or type(candidate).__name__
        advice = next(text for pattern, text in ADVICE if re.search(pattern, name))
        if advice != ADVICE[-1][1]:
            break
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return f"{' '.join(str(error).split()).rstrip('. ')}: {advice}"


def write(path: Path, text: str) -> None:
    """Write a file atomically."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    os.replace(temporary, path)


if __name__ == "__main__":
    raise SystemExit(main())
