"""Tokens and rates, on their own."""

from pathlib import Path

import pytest

from engine.access.auth import Tokens, name_in_certificate
from engine.access.rate_limit import RateLimit
from engine.errors import RateLimited, StartupError, Unauthenticated
from engine.service.interceptor import host_of
from engine.service.status import rpc_status_of
from protos import dfcvae_pb2 as pb

ANNA = "a" * 32
BERT = "b" * 16


def tokens_of(folder: Path, text: str) -> Tokens:
    (folder / "tokens").write_text(text)
    return Tokens(folder / "tokens")


def test_a_token_has_the_name_of_its_line(tmp_path: Path) -> None:
    tokens = tokens_of(tmp_path, f"# who may call\n\nanna {ANNA}\n  bert\t{BERT}  \n")
    assert tokens.name_of(f"Bearer {ANNA}") == "anna"
    assert tokens.name_of(f"bearer  {BERT}") == "bert"


@pytest.mark.parametrize(
    ("authorization", "message"),
    [
        (None, "the call has no token; send metadata authorization"),
        (b"Bearer " + ANNA.encode(), "the call has no token"),
        ("", "the call's token is unknown"),
        (ANNA, "the call's token is unknown"),
        (f"Basic {ANNA}", "the call's token is unknown"),
        (f"Bearer {ANNA}x", "the call's token is unknown"),
        ("Bearer anna", "the call's token is unknown"),
        ("Bearer \ud800", "the call's token is unknown"),
    ],
)
def test_what_is_no_known_token_is_refused(tmp_path: Path, authorization: str | bytes | None, message: str) -> None:
    tokens = tokens_of(tmp_path, f"anna {ANNA}\n")
    with pytest.raises(Unauthenticated) as error:
        tokens.name_of(authorization)
    assert str(error.value).startswith(message)
    assert ANNA not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nobody\n", "has no tokens"),
        (f"{ANNA}\n", "line 1 is not `NAME TOKEN`"),
        (f"# a\nanna {ANNA} x\n", "line 2 is not `NAME TOKEN`"),
        (f"an/na {ANNA}\n", "line 1 is not `NAME TOKEN`"),
        ("anna short\n", "line 1: the token of anna has 5 characters, at least 16 are needed"),
        (f"anna {ANNA}\nbert {ANNA}\n", "line 2: bert has the token of anna"),
        (f"anna {ANNA}\nanna {BERT}\n", "line 2: anna has a token already"),
    ],
)
def test_a_bad_file_is_refused_without_showing_tokens(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(StartupError) as error:
        tokens_of(tmp_path, text)
    assert message in str(error.value)
    assert ANNA not in str(error.value)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"none can't be read \(No such file or directory\)"):
        Tokens(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StartupError, match="can't be read"):
        Tokens(tmp_path / "bytes")


def test_reading_again_takes_good_files_and_refuses_bad_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = tokens_of(tmp_path, f"anna {ANNA}\n")
    (tmp_path / "tokens").write_text("nonsense\n")
    tokens.reload()
    assert tokens.name_of(f"Bearer {ANNA}") == "anna"
    assert "the tokens stay as they are" in caplog.text
    (tmp_path / "tokens").write_text(f"bert {BERT}\n")
    tokens.reload()
    assert tokens.name_of(f"Bearer {BERT}") == "bert"
    with pytest.raises(Unauthenticated):
        tokens.name_of(f"Bearer {ANNA}")


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:127.0.0.1:50051", "127.0.0.1"),
        ("ipv6:%5B::1%5D:50051", "::1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50051", "2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50051", "fe80::/64"),
        ("unix:", "unix:"),
    ],
)
def test_a_client_without_a_name_goes_by_its_address(peer: str, host: str) -> None:
    assert host_of(peer) == host


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def wait_of(limit: RateLimit, client: str, images: int) -> float | None:
    """Seconds that the client has to wait; 0 if it may send."""
    try:
        limit.spend(client, images)
    except RateLimited as error:
        return error.retry_after_s
    return 0


