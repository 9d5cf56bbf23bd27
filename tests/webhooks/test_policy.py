"""The address policy as a table: which URL, which address, which header, and what the refusal says."""

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from tramontane.errors import CallbackBlocked
from tramontane.settings import Settings, read_settings
from tramontane.webhooks.policy import AddressPolicy

PUBLIC = AddressPolicy()
LOOPBACK = ip_network("127.0.0.0/8")


def rule_of(policy: AddressPolicy, url: str) -> str:
    """The rule that refuses `url`, or nothing."""
    try:
        policy.check_url(url)
    except CallbackBlocked as blocked:
        return blocked.rule
    return ""


@pytest.mark.parametrize(
    ("url", "dialled"),
    [
        ("https://example.com", "https://example.com"),
        ("HTTPS://Example.COM:443/Hook?a=1&b=%20", "https://example.com/Hook?a=1&b=%20"),
        ("https://example.com:8443/a/../b", "https://example.com:8443/b"),
        ("https://example.com:00443/", "https://example.com/"),
        ("https://under_score.example.com/", "https://under_score.example.com/"),
        ("https://example.com./", "https://example.com./"),
        ("https://bücher.example/é", "https://xn--bcher-kva.example/%C3%A9"),
        ("https://faß.example/", "https://xn--fa-hia.example/"),
        ("https://例え.jp/", "https://xn--r8jz45g.jp/"),
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
        ("https://93.184.216.34/", "https://93.184.216.34/"),
        ("https://[2606:2800:220:1:248:1893:25C8:1946]/", "https://[2606:2800:220:1:248:1893:25c8:1946]/"),
        ("https://0xabc.example.com/", "https://0xabc.example.com/"),
        ("https://example.com/" + "a" * 2028, "https://example.com/" + "a" * 2028),
    ],
)
def test_a_url_is_accepted_as_it_will_be_dialled(url: str, dialled: str) -> None:
    assert PUBLIC.check_url(url).url == dialled


