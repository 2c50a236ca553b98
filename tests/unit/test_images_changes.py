"""`--change` of import and commit."""

from __future__ import annotations

import pytest

from dray.base.errors import InvalidParameter
from dray.oci.image import ContainerConfig, Healthcheck
from dray.store.transfer.changes import apply_changes, words


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ('CMD ["a", "b c"]', "cmd", ["a", "b c"]),
        ("CMD echo $HOME", "cmd", ["/bin/sh", "-c", "echo $HOME"]),
        ("cmd [not json", "cmd", ["/bin/sh", "-c", "[not json"]),
        ('ENTRYPOINT ["/x"]', "entrypoint", ["/x"]),
        ("ENV A=1 B='two words' C=\"q\\\"q\" D=e\\ f", "env", ["A=1", "B=two words", 'C=q"q', "D=e f"]),
        ("ENV KEY some value", "env", ["KEY=some value"]),
        ("EXPOSE 80 53/UDP 7000-7002", "exposed_ports", {"80/tcp": {}, "53/udp": {}, "7000/tcp": {}, "7001/tcp": {}, "7002/tcp": {}}),
        ('LABEL a=b "c d"=e', "labels", {"a": "b", "c d": "e"}),
        ("USER app:group", "user", "app:group"),
        ("WORKDIR /srv/../opt", "working_dir", "/opt"),
        ("WORKDIR rel", "working_dir", "/rel"),
        ('VOLUME ["/a b", "/c"]', "volumes", {"/a b": {}, "/c": {}}),
        ("VOLUME /a /b", "volumes", {"/a": {}, "/b": {}}),
        ("STOPSIGNAL SIGQUIT", "stop_signal", "SIGQUIT"),
        ("STOPSIGNAL 9", "stop_signal", "9"),
        ("ONBUILD RUN x", "on_build", ["RUN x"]),
        ("HEALTHCHECK NONE", "healthcheck", Healthcheck(test=["NONE"])),
        (
            "HEALTHCHECK --interval=1m30s --timeout=500ms --retries=2 --start-period=5s CMD curl localhost",
            "healthcheck",
            Healthcheck(test=["CMD-SHELL", "curl localhost"], interval=90 * 10**9, timeout=5 * 10**8, retries=2,
                        start_period=5 * 10**9),
        ),
        ('HEALTHCHECK CMD ["a"]', "healthcheck", Healthcheck(test=["CMD", "a"])),
    ],
)  # fmt: skip
def test_allowed(line: str, field: str, expected: object) -> None:
    config = ContainerConfig()
    apply_changes(config, [line])
    assert getattr(config, field) == expected


@pytest.mark.parametrize(
    "line",
    [
        "RUN x", "FROM y", "COPY a b", "CMD", "ENV A", "ENV A=1 B", "LABEL a", "EXPOSE 0", "EXPOSE 70000", "EXPOSE a/b",
        "EXPOSE 9-8", "ONBUILD ONBUILD RUN x", "ONBUILD FROM x", "STOPSIGNAL no signal", "HEALTHCHECK --nope=1 CMD x",
        "HEALTHCHECK CMD", "HEALTHCHECK --interval=abc CMD x", "HEALTHCHECK --interval=1us CMD x", "LABEL a='b",
        'VOLUME [""]',
    ],
)  # fmt: skip
def test_refused(line: str) -> None:
    with pytest.raises(InvalidParameter):
        apply_changes(ContainerConfig(), [line])


def test_later_changes_win_and_add() -> None:
    config = ContainerConfig(env=["A=0", "B=0"], cmd=["old"])
    apply_changes(config, ["ENV A=1", "ENV C=3\n# comment\nLABEL x=y", "ENTRYPOINT e"])
    assert config.env == ["A=1", "B=0", "C=3"]
    assert config.labels == {"x": "y"}
    assert config.cmd is None


def test_words() -> None:
    assert words("a  'b c'\t\"d\\\"e\" f\\ g ''") == ["a", "b c", 'd"e', "f g", ""]
