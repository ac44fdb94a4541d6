"""NanoFlow: one batch keeps compute, memory and network of a GPU busy at once (arXiv:2408.12757, OSDI 2025).

A layer runs GEMMs, decode attention and collectives one after another, and each leaves two of the GPU's resources
idle. NanoFlow duplicates the operators over nano-batches, pieces of the dense batch, so that kernels of different
nano-batches overlap, each limited to a share of the execution units. Splitting costs (weights are read again), and
kernels that overlap slow one another, so that number, sizes, order and shares are searched for.

    cost_model       what serving needs of each resource; Table 2, rescaled to other models and lengths
    interference     which performance a share of the GPU buys; the fluid bound; streams measured on an H100
    nano_batches     operators over ranges of the batch, and what waits for what
    stage_one        order without interference, a mixed-integer program
    list_schedule    the period of an order and shares, fast
    stage_two        order and shares under interference; polish: a mixed-integer program; replay: the checker
    search           both stages, and schedules drawn blindly; naive_streams: nobody controls shares
    pipelines        for models, workloads and controls; plans: which of them a run needs
    dense_batch      the batch policy; pipeline_latency, online: serving traces with it
    offload          copies of KV caches beside the pipeline; numerics: a real layer in the schedule's order
    gpu_streams      a layer in nano-batches on a GPU's streams (PROFILE=cuda)
    published.csv    throughput of a rival that nobody can run here; exercises: the notebook's, solved
"""
