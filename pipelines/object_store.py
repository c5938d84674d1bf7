"""S3 and Google Cloud Storage beneath fsspec: writes on a condition, and what goes wrong in plain words.

Both replace an object only if it is still the version that the writer has read, and make one only if there is none: S3 by
ETag (`If-Match`, `If-None-Match`), Google by generation number (`ifGenerationMatch`). fsspec passes on the second alone.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

from pipelines.errors import DeniedError, StoreUnreachableError, UserError

S3, GCS = ("s3", "s3a"), ("gs", "gcs")
PACKAGES = dict.fromkeys(S3, "s3fs") | dict.fromkeys(GCS, "gcsfs")
"""What fsspec needs for an address with such a scheme."""
LOST = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409", "404")
"""S3's codes for a condition that does not hold, or that another writer's request was in the midst of."""
BROKEN = {
    # botocore's, the last for all that can happen to a connection once there is one
    *("EndpointConnectionError", "ConnectTimeoutError", "HTTPClientError"),
    # aiohttp's
    *("ClientConnectorError", "ClientPayloadError"),
}
"""Exceptions of a server that did not answer, or broke off in the midst of it."""
BUSY = (408, 429, 500, 502, 503, 504)
"""Status codes of a server that cannot serve for now."""
SAID = re.compile(
    rf"^(?:[\w.]+\.)?(?:{'|'.join(sorted(BROKEN | {'ConnectionClosedError', 'ReadTimeoutError', 'StoreUnreachableError'}))}): "
    r"|\bAn error occurred \((?:SlowDown|ServiceUnavailable|InternalError|RequestTimeout|408|429|50[0234])\) when calling"
    r"|^(?:[\w.]+\.)?HttpError: .*, (?:408|429|50[0234])$",
    re.MULTILINE,
)
"""How the text of a traceback names them."""
SHARED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "STORAGE_EMULATOR_HOST")
"""Settings without a secret in them, which a cluster's workers are given; they have credentials of their own."""
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, or the machine's service account",
}


def insist(file_system: Any) -> None:
    """Have an S3 file system repeat a request that was answered by an error of the server's as often as one without an answer.

    By itself it repeats few of them, and its library gives up after seconds.
    """
    if scheme_of(file_system) == "s3":
        import s3fs

        # Older ones have no such setting.
        getattr(s3fs, "set_custom_error_handler", lambda handler: None)(_is_busy)


def _is_busy(error: BaseException) -> bool:
    """Whether it is a store's answer that it cannot serve for now: S3's SlowDown, ServiceUnavailable, InternalError, and
    RequestTimeout, whose status is that of a mistake; Google's by their status.
    """
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        is_late = response.get("Error", {}).get("Code") == "RequestTimeout"
        return is_late or response.get("ResponseMetadata", {}).get("HTTPStatusCode") in BUSY
    # gcsfs's, which has it as a number or as text.
    return type(error).__name__ == "HttpError" and str(getattr(error, "code", "")) in map(str, BUSY)


def share_settings() -> None:
    """Let one setting reach all: of the region's two names pyarrow knows both, boto (fsspec's, MLflow's) only the second."""
    if region := os.environ.get("AWS_REGION"):
        os.environ.setdefault("AWS_DEFAULT_REGION", region)
    # gcsfs would ask over gRPC what kind of bucket each is, before it is first used; zonal ones are of no use here.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def scheme_of(file_system: Any) -> str:
    """`s3` or `gs` for a file system of fsspec's that is such a store, else an empty text."""
    protocols = {file_system.protocol} if isinstance(file_system.protocol, str) else set(file_system.protocol)
    return "s3" if protocols & set(S3) else "gs" if protocols & set(GCS) else ""


def read_version(file_system: Any, path: str) -> tuple[bytes, str] | None:
    """An object's content and the version that this is, None if there is no such object."""
    bucket, key, *_ = file_system.split_path(path)
    try:
        if scheme_of(file_system) == "gs":
            return _read_gcs(file_system, path)
        return _read_s3(file_system, bucket, key)
    except FileNotFoundError as error:
        if _code(error) == "NoSuchBucket":
            raise
        return None