@pytest.mark.parametrize(
    ("rule", "url"),
    [
        ("length", ""),
        ("length", "https://example.com/" + "a" * 2029),
        ("characters", "https://example.com/a b"),
        ("characters", " https://example.com/"),
        ("characters", "https://example.com\\@evil.com/"),
        ("characters", "https://example.com/\n"),
        ("characters", "https://example.com/\x7f"),
        ("characters", "https://example.com/\u200b"),
        ("characters", "https://example.com/\u202e"),
        ("characters", "https://exam\u00adple.com/"),
        ("characters", "https://example.com/\ud800"),
        ("syntax", "example.com/hook"),
        ("syntax", "//example.com/hook"),
        ("syntax", "https:example.com"),
        ("syntax", "https:/example.com"),
        ("scheme", "ftp://example.com/"),
        ("scheme", "file:///etc/passwd"),
        ("scheme", "gopher://example.com/"),
        ("userinfo", "https://user@example.com/"),
        ("userinfo", "https://user:word@example.com/"),
        ("userinfo", "https://@example.com/"),
        ("fragment", "https://example.com/#"),
        ("fragment", "https://example.com/#part"),
        ("host", "https:///hook"),
        ("host", "https://:443/"),
        ("host", "https://example.com:/"),
        ("host", "https://example.com:443:443/"),
        ("host", "https://example.com:+443/"),
        ("host", "https://example.com:٤٤٣/"),
        ("host", "https://example..com/"),
        ("host", "https://.example.com/"),
        ("host", "https://example.com../"),
        ("host", "https://-example.com/"),
        ("host", "https://exa%6dple.com/"),
        ("host", "https://exa*mple.com/"),
        ("host", "https://[::1/"),
        ("host", "https://[v1.x]/"),
        ("host", "https://[1.2.3.4]/"),
        ("host", "https://[fe80::1%25eth0]/"),
        ("host", "https://" + "a" * 64 + ".com/"),
        ("host", "https://" + ".".join(["a" * 60] * 5) + "/"),
        ("idna", "https://①.example.com/"),
        ("idna", "https://example。com/"),
        ("idna", "https://ｅxample.com/"),
        ("idna", "https://BÜCHER.example/"),
        ("idna", "https://i♥.example/"),
        ("idna", "https://xn--zzzzzzz999.example/"),
        ("idna", "https://аpple.com/"),
        ("idna", "https://xn--pple-43d.com/"),
        ("idna", "https://gοοgle.com/"),
        ("ipv4_form", "https://2130706433/"),
        ("ipv4_form", "https://0x7f000001/"),
        ("ipv4_form", "https://0x7f.1/"),
        ("ipv4_form", "https://0177.0.0.1/"),
        ("ipv4_form", "https://93.184.55330/"),
        ("ipv4_form", "https://1.2.3.4.5/"),
        ("ipv4_form", "https://256.1.1.1/"),
        ("ipv4_form", "https://93.184.216.34./"),
        ("ipv4_form", "https://example.1/"),
        ("port", "https://example.com:0/"),
        ("port", "https://example.com:22/"),
        ("port", "https://example.com:1023/"),
        ("port", "https://example.com:5432/"),
        ("port", "https://example.com:6379/"),
        ("port", "https://example.com:3306/"),
        ("port", "https://example.com:11211/"),
        ("port", "https://example.com:9200/"),
        ("port", "https://example.com:2375/"),
        ("port", "https://example.com:10250/"),
        ("localhost", "https://localhost/"),
        ("localhost", "https://LOCALHOST./"),
        ("localhost", "https://app.localhost/"),
        ("internal_name", "https://service.internal/"),
        ("internal_name", "https://printer.local/"),
        ("metadata", "https://metadata.google.internal/"),
        ("single_label", "https://intranet/"),
        ("https_required", "http://example.com/"),
        ("https_required", "http://93.184.216.34/"),
        ("loopback", "https://127.0.0.1/"),
        ("loopback", "https://[::1]/"),
        ("loopback", "https://[::ffff:127.0.0.1]/"),
        ("private", "https://192.168.1.1/"),
        ("private", "https://[fd00::1]/"),
        ("link_local", "https://[fe80::1]/"),
        ("metadata", "https://169.254.169.254/"),
        ("nat64", "https://[64:ff9b::8.8.8.8]/"),
        ("tunnel", "https://[2002:7f00:1::]/"),
    ],
)
def test_a_url_is_refused_by_its_rule(rule: str, url: str) -> None:
    assert rule_of(PUBLIC, url) == rule


@pytest.mark.parametrize("port", ["65536", "99999"])
def test_a_port_that_does_not_exist_is_refused(port: str) -> None:
    assert rule_of(PUBLIC, f"https://example.com:{port}/") in ("ambiguous", "port")


@given(st.text(max_size=40), st.sampled_from(["https://{}", "https://{}/", "https://{}:8080/", "https://{}.com", "{}"]))
def test_what_is_judged_is_what_is_dialled(text: str, frame: str) -> None:
    try:
        target = PUBLIC.check_url(frame.format(text))
    except CallbackBlocked:
        return
    dialled = URL(target.url)
    assert target.url.isascii()
    assert str(dialled) == target.url
    assert (dialled.scheme, (dialled.raw_host or "").removesuffix("."), dialled.port) == (
        target.scheme,
        target.host,
        target.port,
    )
    assert dialled.user is None


def test_a_refusal_names_the_field_the_rule_and_the_remedy() -> None:
    with pytest.raises(CallbackBlocked) as raised:
        PUBLIC.check_url("http://127.0.0.1:3000/hook", "callback.url")

    assert raised.value.field == "callback.url"
    assert raised.value.rule == "loopback"
    assert raised.value.hint == "set TRAMONTANE_WEBHOOK_ALLOW_CIDRS=127.0.0.1/32"


