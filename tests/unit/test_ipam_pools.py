from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.base.errors import DrayError, Forbidden, Internal, InvalidParameter, NotFound
from dray.network.ipam import AddressPool, Ipam, complete
from dray.network.model import Pool


def test_addresses_come_lowest_first_and_return() -> None:
    pools = Ipam()
    pools.add("n", [complete(Pool(subnet="10.0.0.0/29"))])
    taken = [str(pools.take("n", "net", 4)[0]) for _ in range(5)]
    assert taken == ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
    with pytest.raises(Internal, match="no available IPv4 addresses on this network's address pools: net"):
        pools.take("n", "net", 4)
    pools.release("n", ip_address("10.0.0.4"))
    pools.release("n", ip_address("10.0.0.1"))  # the gateway is never given back
    assert pools.take("n", "net", 4) == (ip_address("10.0.0.4"), 29)


def test_range_gateway_and_auxiliary_addresses() -> None:
    pools = Ipam()
    pool = complete(Pool(subnet="10.0.0.0/24", ip_range="10.0.0.128/30", auxiliary={"a": "10.0.0.129"}))
    assert pool.gateway == "10.0.0.128"
    pools.add("n", [pool])
    assert [str(pools.take("n", "net", 4)[0]) for _ in range(2)] == ["10.0.0.130", "10.0.0.131"]
    assert pools.reserve("n", ip_address("10.0.0.7")) == 24
    with pytest.raises(Forbidden, match="Address already in use"):
        pools.reserve("n", ip_address("10.0.0.7"))
    with pytest.raises(InvalidParameter, match=r"no configured subnet contains IP address 10\.9\.9\.9"):
        pools.reserve("n", ip_address("10.9.9.9"))


@pytest.mark.parametrize(
    "pool",
    [
        Pool(subnet="10.0.0.0"),
        Pool(subnet="10.0.0.1/24"),
        Pool(subnet="nonsense"),
        Pool(subnet="10.0.0.0/24", gateway="10.0.1.1"),
        Pool(subnet="10.0.0.0/24", ip_range="10.0.1.0/28"),
        Pool(subnet="10.0.0.0/24", ip_range="10.0.0.0/16"),
        Pool(subnet="10.0.0.0/24", auxiliary={"x": "10.0.1.1"}),
        Pool(subnet="10.0.0.0/24", auxiliary={"x": "y"}),
    ],
)
def test_pools_that_make_no_sense(pool: Pool) -> None:
    if pool.subnet == "10.0.0.0":  # a bare address is its own /32
        assert complete(pool).gateway == "10.0.0.0"
        return
    with pytest.raises(InvalidParameter):
        complete(pool)


def test_defaults_avoid_networks_and_routes() -> None:
    pools = Ipam()
    assert str(pools.choose(4, [])) == "172.17.0.0/16"
    pools.add("a", [Pool(subnet="172.17.0.0/16")])
    routed = [ip_network("172.18.5.0/24"), ip_network("172.20.0.0/15"), ip_network("0.0.0.0/0")]
    assert str(pools.choose(4, routed)) == "172.19.0.0/16"
    pools.add("b", [Pool(subnet="172.19.0.0/16")])
    assert str(pools.choose(4, routed)) == "172.22.0.0/16"
    with pytest.raises(Forbidden, match="Pool overlaps with other one on this address space"):
        pools.add("c", [Pool(subnet="172.17.9.0/24")])
    with pytest.raises(NotFound, match="all predefined address pools have been fully subnetted"):
        pools.choose(4, [ip_network("172.16.0.0/12"), ip_network("192.168.0.0/16")])
    assert str(Ipam([("10.10.0.0/16", 24)]).choose(4, [ip_network("10.10.0.0/24")])) == "10.10.1.0/24"
    assert Ipam().choose(6, []).prefixlen == 64
    assert Ipam().choose(6, []).is_private


def test_ipv6_subnets_have_no_broadcast_address() -> None:
    pool = AddressPool(ip_network("fd00::/126"))
    assert [str(pool.take()) for _ in range(4)] == ["fd00::1", "fd00::2", "fd00::3", "None"]


@settings(deadline=None)  # the machine may be busy
@given(
    steps=st.lists(st.tuples(st.sampled_from(["take", "release", "reserve"]), st.integers(0, 31)), max_size=80),
    ranged=st.booleans(),
)
def test_no_address_is_handed_out_twice(steps: list[tuple[str, int]], ranged: bool) -> None:
    subnet = ip_network("10.0.0.0/27")
    pool = AddressPool(
        subnet, ip_range=ip_network("10.0.0.8/29") if ranged else None, kept=[ip_address("10.0.0.1")]
    )
    held: set[str] = set()
    for step, number in steps:
        address = subnet[number]
        if step == "take":
            found = pool.take()
            if found is not None:
                assert str(found) not in held | {"10.0.0.0", "10.0.0.1", "10.0.0.31"}
                held.add(str(found))
            else:
                span = ip_network("10.0.0.8/29") if ranged else subnet
                assert all(str(a) in held | {"10.0.0.0", "10.0.0.1", "10.0.0.31"} for a in span)
        elif step == "reserve":
            try:
                pool.reserve(address)
            except DrayError:
                assert str(address) in held | {"10.0.0.0", "10.0.0.1", "10.0.0.31"}
            else:
                assert str(address) not in held
                held.add(str(address))
        else:
            pool.release(address)
            held.discard(str(address))
