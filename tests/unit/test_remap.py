"""Maps of ids, and what a container in a user namespace cannot have."""

from __future__ import annotations

import pytest

from dray.api.models import HostConfig
from dray.base.errors import InvalidParameter
from dray.engine.mounts import parse_idmap
from dray.engine.remap import Remap, mappings
from dray.engine.spec import mounts as spec_mounts
from dray.linux import usernamespaces
from dray.linux.usernamespaces import OVERFLOW, IdMap

MAPS = IdMap(((0, 300000, 1000), (1000, 200000, 65536)), ((0, 400000, 65536),))


@pytest.mark.parametrize(("inside", "outside"), [((0, 0), (300000, 400000)), ((999, 5), (300999, 400005)),
                                            ((1000, 1), (200000, 400001)), ((66535, 65535), (265535, 465535))])  # fmt: skip
def test_ids_there_and_back(inside, outside):
    assert MAPS.outside(*inside) == outside
    assert MAPS.inside(*outside) == inside


def test_ids_that_are_not_mapped():
    assert MAPS.inside(0, 399999) == (OVERFLOW, OVERFLOW)
    for ids in ((66536, 0), (0, 65536)):
        with pytest.raises(InvalidParameter, match="cannot be mapped to a host ID"):
            MAPS.outside(*ids)


def test_the_kernels_text():
    assert usernamespaces.parse(MAPS.uid_map, MAPS.gid_map) == MAPS
    assert usernamespaces.parse("         0     700000      65536\n", "0 1 2") == IdMap(
        ((0, 700000, 65536),), ((0, 1, 2),)
    )


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({"privileged": True}, "privileged mode is incompatible with user namespaces"),
        ({"network_mode": "host"}, "cannot share the host's network namespace when user namespaces are enabled"),
        ({"pid_mode": "host"}, "cannot share the host PID namespace when user namespaces are enabled"),
        ({"ipc_mode": "host"}, "cannot share the host's IPC namespace"),
        ({"runtime": "runc"}, "runtime runc cannot be used"),
    ],
)
def test_what_leads_out_is_refused(ask, words):
    ask = {"runtime": "dray"} | ask
    with pytest.raises(InvalidParameter, match=words):
        Remap(MAPS).check(HostConfig(**ask))
    Remap(MAPS).check(HostConfig(**ask, userns_mode="host"))
    Remap().check(HostConfig(**ask))


def test_mapped_owners_of_a_bind_are_the_containers():
    users, _ = parse_idmap("5:1000:10")
    [(seen, _disk, count)] = users
    assert spec_mounts._outside(seen, count, mappings(MAPS.uids), _Mount()) == 300005
    assert spec_mounts._outside(seen, count, (), _Mount()) == 5
    with pytest.raises(InvalidParameter, match="has no ids 995 to 1004"):
        spec_mounts._outside(995, 10, mappings(MAPS.uids), _Mount())


class _Mount:
    destination = "/data"