def test_the_remedy_of_every_refused_address_helps() -> None:
    for address in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "fd00:ec2::254", "::1", "ff02::1", "100.100.100.200"):
        hint = PUBLIC.judge_address(address, "hooks.example").hint
        variable, _, value = hint.removeprefix("set ").partition("=")
        policy = AddressPolicy.from_settings(read_settings({variable: value}))
        assert policy.judge_address(address, "hooks.example").passed, address


def test_the_remedy_of_every_refused_name_helps() -> None:
    for host in ("localhost", "a.internal", "metadata.google.internal", "intranet", "printer.local", "example.com"):
        with pytest.raises(CallbackBlocked) as raised:
            PUBLIC.check_url(f"http://{host}/")
        variable, _, value = raised.value.hint.rpartition("set ")[2].partition("=")
        policy = AddressPolicy.from_settings(read_settings({variable: value}))
        assert rule_of(policy, f"http://{host}/") == "", host


def test_http_is_for_what_is_allowed() -> None:
    laptop = AddressPolicy(allow_cidrs=(LOOPBACK,))

    assert rule_of(laptop, "http://127.0.0.1:3000/") == ""
    assert rule_of(laptop, "http://10.0.0.1/") == "private"
    assert rule_of(laptop, "http://93.184.216.34/") == "https_required"
    # A name may lead to the loopback; where it does lead is judged when it is dialled.
    assert rule_of(laptop, "http://example.com/") == ""
    assert laptop.judge_address("127.0.0.1", "example.com", secure=False).rule == "allow_cidrs"
    assert laptop.judge_address("93.184.216.34", "example.com", secure=False).rule == "https_required"
    assert laptop.judge_address("93.184.216.34", "example.com", secure=True).rule == "public"


def test_an_allowed_name_may_lead_anywhere_but_to_credentials() -> None:
    policy = AddressPolicy(allow_hosts=frozenset({"hooks.internal"}))

    assert rule_of(policy, "http://hooks.internal:8080/") == ""
    assert rule_of(policy, "http://other.internal:8080/") == "internal_name"
    assert policy.judge_address("10.0.0.1", "hooks.internal", secure=False).passed
    assert not policy.judge_address("10.0.0.1", "other.example").passed
    assert policy.judge_address("169.254.169.254", "hooks.internal").rule == "metadata"


def test_credentials_are_reached_only_by_their_exact_name() -> None:
    def allowed(host: str, **options: Any) -> bool:
        return AddressPolicy(**options).judge_address("169.254.169.254", host).passed

    name, address = "metadata.google.internal", "169.254.169.254"
    assert not allowed(address, allow_cidrs=(ip_network("169.254.0.0/16"),))
    assert not allowed("other.example", allow_hosts=frozenset({name, address, "other.example"}))
    assert allowed(address, allow_cidrs=(ip_network("169.254.169.254/32"),))
    assert allowed(address, allow_hosts=frozenset({address}))
    assert allowed(name, allow_hosts=frozenset({name}))


def test_denied_wins_over_everything() -> None:
    policy = AddressPolicy(
        allow_cidrs=(LOOPBACK,), allow_hosts=frozenset({"hooks.example"}), deny_cidrs=(ip_network("127.0.0.1/32"),)
    )

    assert policy.judge_address("127.0.0.1", "hooks.example").rule == "denied"
    assert policy.judge_address("::ffff:127.0.0.1", "hooks.example").rule == "denied"
    assert policy.judge_address("127.0.0.2", "hooks.example").passed


def test_a_gateway_is_allowed_only_to_what_may_be_dialled_itself() -> None:
    site = AddressPolicy(allow_cidrs=(ip_network("64:ff9b::/96"),), deny_cidrs=(ip_network("8.8.4.4/32"),))

    assert site.judge_address("64:ff9b::8.8.8.8", "hooks.example").passed
    assert site.judge_address("64:ff9b::8.8.4.4", "hooks.example").rule == "denied"
    assert site.judge_address("64:ff9b::127.0.0.1", "hooks.example").rule == "loopback"
    assert site.judge_address("64:ff9b::169.254.169.254", "hooks.example").rule == "metadata"


