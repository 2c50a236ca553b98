"""Traffic control over rtnetlink (tc(8)): a token bucket on what an interface sends.

A token bucket lets `rate` bytes a second pass on average and a burst at once; what waits longer than the queue
allows is dropped, which is what tells TCP to slow down.
"""

from __future__ import annotations

import struct

from dray.linux import netlink
from dray.linux.netlink import Request

_RTM_NEWQDISC = 36
_KIND, _OPTIONS = 1, 2  # TCA_KIND, TCA_OPTIONS
_TBF_PARAMETERS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_ROOT = 0xFFFFFFFF  # TC_H_ROOT
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET
_MESSAGE = struct.Struct("=BxxxiIII")  # struct tcmsg: family, index, handle, parent, info
_RATE = struct.Struct("=BBHhHI")  # struct tc_ratespec: cell log, link layer, overhead, cell align, mpu, rate
_MOST = 0xFFFFFFFF
_LARGEST_PACKET = 1 << 16  # a segment before the wire's size cuts it (GSO)
_WAIT_SECONDS = 0.05


def limit_request(index: int, rate: int) -> Request:
    """Limit what the interface of this index sends to `rate` bytes a second."""
    burst = max(rate // 100, 2 * _LARGEST_PACKET)
    most = burst + int(rate * _WAIT_SECONDS)
    plain = _RATE.pack(0, _ETHERNET, 0, 0, 0, min(rate, _MOST))
    parameters = plain + bytes(_RATE.size) + struct.pack("=III", min(most, _MOST), 0, 0)
    options = netlink.attribute(_TBF_PARAMETERS, parameters) + netlink.u32(_TBF_BURST, min(burst, _MOST))
    if rate > _MOST:
        options += netlink.attribute(_TBF_RATE64, struct.pack("=Q", rate))
    body = _MESSAGE.pack(0, index, 0, _ROOT, 0) + netlink.text(_KIND, "tbf") + netlink.nested(_OPTIONS, options)
    return Request(f"limit interface {index}", _RTM_NEWQDISC, netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE, body)
