"""Decisions of the registry client without a network: challenges, proxies, endpoints, words."""

import ipaddress

import pytest

from dray.base import reference
from dray.base.errors import Forbidden, InvalidParameter, NotFound, Unauthorized, Unavailable
from dray.daemon.registries import registry_settings, shown_by_info
from dray.registry.accounts import host_of, split_term
from dray.registry.answers import parse_errors, refusal
from dray.registry.challenges import Challenge, parse_challenges
from dray.registry.proxies import Proxies, from_environment, parse_proxy, redacted
from dray.registry.session import retry_after
from dray.registry.settings import Endpoint, RegistrySettings, parse_insecure, parse_mirror

DEFAULTS = {
    "registry-mirrors": [],
    "insecure-registries": [],
    "proxies": {},
    "http-proxy": "",
    "https-proxy": "",
    "no-proxy": "",
    "max-download-attempts": 5,
}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], []),
        (['Basic realm="x"'], [Challenge("basic", {"realm": "x"})]),
        (
            ['Bearer realm="https://a/t",service="r",scope="repository:a/b:pull,push"'],
            [Challenge("bearer", {"realm": "https://a/t", "service": "r", "scope": "repository:a/b:pull,push"})],
        ),
        (
            ['Bearer realm="u" , error=insufficient_scope, Basic realm="a \\"b\\", c"'],
            [
                Challenge("bearer", {"realm": "u", "error": "insufficient_scope"}),
                Challenge("basic", {"realm": 'a "b", c'}),
            ],
        ),
        (["Negotiate", "BASIC REALM=x"], [Challenge("negotiate"), Challenge("basic", {"realm": "x"})]),
        (['Bearer realm="first",realm="second"'], [Challenge("bearer", {"realm": "first"})]),
        (['Bearer realm="open'], [Challenge("bearer"), Challenge("realm")]),
        (["", ",,,", "="], []),
    ],
)
def test_challenges(headers, expected):
    assert parse_challenges(headers) == expected


@pytest.mark.parametrize(
    ("no", "url", "direct"),
    [
        ("", "https://a.example/", False),
        ("*", "https://a.example/", True),
        ("example", "https://example/", True),
        ("example.com", "https://example.com/", True),
        ("example.com", "https://a.example.com/", True),
        ("example.com", "https://badexample.com/", False),
        (".example.com", "https://a.example.com/", True),
        (".example.com", "https://example.com/", False),
        ("*.example.com", "https://b.a.EXAMPLE.com/", True),
        ("*.example.com", "https://example.com/", False),
        ("example.com:443", "https://example.com/", True),
        ("example.com:443", "https://example.com:5000/", False),
        ("example.com:5000", "https://a.example.com:5000/", True),
        ("10.0.0.0/8", "https://10.1.2.3:5000/", True),
        ("10.0.0.0/8", "https://11.1.2.3:5000/", False),
        ("10.1.2.3", "https://10.1.2.3/", True),
        ("10.1.2.3:80", "https://10.1.2.3/", False),
        ("10.1.2.3:443", "https://10.1.2.3/", True),
        ("2.3", "https://10.1.2.3/", False),
        ("fd00::/8", "https://[fd00::1]:5000/", True),
        ("fd00::1", "https://[fd00::1]:5000/", True),
        (" a.example , b.example ", "https://b.example/", True),
        ("", "https://localhost/", True),
        ("", "https://127.9.9.9:5000/", True),
        ("", "https://[::1]:5000/", True),
    ],
)
def test_no_proxy_has_the_rules_of_go(no, url, direct):
    assert Proxies("http://h:1", "http://s:2", no).for_url(url) == ("" if direct else "http://s:2")


def test_a_proxy_is_for_one_scheme():
    assert Proxies("http://h:1", "").for_url("http://a.example/") == "http://h:1"
    assert Proxies("http://h:1", "").for_url("https://a.example/") == ""


def test_proxies_come_from_flags_then_file_then_environment():
    around = {"HTTPS_PROXY": "env:1", "https_proxy": "lower:1", "no_proxy": "x"}
    assert from_environment(around) == Proxies("", "env:1", "x")
    settings = registry_settings(DEFAULTS, around)
    assert settings.proxies == Proxies("", "http://env:1", "x")
    settings = registry_settings(DEFAULTS | {"proxies": {"https-proxy": "http://file:1"}}, around)
    assert settings.proxies.https == "http://file:1"
    settings = registry_settings(DEFAULTS | {"https-proxy": "http://flag:1", "proxies": {"no-proxy": "y"}}, around)
    assert settings.proxies == Proxies("", "http://flag:1", "y")


