"""Where the server's configuration comes from, and what is said about values that can't be."""

import json
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from engine.config import ServerConfig, load_config
from engine.errors import StartupError


def write(folder: Path, text: str) -> str:
    (folder / "server.toml").write_text(text)
    return str(folder / "server.toml")


def test_flags_go_before_environment_before_file_before_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, 'bundle = "b"\nport = 1\nmax_queue = 1\ncodec_threads = 1\nlog_format = "json"\n')
    environment = {"DFCVAE_CONFIG": file, "DFCVAE_PORT": "2", "DFCVAE_MAX_QUEUE": "2", "OTHER": "x"}
    config = load_config(["--port", "3"], environment)
    assert (config.port, config.max_queue, config.codec_threads, config.grace_s) == (3, 2, 1, 30.0)
    assert config.log_format == "json"
    assert config.bundles == {"default": Path("b")}


def test_the_flag_names_the_file_before_the_environment_does(tmp_path: Path) -> None:
    file = write(tmp_path, "port = 7\n")
    environment = {"DFCVAE_CONFIG": "/nowhere"}
    assert load_config(["--bundle", "b", "--config", file], environment).port == 7
    assert load_config(["--bundle", "b", f"--config={file}"], environment).port == 7


def test_values_of_every_kind_come_from_file_and_environment(tmp_path: Path) -> None:
    file = write(
        tmp_path, 'threads = 3\nmax_delay_ms = 2\ninsecure = true\ntokens = "t"\n[bundle]\na = "x"\nb = "y=z"\n'
    )
    config = load_config(["--config", file], {})
    assert (config.threads, config.max_delay_ms, config.insecure, config.tokens) == (3, 2.0, True, Path("t"))
    assert isinstance(config.max_delay_ms, float)
    assert config.bundles == {"a": Path("x"), "b": Path("y=z")}
    environment = {"DFCVAE_THREADS": "None", "DFCVAE_INSECURE": "False", "DFCVAE_BUNDLE": "c=x,d=y"}
    config = load_config(["--config", file], environment)
    assert (config.threads, config.insecure) == (None, False)
    assert list(config.bundles) == ["c", "d"]
    assert load_config(["--config", file, "--no-insecure"], {}).insecure is False