def _read_s3(file_system: Any, bucket: str, key: str) -> tuple[bytes, str]:
    response, content = _get_object(file_system, bucket, key)
    return content, str(response["ETag"])


def _get_object(file_system: Any, bucket: str, key: str) -> tuple[Any, bytes]:
    """S3's answer and the object; asked for again where it is broken off in the midst, which fsspec does in its own reads."""
    from fsspec.asyn import sync

    async def get() -> tuple[Any, bytes]:
        for left in reversed(range(file_system.retries)):
            response = await file_system._call_s3("get_object", Bucket=bucket, Key=key)
            try:
                async with response["Body"] as body:
                    return response, bytes(await body.read())
            except Exception as error:
                if not left or not is_unreachable(error):
                    raise
        raise AssertionError("it is tried once at least")

    found: tuple[Any, bytes] = sync(file_system.loop, get)
    return found


def read_age(file_system: Any, path: str) -> tuple[bytes, float] | None:
    """An object's content on S3 and its age in seconds, by the store's own clock; None if there is no such object."""
    from email.utils import parsedate_to_datetime

    bucket, key, *_ = file_system.split_path(path)
    try:
        response, content = _get_object(file_system, bucket, key)
        now = parsedate_to_datetime(response["ResponseMetadata"]["HTTPHeaders"]["date"])
        return content, max((now - response["LastModified"]).total_seconds(), 0.0)
    except FileNotFoundError as error:
        if _code(error) == "NoSuchBucket":
            raise
        return None


def _read_gcs(file_system: Any, path: str) -> tuple[bytes, str]:
    while True:
        generation = str(file_system.info(path)["generation"])
        # One that has been replaced meanwhile is no longer there.
        with contextlib.suppress(FileNotFoundError):
            _, content = file_system.call("GET", file_system.url(path), generation=generation)
            return bytes(content), generation


def write_version(file_system: Any, path: str, content: bytes, expected: str | None) -> str | None:
    """Write an object if its version is `expected` (None: if there is none). Returns the new version, None if it was another.

    `content` must differ from all that others write there: a request whose answer was lost on the way is repeated, fails for
    its own success, and is known by what it wrote.
    """
    bucket, key, *_ = file_system.split_path(path)
    try:
        if scheme_of(file_system) == "gs":
            address = f"{file_system._location}/upload/storage/v1/b/{bucket}/o"
            query = {"uploadType": "media", "name": key, "ifGenerationMatch": expected or "0"}
            return str(file_system.call("POST", address, data=content, json_out=True, **query)["generation"])
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        return str(file_system.call_s3("put_object", Bucket=bucket, Key=key, Body=content, **condition)["ETag"])
    except OSError as error:
        if (
            not (isinstance(error, FileExistsError | FileNotFoundError) or _code(error) in LOST)
            or _code(error) == "NoSuchBucket"
        ):
            raise
    there = read_version(file_system, path)
    return there[1] if there is not None and there[0] == content else None


@contextlib.contextmanager
def plain_errors(uri: str) -> Iterator[None]:
    """Turn what an object store answers into one line that names the address.

    Raises UserError for what stays wrong (no such bucket, credentials, another region; DeniedError: rights),
    StoreUnreachableError where nothing answered; anything else as it came, a missing object's FileNotFoundError too.
    """
    try:
        yield
    except (UserError, NotADirectoryError):
        raise
    except Exception as error:
        if text := _explain(error, uri):
            kind = StoreUnreachableError if is_unreachable(error) else DeniedError if _is_denied(error) else UserError
            raise kind(text) from error
        raise


def check_address(uri: str) -> None:
    """Raise UserError for an address of an object store that has lost a slash or names no bucket."""
    # A folder may be named `s3`; one that is named `s3:` was meant otherwise.
    if slip := re.match(rf"({'|'.join(PACKAGES)})(:/?(?!/)|//)", uri, flags=re.IGNORECASE):
        raise UserError(f"{uri} is no address of a bucket; write {slip[1].lower()}://BUCKET/FOLDER")
    scheme, separator, rest = uri.partition("://")
    if separator and scheme.lower() in PACKAGES:
        if scheme != scheme.lower():
            raise UserError(f"{uri}: write {scheme.lower()}:// in lower case")
        if not rest.partition("/")[0]:
            raise UserError(f"{uri} names no bucket; write {scheme}://BUCKET/FOLDER")


