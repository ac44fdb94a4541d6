"""What the experiment can be told: sizes, tuning and switches."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Config:
    """Sizes, the tuning of every index, and the switches that controls use."""

    # the workload
    vectors: int = 50_000
    width: int = 64  # dimensions
    tenants: int = 1000
    sharing: float = 10.0  # tenants of a vector on average
    queries: int = 1000
    access: str = "interests"  # or random, one (each vector has one tenant), everyone (all see all)
    # Curator; gamma2 is what is tuned to the recall
    branching: int = 16
    longest: int = 64  # vectors in a shortlist (max_sl_size); 0: no shortlists
    gamma1: float = 2.0  # the authors' setting
    filtered: bool = True  # False: descend without asking the Bloom filters
    best_first: bool = True  # False: sort all buckets of the tenant
    copies: bool = False  # True: each grant stores the vector again
    scan_all: bool = False  # True: no budget, everything that the tenant may see is scanned
    # the other indexes; each value was the best of a sweep on seed 0 (nprobe and ef are tuned in every run)
    lists_over_root: float = 1.25  # lists of the shared inverted file over sqrt(vectors)
    vectors_a_list: float = 30.0  # in a tenant's inverted file
    links: int = 16  # M of the shared graph
    tenant_links: int = 12  # M of a tenant's graph
    effort: int = 40  # efConstruction of both
    # how it is measured
    recall: float = 0.94  # of the 10 nearest that every index must reach
    rounds: int = 5  # of timing; a query counts with its median
    padded_width: int = 192  # dimensions of YFCC100M, for which bytes are counted as well
    sizes: list[int] = field(default_factory=lambda: [12_500, 25_000, 50_000, 100_000])  # of the growth curve
    tenant_counts: list[int] = field(default_factory=lambda: [250, 500, 1000])  # of the memory curve
    films: bool = True  # MovieLens 100K, where it can be had