def test_bundles_of_the_flags_replace_those_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'bundle = ["a=x", "b=y"]\n')
    config = load_config(["--config", file, "--bundle", "old=1", "--bundle", "new=2"], {})
    assert config.bundles == {"old": Path("1"), "new": Path("2")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_queu = 1", "FILE: unknown key 'max_queu'; the keys are: bundle, burst,"),
        ("max_queue = 0", "FILE: max_queue must be from 1 to 4294967295, not 0"),
        ("max_queue = 1.5", "FILE: max_queue must be a valid integer, got a number with a fractional part, not 1.5"),
        ("max_queue = true", "FILE: max_queue must not be true or false"),
        ("max_delay_ms = nan", "FILE: max_delay_ms must be from 0 to 3600000, not nan"),
        ("grace_s = inf", "FILE: grace_s must be from 0 to 604800, not inf"),
        ("reload_every_s = 1e-9", "FILE: reload_every_s must be 0, or from 0.001 to 604800, not 1e-09"),
        ('tokens = "a\\u0000b"', "FILE: tokens must have no NUL character, not 'a\\x00b'"),
        ('bundle = ["a=b\\u0000"]', "FILE: bundle must have no NUL character"),
        ('grace_s = "soon"', "FILE: grace_s must be a valid number, not 'soon'"),
        ("tokens = 1", "FILE: tokens must be a valid path, not 1"),
        ("tokens = true", "FILE: tokens must not be true or false"),
        ("bundle = 1", "FILE: bundle must be a valid tuple, not 1"),
        ("bundle = [1]", "FILE: bundle.0 must be a valid string, not 1"),
        ("insecure = 7", "FILE: insecure must be true or false, not 7"),
        ('log_level = "loud"', "FILE: log_level must be 'debug', 'info', 'warning' or 'error', not 'loud'"),
        ('traces = "nowhere"', "FILE: traces must be \"console\" or the http(s) URL of a collector, not 'nowhere'"),
        ('traces = "https://"', "FILE: traces must be \"console\" or the http(s) URL of a collector, not 'https://'"),
        ('traces = "http://["', "FILE: traces must be \"console\" or the http(s) URL of a collector, not 'http://['"),
        ("a = = b", "--config FILE is not TOML: "),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(StartupError) as error:
        load_config(["--config", file, "--bundle", "b"], {})
    assert str(error.value).replace(file, "FILE").startswith(message)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("DFCVAE_MAX_QUEU", "1", "unknown environment variable DFCVAE_MAX_QUEU; known are: DFCVAE_BUNDLE,"),
        ("DFCVAE_PORT", "70000", "DFCVAE_PORT must be from 0 to 65535, not 70000"),
        ("DFCVAE_PORT", "many", "DFCVAE_PORT must be a valid integer, not 'many'"),
        ("DFCVAE_TOKENS", "", 'DFCVAE_TOKENS is empty, ""; is a variable not set?'),
        ("DFCVAE_CONFIG", "", "DFCVAE_CONFIG is empty"),
        ("DFCVAE_INSECURE", "yes", "DFCVAE_INSECURE must be true or false, not 'yes'"),
        ("DFCVAE_PORT", "tcp://10.0.0.1:50051", "the environment has DFCVAE_PORT=tcp://10.0.0.1:50051, as Kubernetes"),
        ("DFCVAE_SERVICE_HOST", "10.0.0.1", "the environment has DFCVAE_SERVICE_HOST=10.0.0.1, as Kubernetes"),
        ("DFCVAE_CONFIG", "/no/such.toml", "--config /no/such.toml can't be read (No such file or directory)"),
    ],
)
def test_what_is_wrong_in_the_environment_is_said_with_its_name(variable: str, value: str, message: str) -> None:
    with pytest.raises(StartupError) as error:
        load_config(["--bundle", "b"], {variable: value})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "--bundle is missing"),
        ("--bundle a --bundle b", "--bundle names 'default' twice"),
        ("--bundle m=a --bundle m=b", "--bundle names 'm' twice"),
        ("--bundle b --port 70000", "--port must be from 0 to 65535, not 70000"),
        ("--bundle b --burst 5", "--burst belongs to a limit; give --max-images-per-second too"),
        ("--bundle b --tls-cert c", "--tls-cert and --tls-key belong together"),
        ("--bundle b --tls-client-ca c", "--tls-client-ca needs TLS"),
        ("--bundle b --tls-cert c --tls-key k --insecure", "--insecure is for serving without TLS"),
        ("--bundle b --host=", '--host is empty, ""; is a variable not set?'),
        ("--bundle b --host 0.0.0.0", "--host 0.0.0.0 without TLS would send images and tokens over the network"),
        ("--bundle b --host ::", "--host :: without TLS"),
        # Beyond what the wire can count.
        (
            "--bundle b --max-connection-age-s 2592000",
            "--max-connection-age-s must be 0, or from 0.001 to 2147483, not ",
        ),
        ("--bundle b --keepalive-s 3000000", "--keepalive-s must be 0, or from 0.001 to 2147483, not 3"),
        ("--bundle b --min-ping-interval-s 1e7", "--min-ping-interval-s must be from 0 to 2147483, not 1"),
        (
            "--bundle b --max-concurrent-streams 5000000000",
            "--max-concurrent-streams must be from 0 to 2147483647, not 5",
        ),
        (
            "--bundle b --max-message-bytes 3000000000",
            "--max-message-bytes must be from 1024 to 2147483647, not 3",
        ),
        ("--bundle b --max-queue 4294967296", "--max-queue must be from 1 to 4294967295, not 4294967296"),
        ("--bundle b --max-bytes-in-flight 2000", "--max-bytes-in-flight 2000 would refuse messages that"),
    ],
)
def test_what_cannot_be_together_is_said_with_its_flags(flags: str, message: str) -> None:
    with pytest.raises(StartupError) as error:
        load_config(flags.split(), {})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "flags",
    [
        "--host localhost",
        "--host 127.0.0.2",
        "--host ::1",
        "--host 0.0.0.0 --insecure",
        "--host 0.0.0.0 --tls-cert c --tls-key k",
        "--host no.such.host.invalid",  # refused with its own reason when it is used
        f"--host {'long' * 20}",
    ],
)
def test_these_may_be_served_on(flags: str) -> None:
    assert load_config(["--bundle", "b", *flags.split()], {}).host


def test_what_is_printed_can_be_read_again_and_has_no_password(tmp_path: Path) -> None:
    config = load_config(["--bundle", "m=b", "--traces", "https://me:secr@secret@host:4318/v1/traces"], {})
    printed = json.loads(config.to_json())
    assert printed["bundle"] == ["m=b"]
    assert printed["traces"] == "https://***@host:4318/v1/traces"
    assert "secret" not in config.to_json()
    assert set(printed) == set(vars(config))


def test_every_number_has_a_rule() -> None:
    hints = get_type_hints(ServerConfig)
    numbers = [name for name, hint in hints.items() if {int, float} & {hint, *get_args(hint)}]
    assert len(numbers) >= 20
    for flag in (f"--{name.replace('_', '-')}" for name in numbers):
        for value in ("-1", str(10**30)):
            with pytest.raises(StartupError, match=f"{flag} must be .*, not {value[0]}"):
                load_config(["--bundle", "b", flag, value], {})
