import pytest

from cryoformer_dist.config.secrets import find_secrets, find_secrets_in_lines


@pytest.mark.parametrize(
    "name",
    [
        "GITHUB_PAT",
        "apiToken",
        "DB_PWD",
        "APIKEY",
        "HTTP_AUTH",
        "SMTP_PASS",
        "JWT",
        "AZURE_SAS",
        "SIGNING_KEY",
        "pgpassword",
    ],
)
def test_a_name_of_a_secret_is_known(name: str) -> None:
    assert find_secrets({name: "x", "OMP_NUM_THREADS": "1"}) == [name]


@pytest.mark.parametrize(
    "value",
    [
        "AKIA" + "A" * 16,
        "ghp_" + "a" * 36,
        "hf_" + "a" * 30,
        "http://me:word@host/",
        "-----BEGIN RSA PRIVATE KEY-----",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc",
    ],
)
def test_a_value_that_gives_itself_away_is_known_whatever_its_name(value: str) -> None:
    assert find_secrets({"PLAIN": value}) == ["PLAIN"]
    assert list(find_secrets_in_lines([f"export PLAIN={value}"])) == ["export"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KEYBOARD", "us"),
        ("COMPASS", "north"),
        ("NCCL_IB_PKEY_INDEX", "0"),
        ("AWS_ENDPOINT_URL", "http://host:9000"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/home/me/.aws/credentials"),
        ("RAY_AUTH_MODE", "token"),
        ("PATH", "/usr/bin"),
        ("PYTHONPATH", "/shared/code"),
    ],
)
def test_what_is_no_secret_passes(name: str, value: str) -> None:
    assert find_secrets({name: value}) == []
    assert list(find_secrets_in_lines([f"export {name}={value}"])) == []


def test_a_line_is_told_of_by_the_name_it_sets() -> None:
    lines = ["export HF_TOKEN=abc", "source venv/bin/activate", "HF_TOKEN=$HF_TOKEN run --db-password=abc"]
    assert list(find_secrets_in_lines(lines)) == ["HF_TOKEN", "db-password"]
