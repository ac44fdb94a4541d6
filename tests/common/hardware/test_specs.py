"""Devices and links against their data sheets, collectives against closed forms."""

import pytest

from common.hardware.collective import all_reduce_seconds
from common.hardware.specs import GPUS, LINKS, gpu, link


@pytest.mark.parametrize("name", GPUS)
def test_every_device_names_its_source_and_known_links(name: str) -> None:
    assert gpu(name).source
    assert gpu(name).interconnect in LINKS and gpu(name).host_link in LINKS


@pytest.mark.parametrize("name", LINKS)
def test_every_link_names_its_source_and_passes_at_most_its_nominal_rate(name: str) -> None:
    assert link(name).source
    assert 0 < link(name).usable <= 1
    assert link(name).transfer_seconds(1e9) >= 1e9 / link(name).bytes_per_s


def test_a100_balance_point_is_153_flop_a_byte() -> None:
    assert gpu("a100-80gb-sxm").flops / gpu("a100-80gb-sxm").bandwidth == pytest.approx(153, abs=0.5)


def test_a100_nvlink_sends_half_of_600_gb_a_second_each_way() -> None:
    assert 2 * link("nvlink-3").bytes_per_s == 600e9


def test_kv_of_a_512_token_request_crosses_25_gbit_ethernet_in_0_39_seconds() -> None:
    # 1.13 GiB of OPT-66B's keys and values (DistServe, section 3.3) at 3.125 GB/s.
    assert link("ethernet-25g").transfer_seconds(64 * 9216 * 4 * 512) == pytest.approx(0.387, abs=0.001)


def test_unknown_device_and_link_name_the_nearest() -> None:
    with pytest.raises(KeyError, match="h100-sxm"):
        gpu("h100")
    with pytest.raises(KeyError, match="nvlink-3"):
        link("nvlink3")


def test_all_reduce_of_one_gpu_is_free() -> None:
    assert all_reduce_seconds(link("nvlink-4"), 1e9, 1) == 0
    with pytest.raises(ValueError, match="at least one rank"):
        all_reduce_seconds(link("nvlink-4"), 1e9, 0)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_large_all_reduce_approaches_the_ring_bound(ranks: int) -> None:
    wire = link("nvlink-4")
    bound = 2 * (ranks - 1) / ranks * 16e9 / (wire.bytes_per_s * wire.usable)
    assert bound < all_reduce_seconds(wire, 16e9, ranks) < 1.01 * bound


def test_small_all_reduce_of_two_gpus_costs_the_low_latency_protocol() -> None:
    # NCCL's constants: 6.6 us a call and two hops of 0.6 us.
    assert all_reduce_seconds(link("nvlink-4"), 8, 2) == pytest.approx(7.8e-6, rel=1e-3)


def test_all_reduce_takes_longer_with_more_bytes_and_more_ranks() -> None:
    sizes = [all_reduce_seconds(link("nvlink-3"), 2.0**power, 4) for power in range(34)]
    assert sizes == sorted(sizes)
    ranks = [all_reduce_seconds(link("nvlink-3"), 1e6, count) for count in range(1, 9)]
    assert ranks == sorted(ranks)
