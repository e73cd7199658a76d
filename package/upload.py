"""The archive in S3: `python package/upload.py --archive FILE.tar.gz --project NAME --out uploaded.json`.

The key is named by the archive's content, so the same archive is uploaded once and a new one never takes an
old one's place. `--out` is written for deploy: where the archive lies, and the sha256 of what lies there.
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
from typing import Any

PART = 8 * 2**20  # bytes; boto3's own size of a part, from which S3 makes its checksum of the whole

ADVICE = (  # a pattern in the name of botocore's exception or in AWS's error code, and what to do
    ("NoCredentials|PartialCredentials", "run `aws configure` or `aws sso login`, or set AWS_PROFILE"),
    ("Expired|SSO|TokenRefresh|TokenRetrieval", "log in again (`aws sso login`) and repeat the command"),
    ("InvalidClientTokenId|InvalidAccessKeyId|Signature|Unrecog", "check `aws sts get-caller-identity`"),
    ("ProfileNotFound", "`aws configure list-profiles` shows those that exist"),
    ("NoRegion", "set AWS_DEFAULT_REGION or run `aws configure`"),
    ("AccessDenied|Forbidden|^403$", "`invoke role` prints the policy that your AWS identity needs"),
    ("NoSuchBucket|^404$", "the bucket went away: repeat the command"),
    (
        "Connect|Timeout|HTTPClient|Proxy|SSL",
        "check the network, the proxy and the Region",
    ),
    ("", "repeat the command"),
)


class UploadError(Exception):
    """Something that the user can mend; `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def main(argv: list[str] | None = None) -> int:
    """Upload one archive, unless it is there."""
    args = arguments(argv)
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return upload(args)
    except UploadError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("stopped: the same command begins again", file=sys.stderr)
        return 130
    except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 3


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].partition(":")[0])
    parser.add_argument("--archive", type=Path, required=True, help="the .tar.gz to upload")
    parser.add_argument("--project", required=True, help="the key's first part")
    parser.add_argument("--bucket", help="default: SageMaker's own bucket, made if it is missing")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write for deploy")
    parser.add_argument("--optional", action="store_true", help="without credentials, say so and end with 0")
    return parser.parse_args(argv)


def upload(args: argparse.Namespace) -> int:
    """Put the archive where it belongs, and write down where that is. Raises what botocore raises."""
    import boto3

    if len(args.project) > 40 or not re.fullmatch("[a-z0-9](-*[a-z0-9])*", args.project):  # as deploy says
        text = "a project on SageMaker is called by small letters, digits and dashes, at most 40"
        raise UploadError(f"{text}, not {args.project!r}: change `project`", 2)
    session = boto3.Session()
    if session.get_credentials() is None:
        if args.optional:
            print(f"{args.archive} is not uploaded, for want of AWS credentials: deploy will do it")
            return 0
        raise UploadError(f"no AWS credentials were found: {ADVICE[0][1]}", 3)
    if not session.region_name:
        raise UploadError(f"no AWS Region is set: {ADVICE[4][1]}", 2)
    if not args.archive.is_file():
        raise UploadError(f"there is no {args.archive}: run `invoke package` to write it", 2)
    with open(args.archive, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    s3, account = clients(session)
    bucket = find_bucket(s3, args.bucket, session.region_name, account)
    place = {"Bucket": bucket, "Key": f"{args.project}/{sha256[:12]}/model.tar.gz"}
    url = f"s3://{bucket}/{place['Key']}"
    size = f"{args.archive.stat().st_size / 1e6:.1f} MB"
    if is_there(s3, place, args.archive, sha256):
        print(f"{url}: there already, {size}")
    else:
        send(s3, place, args.archive, sha256, f"{size} to {url}")
        print(f"{url}: uploaded, {size}, checksum verified")
    facts = {"url": url, "bucket": bucket, "sha256": sha256}
    facts |= {"region": session.region_name, "account": account}
    write(args.out, json.dumps(facts, indent=2) + "\n")
    return 0


def clients(session: Any) -> tuple[Any, str]:
    """S3, with patience, and the account's number."""
    from botocore.config import Config

    attempts = int(os.environ.get("AWS_MAX_ATTEMPTS", 6))
    config = Config(connect_timeout=10, retries={"mode": "standard", "total_max_attempts": attempts})
    account = session.client("sts", config=config).get_caller_identity()["Account"]
    return session.client("s3", config=config), account


def find_bucket(s3: Any, given: str | None, region: str, account: str) -> str:
    """The bucket's name; SageMaker's default one is made if it is missing. Raises UploadError."""
    bucket = given or f"sagemaker-{region}-{account}"
    # The default name can be guessed, so a stranger may have taken it: the owner must be this account.
    owner = {} if given else {"ExpectedBucketOwner": account}
    found = unless_missing(s3.head_bucket, Bucket=bucket, **owner)
    if found is None and given:
        text = f"there is no bucket {bucket}: make it, or leave `bucket` empty for SageMaker's own"
        raise UploadError(text, 3)
    if found is None:
        make_bucket(s3, bucket, region)
    elif found.get("BucketRegion", region) != region:
        text = f"the bucket {bucket} is in {found['BucketRegion']}, out of reach for an endpoint in {region}"
        raise UploadError(f"{text}: set AWS_DEFAULT_REGION, or name another bucket", 2)
    return bucket


def make_bucket(s3: Any, bucket: str, region: str) -> None:
    """A private, encrypted bucket."""
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    with contextlib.suppress(s3.exceptions.BucketAlreadyOwnedByYou):  # a request that was repeated
        s3.create_bucket(Bucket=bucket, **place)
    s3.get_waiter("bucket_exists").wait(Bucket=bucket, WaiterConfig={"Delay": 2, "MaxAttempts": 15})
    rules = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(rules, True))
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
    print(f"s3://{bucket}: made, private and encrypted")


def is_there(s3: Any, place: dict[str, str], archive: Path, sha256: str) -> bool:
    """Whether S3 holds this very archive, by size, by the name of its content and by S3's checksum."""
    head = unless_missing(s3.head_object, **place, ChecksumMode="ENABLED")
    return bool(
        head
        and head["ContentLength"] == archive.stat().st_size
        and head["Metadata"].get("sha256") == sha256
        and head.get("ChecksumSHA256", "").partition("-")[0] == checksum(archive)
    )


def checksum(archive: Path) -> str:
    """SHA-256 as S3 says it of an object: of the whole, or of its parts' digests if there are several."""
    with open(archive, "rb") as file:
        digests = [hashlib.sha256(part).digest() for part in iter(lambda: file.read(PART), b"")]
    # boto3 sends in parts whatever has at least one part's size.
    several = archive.stat().st_size >= PART
    return base64.b64encode(hashlib.sha256(b"".join(digests)).digest() if several else digests[0]).decode()


def send(s3: Any, place: dict[str, str], archive: Path, sha256: str, what: str) -> None:
    """Upload in parts, with a bar on a terminal. Raises UploadError if S3 then holds something else."""
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
            **place,
            ExtraArgs={"Metadata": {"sha256": sha256}, "ChecksumAlgorithm": "SHA256"},
            Config=TransferConfig(multipart_threshold=PART, multipart_chunksize=PART),
            Callback=lambda sent: bar.update(task, advance=sent),
        )
    if not is_there(s3, place, archive, sha256):
        raise UploadError(f"what S3 holds differs from {archive}: repeat the command", 3)


def unless_missing(call: Any, **request: Any) -> dict | None:
    """The answer of a HEAD request, None where it says 404."""
    from botocore.exceptions import ClientError

    try:
        return call(**request)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchBucket", "NoSuchKey"):
            return None
        raise


def sentence(error: Exception) -> str:
    """What boto3 raised, on one line, and what to do."""
    cause = error.__cause__ or error.__context__ or error  # s3transfer wraps what happened
    for known in (error, cause):
        reply = getattr(known, "response", None) or {}  # botocore's connection errors have None
        name = reply.get("Error", {}).get("Code") or type(known).__name__
        advice = next(text for pattern, text in ADVICE if re.search(pattern, name))
        if advice != ADVICE[-1][1]:
            break
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return f"{' '.join(str(error).split()).rstrip('. ')}: {advice}"


def write(path: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    os.replace(beside, path)


if __name__ == "__main__":
    raise SystemExit(main())
