"""DyCL: a network with control flow becomes a host program and condition-free sub-networks that any compiler can take.

A compiler that traces one input keeps the path of that input and is wrong on every other. DyCL rewrites the program
instead. `rewriting` reads the source of `forward`, inlines what holds control flow, unrolls loops over constants and
turns every other decision into an explicit branch of the host program (`program`). `liveness`, `merging` and
`subnetworks` remove what nobody reads, join what stands between two branches into one sub-network, and share equal
ones. `recording` runs the rewritten program to learn the shapes that enter each sub-network, `backends` hands them to
ONNX Runtime, inductor or OpenVINO, and `host` writes the host program: plain Python that needs neither torch nor the
network's class. Only the abstract was at hand: what it leaves open is our design (see the card).
"""