def test_passwords_of_proxies_are_shown_to_nobody():
    settings = registry_settings(DEFAULTS | {"http-proxy": "http://me:secret@p:1"}, {})
    assert settings.proxies.http == "http://me:secret@p:1"
    assert shown_by_info(settings)["http_proxy"] == "http://xxxxx:xxxxx@p:1"
    assert redacted("me:secret@p:1") == "xxxxx:xxxxx@p:1"
    for wrong in ("ftp://me:secret@p", "http://me:secret@", "http://me:secret@p:port"):
        with pytest.raises(InvalidParameter) as refused:
            parse_proxy(wrong)
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"registry-mirrors": ["mirror.example"]}, "no scheme"),
        ({"registry-mirrors": ["ftp://mirror.example"]}, "unsupported scheme"),
        ({"registry-mirrors": ["https://m.example/path"]}, "path, query, or fragment"),
        ({"registry-mirrors": ["https://m.example/?q"]}, "path, query, or fragment"),
        ({"registry-mirrors": ["https://u:secret@m.example"]}, "username/password not allowed"),
        ({"registry-mirrors": [1]}, "list of strings"),
        ({"insecure-registries": ["a b"]}, "a b is not valid"),
        ({"insecure-registries": ["10.0.0.0/99"]}, "not valid"),
        ({"insecure-registries": ["-host:5000"]}, "not valid"),
        ({"proxies": {"ftp-proxy": "x"}}, "ftp-proxy"),
        ({"proxies": {"http-proxy": 1}}, "object of strings"),
        ({"proxies": []}, "object of strings"),
        ({"proxies": {"http-proxy": "socks5://x"}}, "invalid proxy URL"),
        ({"proxies": {"http-proxy": "http://a"}, "http-proxy": "http://b"}, "specified both"),
    ],
)
def test_settings_that_make_no_sense_are_named(over, words):
    with pytest.raises(InvalidParameter, match=words) as refused:
        registry_settings(DEFAULTS | over, {})
    assert "secret" not in str(refused.value)


def settings_of(**over):
    return registry_settings(DEFAULTS | {key.replace("_", "-"): value for key, value in over.items()}, {})


def no_addresses(name):
    return []


def test_docker_io_is_asked_at_its_mirrors_and_then_at_its_own_host():
    settings = settings_of(registry_mirrors=["https://m1.example/", "http://m2.example:5000"])
    assert settings.endpoints("docker.io", push=False, resolve=no_addresses) == [
        Endpoint("https://m1.example", mirror=True),
        Endpoint("http://m2.example:5000", mirror=True, verify=False),
        Endpoint("https://registry-1.docker.io"),
    ]
    assert settings.endpoints("docker.io", push=True) == [Endpoint("https://registry-1.docker.io")]
    assert settings.endpoints("r.example", push=False, resolve=no_addresses) == [Endpoint("https://r.example")]


@pytest.mark.parametrize(
    ("domain", "insecure"),
    [
        ("r.example", False),
        ("r.example:5000", True),
        ("R.example:5000", True),
        ("r.example:5001", False),
        ("any.example:1", True),
        ("any.example", True),
        ("10.2.3.4:5000", True),
        ("11.2.3.4:5000", False),
        ("127.0.0.1:5000", True),
        ("[::1]:5000", True),
        ("named.example", True),
        ("localhost:5000", True),
    ],
)
def test_insecure_registries_are_hosts_and_networks(domain, insecure):
    settings = settings_of(insecure_registries=["https://r.example:5000/", "any.example", "10.0.0.0/8"])
    names = {"named.example": ["192.0.2.1", "10.9.9.9"], "localhost": ["127.0.0.1"]}

    def resolve(name):
        return names.get(name, [])

    found = settings.endpoints(domain, push=False, resolve=resolve)
    secure = [Endpoint(f"https://{domain}")]
    both = [Endpoint(f"https://{domain}", verify=False), Endpoint(f"http://{domain}", verify=False)]
    assert found == (both if insecure else secure)


def test_loopback_is_insecure_unless_told_otherwise():
    networks, hosts = parse_insecure([])
    assert [str(network) for network in networks] == ["::1/128", "127.0.0.0/8"]
    assert hosts == frozenset()
    assert not RegistrySettings(insecure_networks=()).is_insecure("127.0.0.1:5000")
    assert parse_insecure(["fd00::/8"])[0][-1] == ipaddress.ip_network("fd00::/8")


