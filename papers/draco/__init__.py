"""DRACO: a network changed so that it fills a systolic array, instead of an array changed so that it fits the network.

A depthwise 3 x 3 layer reuses a loaded word too little to keep a large array of processing elements busy: on 64 x 64
elements nearly all of them idle. DRACO raises the channels per group, G, of these layers. The added work
runs on elements that had nothing to do, so that it costs little or no time, and the network predicts better; what was
gained in accuracy can be given back by a narrower network, which is faster.

The array, the mapping and its energy are in common/accelerator (row_stationary.py, energy.py, stationary.py). Here:
which (G, width) to take (cooptimization.py), the accuracy of grouped networks that are really trained (accuracy.py on
images.py), the same layers on a GPU (group_convolution.py), and what the claims read (experiment.py).
"""