def test_a_client_spends_its_burst_and_then_its_rate() -> None:
    clock = Clock()
    limit = RateLimit(rate=10, burst=20, clock=clock)
    assert wait_of(limit, "anna", 15) == 0
    assert wait_of(limit, "anna", 6) == pytest.approx(0.1)
    assert wait_of(limit, "anna", 5) == 0
    assert wait_of(limit, "anna", 1) == pytest.approx(0.1)
    clock.now += 0.5
    assert wait_of(limit, "anna", 6) == pytest.approx(0.1)
    assert wait_of(limit, "anna", 5) == 0
    clock.now += 1000
    assert wait_of(limit, "anna", 20) == 0
    assert wait_of(limit, "anna", 1) == pytest.approx(0.1)


def test_clients_do_not_spend_each_others() -> None:
    limit = RateLimit(rate=1, burst=5, clock=Clock())
    assert wait_of(limit, "anna", 5) == 0
    assert wait_of(limit, "bert", 5) == 0
    assert wait_of(limit, "anna", 1) == pytest.approx(1)


def test_a_request_beyond_the_burst_passes_when_the_bucket_is_full_and_is_paid_off() -> None:
    clock = Clock()
    limit = RateLimit(rate=10, burst=20, clock=clock)
    assert wait_of(limit, "anna", 100) == 0
    assert wait_of(limit, "anna", 100) == pytest.approx(10)
    clock.now += 8
    assert wait_of(limit, "anna", 1) == pytest.approx(0.1)
    clock.now += 2
    assert wait_of(limit, "anna", 100) == 0


def test_over_any_time_a_client_gets_no_more_than_rate_and_burst() -> None:
    clock = Clock()
    limit = RateLimit(rate=50, burst=100, clock=clock)
    passed = 0
    for step in range(10_000):
        clock.now += 0.001
        images = step % 7 + 1
        passed += images if wait_of(limit, "anna", images) == 0 else 0
    assert 50 * 10 * 0.95 <= passed - 100 <= 50 * 10


def test_memory_is_bounded_however_many_clients_come() -> None:
    limit = RateLimit(rate=1, burst=5, clock=Clock())
    limit.spend("anna", 5)
    for number in range(20_000):
        limit.spend(f"client {number}", 5)
    # The one that was not heard of for longest starts anew, the last ones are still known.
    assert wait_of(limit, "anna", 5) == 0
    assert wait_of(limit, "client 19999", 5) == pytest.approx(5)


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"x509_common_name": [b"anna"], "x509_subject_alternative_name": [b"spiffe://a/b"]}, "anna"),
        ({"x509_common_name": [b""], "x509_subject_alternative_name": [b"spiffe://a/b", b"a.b"]}, "spiffe://a/b"),
        ({"x509_common_name": [b"an\nna"]}, "'an\\nna'"),
        ({"x509_common_name": [b"\xff"]}, "\\xff"),
        ({"x509_pem_cert": [b"of one"]}, "sha256:36519b01657d6cf8"),
        ({"transport_security_type": [b"ssl"]}, None),
    ],
)
def test_a_certificate_has_a_name(properties: dict[str, list[bytes]], name: str | None) -> None:
    assert (name_in_certificate(properties) or "").startswith(name or "")
    assert (name is None) == (name_in_certificate(properties) is None)


def test_what_is_given_back_can_be_spent_again() -> None:
    limit = RateLimit(rate=0.001, burst=10, clock=Clock())
    limit.give_back("anna", 5)
    assert wait_of(limit, "anna", 10) == 0
    limit.give_back("anna", 4)
    assert wait_of(limit, "anna", 4) == 0
    limit.give_back("anna", 1000)
    assert wait_of(limit, "anna", 10) == 0
    assert wait_of(limit, "anna", 1) != 0


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    tokens = tokens_of(tmp_path, f"\ufeffanna {ANNA}\n")
    assert tokens.name_of(f"Bearer {ANNA}") == "anna"


def test_no_pause_is_longer_than_the_wire_can_say() -> None:
    limit = RateLimit(rate=0.001, burst=1e9, clock=Clock())
    limit.spend("anna", 10**9)
    with pytest.raises(RateLimited) as limited:
        limit.spend("anna", 10**9)
    trailing = dict(rpc_status_of(limited.value, "id").trailing)
    assert "grpc-status-details-bin" in trailing
    assert pb.StreamError(retry_after_ms=round((limited.value.retry_after_s or 0) * 1000)).retry_after_ms > 10**9
