"""Curator: efficient indexing for multi-tenant vector databases (Jin et al., 2024), replicated.

Many tenants share vectors, and each may search only what it has access to. One shared index with a filter is small but
visits what others own; an index a tenant is fast but stores a shared vector once a tenant. Curator keeps one tree of
clusters (tree.py) over vectors that are stored once. Each tenant's own tree is a part of it, from the root down to
where its vectors are few: a Bloom filter in every node says whether a tenant has anything below (bloom.py), and at the
ends of its tree stand shortlists of its vectors' ids, at most `longest`, so that the tree is deep where the tenant has
much (sharing.py: insert, grant, split, revoke, merge). A search goes down that tree nearest first (search.py).
index.py puts it together; inverted_file.py and graph.py are the baselines, searched by the same compiled kernels.
"""
