"""The lean client's signature is the SDK's, byte for byte."""

from datetime import UTC, datetime
from unittest.mock import patch

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.aws.lean import Signer

VISIBLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60)
REGIONS = st.sampled_from(["us-east-1", "eu-central-2", "ap-southeast-5", "us-gov-west-1"])
HOSTS = st.sampled_from(
    ["sqs.us-east-1.amazonaws.com", "localhost:4566", "127.0.0.1:80", "vpce-1.sqs.eu-west-1.vpce.aws"]
)


@given(
    service=st.sampled_from(["sqs", "dynamodb"]),
    region=REGIONS,
    host=HOSTS,
    path=st.sampled_from(["/", "/a/b", "/a%20b"]),
    more=st.dictionaries(st.sampled_from(["x-amzn-query-mode", "x-amz-meta"]), VISIBLE),
    body=st.binary(max_size=2000),
    at=st.floats(0, 4_000_000_000),
    access=VISIBLE,
    secret=st.text(min_size=1, max_size=60),
    token=st.none() | VISIBLE,
    target=VISIBLE,
)
def test_a_signature_is_botocore_s(
    service: str,
    region: str,
    host: str,
    path: str,
    more: dict[str, str],
    body: bytes,
    at: float,
    access: str,
    secret: str,
    token: str | None,
    target: str,
) -> None:
    signer = Signer(service, region, host, path, more)
    ours = [signer.headers(target, body, at, access, secret, token) for _ in range(2)][1]  # the second by the kept key
    theirs = AWSRequest(method="POST", url=f"https://{host}{path}", data=body)
    for name, value in {"Content-Type": ours["content-type"], "X-Amz-Target": target, "Host": host, **more}.items():
        theirs.headers[name] = value
    moment = datetime.fromtimestamp(int(at), UTC)
    with patch("botocore.auth.get_current_datetime", lambda remove_tzinfo=True: moment.replace(tzinfo=None)):
        SigV4Auth(Credentials(access, secret, token), service, region).add_auth(theirs)
    assert ours["authorization"] == theirs.headers["Authorization"]
    assert ours["x-amz-date"] == theirs.headers["X-Amz-Date"]
    assert ours.get("x-amz-security-token") == theirs.headers.get("X-Amz-Security-Token")
    assert "host" not in ours, "HTTP adds it, and it is signed as HTTP says it"


@pytest.mark.parametrize("changed", ["secret", "day", "body", "token"])
def test_what_changes_is_signed_anew(changed: str) -> None:
    signer = Signer("sqs", "us-east-1", "host", "/", {})
    old = signer.headers("t", b"body", 0.0, "a", "secret", "token")
    asked = (
        "t",
        b"other" if changed == "body" else b"body",
        86_400.0 if changed == "day" else 0.0,
        "a",
        "other" if changed == "secret" else "secret",
        "other" if changed == "token" else "token",
    )
    new = signer.headers(*asked)
    assert old["authorization"] != new["authorization"]
    assert new == Signer("sqs", "us-east-1", "host", "/", {}).headers(*asked), "nothing of before is in it"
