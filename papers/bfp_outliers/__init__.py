"""K-sort: channels of similar magnitude share a block, so that an outlier spoils only other outliers.

Block floating point stores n integers with one power of two (common/quant/shared_exponent.py): one large element takes
precision from its n - 1 neighbours. Outliers of keys sit in fixed channels, and so does their cause, the rows of W_k
(ksort.py). Sorting those rows by their norms within each head, and W_q's rows alike, leaves every inner product as it
is; the rotation by position is rearranged with them (sorted_attention.py). The cache then stores 4-bit keys at half of
BFP16's bytes (block_cache.py, packed_rows.py). What today's rivals do instead: baselines.py. How keys really look, and
how to plant outliers that change nothing: channel_outliers.py. Perplexity of a setting: settings.py; the time of a
decode step: decode_latency.py; 32K tokens on a GPU: packed_attention.py.
"""