def test_a_zone_does_not_change_an_address() -> None:
    assert PUBLIC.judge_address("fe80::1%eth0", "hooks.example").rule == "link_local"
    assert PUBLIC.judge_address("::1%1", "hooks.example").rule == "loopback"


def test_what_is_no_address_is_refused() -> None:
    for text in ("", "127.1", "2130706433", "example.com", "0x7f.0.0.1", "1.2.3.4\n"):
        assert PUBLIC.judge_address(text, "hooks.example").rule == "address"


def test_the_settings_are_the_policy() -> None:
    policy = AddressPolicy.from_settings(
        Settings(
            webhook_allow_cidrs=(LOOPBACK,),
            webhook_allow_hosts=("Hooks.Internal.", "bücher.local", "[FD00::1]"),
            webhook_deny_cidrs=(ip_network("10.0.0.0/8"),),
            webhook_allowed_ports=((443, 443), (8000, 8999)),
        )
    )

    assert policy.allow_hosts == {"hooks.internal", "xn--bcher-kva.local", "fd00::1"}
    assert rule_of(policy, "https://hooks.internal/") == ""
    assert rule_of(policy, "https://[fd00::1]/") == ""
    assert rule_of(policy, "https://example.com:8500/") == ""
    assert rule_of(policy, "http://127.0.0.1:80/") == "port"
    assert rule_of(policy, "https://10.0.0.1/") == "denied"


def test_an_explanation_has_a_line_per_rule_and_address() -> None:
    findings = PUBLIC.explain("https://example.com/hook", ["93.184.216.34", "10.0.0.1"])

    assert [(finding.rule, finding.passed) for finding in findings] == [
        ("syntax", True),
        ("port", True),
        ("name", True),
        ("scheme", True),
        ("public", True),
        ("private", False),
    ]


def test_an_explanation_goes_on_after_a_refusal_and_stops_where_nothing_can_be_read() -> None:
    findings = PUBLIC.explain("http://localhost:22/")

    assert [finding.rule for finding in findings if not finding.passed] == ["port", "localhost", "https_required"]
    assert [finding.rule for finding in PUBLIC.explain("https://user@example.com")] == ["userinfo"]


@pytest.mark.parametrize(
    ("rule", "headers"),
    [
        ("", {}),
        ("", {"Authorization": "Bearer abc", "X-Tenant": "a\tb c", "x.y": ""}),
        ("header_name", {"": "a"}),
        ("header_name", {"x y": "a"}),
        ("header_name", {"x:y": "a"}),
        ("header_name", {"x\r\nevil": "a"}),
        ("header_name", {"é": "a"}),
        ("header_value", {"x": "a\r\nevil: 1"}),
        ("header_value", {"x": "a\nb"}),
        ("header_value", {"x": "a\x00b"}),
        ("header_value", {"x": "é"}),
        ("header_repeated", {"x": "1", "X": "2"}),
        ("header_size", {"x": "a" * 8192}),
        ("header_size", {f"x-{number}": "a" * 100 for number in range(80)}),
        *(
            ("header_reserved", {name: "1"})
            for name in (
                "Host",
                "Content-Type",
                "content-length",
                "Content-Encoding",
                "Transfer-Encoding",
                "Connection",
                "TE",
                "Expect",
                "Upgrade",
                "Accept-Encoding",
                "Proxy-Authorization",
                "webhook-id",
                "Webhook-Anything",
                "X-Webhook-Signature",
            )
        ),
    ],
)
def test_custom_headers_are_plain_and_not_ours(rule: str, headers: dict[str, str]) -> None:
    try:
        AddressPolicy.check_headers(headers, "callback.headers")
        seen = ""
    except CallbackBlocked as blocked:
        seen = blocked.rule
    assert seen == rule


def test_a_refused_header_does_not_show_its_value() -> None:
    with pytest.raises(CallbackBlocked) as raised:
        AddressPolicy.check_headers({"Authorization": "Bearer s3cret\n"}, "headers")

    assert raised.value.field == "headers.Authorization"
    assert "s3cret" not in str(raised.value)