def unknown_scheme(uri: str, error: Exception) -> UserError:
    """What to say when fsspec cannot open `uri`."""
    scheme = uri.partition("://")[0]
    if package := PACKAGES.get(scheme):
        return UserError(f"{uri} needs the package {package}, which is not here; pip install {package}")
    return UserError(
        f"{uri}: cannot open such an address ({error}); use a local path, s3:// or gs://, or install its fsspec package"
    )


def missing_bucket(uri: str) -> UserError:
    """What to say of an address whose bucket does not exist."""
    bucket = uri.partition("://")[2].partition("/")[0]
    return UserError(f"{uri}: there is no bucket {bucket} (at {_endpoint(_scheme(uri))}); make it first (a run makes none)")


def _scheme(uri: str) -> str:
    return "gs" if uri.startswith(tuple(f"{name}://" for name in GCS)) else "s3"


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def _code(error: BaseException) -> str:
    """S3's code for what went wrong, empty for errors of another kind."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code", ""))
    return ""


def is_unreachable(error: BaseException) -> bool:
    """Whether an object store did not answer, broke off in the midst of it, or cannot serve for now."""
    chain = _causes(error)
    # By name: botocore, aiohttp and gcsfs need not be installed.
    kinds = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    return bool(kinds & BROKEN) or any(map(_is_busy, chain))


def says_unreachable(text: str) -> bool:
    """The same of the text of an error, which is all that Ray Data passes on of what a worker raised."""
    return bool(SAID.search(text))


def _is_denied(error: BaseException) -> bool:
    # The second is how gcsfs begins.
    return _code(error) in ("AccessDenied", "AllAccessDisabled", "403", "Forbidden") or str(error).startswith("Forbidden")


def _explain(error: Exception, uri: str) -> str:
    """One line for what an object store answered, empty if it is nothing of that kind."""
    kinds = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
    scheme = _scheme(uri)
    bucket, _, key = uri.partition("://")[2].partition("/")
    what = f"bucket {bucket}" + (f", key {key}" if key else "")
    code, text = _code(error), " ".join(str(error).split())
    if code == "NoSuchBucket":
        return str(missing_bucket(uri))
    if is_unreachable(error):
        return f"{uri}: {no_answer(error, _endpoint(scheme))}"
    if "ProfileNotFound" in kinds:
        return f"{uri}: AWS_PROFILE={os.environ.get('AWS_PROFILE', '')} is in no file of AWS profiles here; check ~/.aws/config"
    if kinds & {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"} or "Anonymous caller" in text:
        return f"{uri}: no credentials for {what}; set {CREDENTIALS[scheme]}"
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired"):
        return f"{uri}: the credentials for {what} are not valid ({code}); check {CREDENTIALS[scheme]}"
    if code == "RequestTimeTooSkewed":
        return f"{uri}: this machine's clock is not the store's ({text}); set it, by NTP for one"
    if code in ("PermanentRedirect", "301", "307", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
        return f"{uri}: bucket {bucket} is in another region ({text}); set AWS_REGION to the bucket's own"
    if _is_denied(error):
        return f"{uri}: access to {what} is denied ({text}); the credentials need to list, read, write and delete there"
    if code in ("InvalidBucketName", "ParamValidationError") or "ParamValidationError" in kinds:
        return f"{uri}: {bucket} is no name for a bucket ({text})"
    return ""


def no_answer(error: BaseException, server: str = "the store's server") -> str:
    """What to say of an error that `is_unreachable`."""
    if busy := next(filter(_is_busy, _causes(error)), None):
        return f"{server} cannot serve for now ({' '.join(str(busy).split())}); try again later"
    return f"{server} does not answer ({' '.join(str(error).split())}); check the address and the network"


def _endpoint(scheme: str) -> str:
    if scheme == "gs":
        return os.environ.get("STORAGE_EMULATOR_HOST") or "Google Cloud Storage"
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if address := os.environ.get(name):
            return f"{name}={address}"
    return "Amazon S3"
