from dray.engine.peers import BEGIN, END, block, with_block
from dray.network.model import Endpoint


def endpoint(network, address, *names):
    return Endpoint(
        id=address, network_id=network, network_name=network, driver="bridge", container_id=names[0],
        container_name=names[0], ipv4=address, names=list(names),
    )  # fmt: skip


WEB = endpoint("app", "172.18.0.2", "web")
DB = endpoint("app", "172.18.0.3", "db", "database")
OTHER = endpoint("other", "172.19.0.2", "stranger")


def test_members_of_shared_networks_are_named():
    assert block([WEB], [WEB, DB, OTHER]) == f"{BEGIN}172.18.0.2\tweb\n172.18.0.3\tdb database\n{END}"


def test_the_default_bridge_has_no_names():
    default = endpoint("bridge", "172.17.0.2", "box")
    assert block([default], [default, WEB]) == ""


def test_only_the_block_is_replaced():
    old = "127.0.0.1\tlocalhost\n"
    first = with_block(old, block([WEB], [WEB, DB]))
    touched = first + "10.0.0.1\tmine\n"
    second = with_block(touched, block([WEB], [WEB]))
    assert second == old + block([WEB], [WEB]) + "10.0.0.1\tmine\n"
    assert with_block(second, "") == old + "10.0.0.1\tmine\n"


def test_a_block_without_its_end_is_cut_off():
    assert with_block(f"a\n{BEGIN}garbage", "") == "a\n"
