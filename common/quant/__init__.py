"""Numbers in few bits: code books, scaled blocks, shared exponents, groups with a zero point, and their exact packing.

codebooks.py         values that a code of k bits may stand for
blockwise.py         blocks of a tensor, each scaled by its largest magnitude, coded by a code book
shared_exponent.py   block floating point: integers with one power of two a block
groups.py            groups of a weight matrix with a scale and a zero point (round to nearest)
packing.py           codes of k bits in bytes, so that sizes are counted and not computed
errors.py            how far an approximation is from what it stands for
"""