def test_a_mirror_is_written_without_its_final_slash():
    assert parse_mirror("https://m.example:5000/") == "https://m.example:5000"


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("r.example:5000", "r.example:5000"),
        ("https://r.example/v2/", "r.example"),
    ],
)
def test_server_addresses_of_logins(address, host):
    assert host_of(address) == host


@pytest.mark.parametrize(
    ("term", "parts"),
    [
        ("nginx", ("docker.io", "nginx")),
        ("library/nginx", ("docker.io", "nginx")),
        ("me/thing", ("docker.io", "me/thing")),
        ("docker.io/me/thing", ("docker.io", "me/thing")),
        ("r.example/a/b", ("r.example", "a/b")),
        ("localhost/a", ("localhost", "a")),
        ("r.example:5000/", ("r.example:5000", "")),
    ],
)
def test_search_terms_may_name_a_registry(term, parts):
    assert split_term(term) == parts


def test_a_search_term_is_no_url():
    with pytest.raises(InvalidParameter, match="scheme"):
        split_term("https://r.example/a")


def errors(*codes):
    return (
        '{"errors":[' + ",".join(f'{{"code":"{c}","message":"{c.lower()} words"}}' for c in codes) + "]}"
    ).encode()


@pytest.mark.parametrize(
    ("status", "body", "push", "kind", "words"),
    [
        (404, errors("MANIFEST_UNKNOWN"), False, NotFound,
         "manifest for r.example/a:t not found: manifest unknown: manifest_unknown words"),
        (404, errors("NAME_UNKNOWN"), False, NotFound,
         "repository r.example/a not found: name unknown: name_unknown words"),
        (403, errors("DENIED"), False, NotFound,
         "pull access denied for r.example/a, repository does not exist or may require 'docker login': "
         "denied: denied words"),
        (403, errors("DENIED"), True, Forbidden, "denied: denied words"),
        (403, b"<html>", True, Forbidden, "denied: requested access to the resource is denied"),
        (401, errors("UNAUTHORIZED"), False, Unauthorized, "Get: unauthorized: unauthorized words"),
        (401, b"", True, Unauthorized, "unauthorized: authentication required"),
        (404, errors("BLOB_UNKNOWN"), False, NotFound, "blob unknown: blob_unknown words"),
        (404, b"not found", False, NotFound, "Get: the registry answered 404 Not Found: is there a registry at all?"),
        (400, errors("DIGEST_INVALID", "X_Y"), True, InvalidParameter,
         "errors:\ndigest invalid: digest_invalid words\nx y: x_y words\n"),
        (418, b"", False, InvalidParameter, "Get: received unexpected HTTP status: 418 I'm a Teapot"),
        (500, b"", False, Unavailable, "Get: received unexpected HTTP status: 500 Internal Server Error"),
        (429, errors("TOOMANYREQUESTS"), False, Unavailable, "toomanyrequests: toomanyrequests words"),
    ],
)  # fmt: skip
def test_refusals_have_dockers_words(status, body, push, kind, words):
    error = refusal(status, body, [], name=reference.parse("r.example/a:t"), request="Get", push=push)
    assert (type(error), error.message) == (kind, words)


def test_a_token_without_the_right_is_a_denial():
    challenges = [Challenge("bearer", {"error": "insufficient_scope"})]
    error = refusal(401, errors("UNAUTHORIZED"), challenges, name=reference.parse("r.example/a"), request="Get")
    assert isinstance(error, NotFound)
    assert "pull access denied for r.example/a" in error.message


def test_error_bodies_may_be_anything():
    for body in (b"", b"null", b"[]", b'{"errors":7}', b'{"errors":[7,{},{"code":1}]}', b"\xff", b"[" * 100_000):
        assert parse_errors(body) == []
    shown = str(parse_errors(b'{"errors":[{"code":"X","message":"a\\u001b[31mb\\nc"}]}')[0])
    assert shown == "x: a [31mb c"
    assert str(parse_errors(b'{"details":"incorrect username or password"}')[0]).endswith("or password")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), ("0", 0.0), ("99999", 60.0), ("", None), ("soon", None), ("-1", None), ("1e3", None)],
)
def test_retry_after(value, seconds):
    assert retry_after(value) == seconds


def test_retry_after_may_be_a_date():
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT", now=lambda: 1445412470.0) == 10.0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_certificates_are_looked_for_beside_the_configuration():
    settings = registry_settings(DEFAULTS, {}, file="/etc/other/daemon.json")
    assert settings.certificate_folders == ("/etc/other/certs.d", "/etc/docker/certs.d")
