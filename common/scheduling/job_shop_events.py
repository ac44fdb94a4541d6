"""The clock of a job shop: from one decision to the next, over plain arrays, compiled by numba where it is there.

At an instant, in this order: operations end; jobs that wait for each other's machines in a cycle change places, all at
once (blocking with swap); idle machines that are up take the job that waits for them, and where several do, a decision
is asked; when nothing moves, time jumps to the next end of an operation or of a repair that somebody waits for.
Jumping gives the same schedule as a clock of step 1, since nothing can change in between.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

# kinds of shop: unlimited buffers; no buffer, cycles change places; no buffer, cycles are stuck
ORDINARY, SWAP, BLOCKING = range(3)
# when machines shut down: a draw for each operation taken; a draw at each tick, running operations pause
NEVER, ON_TAKE, ANY_TIME = range(3)
# states of a job: not yet begun or in a buffer; on a machine; done but holding its machine; out of the shop
OUTSIDE, PROCESSING, HOLDING, FINISHED = range(4)
# rows of `jobs`, shape (5, jobs): STARTED operations, UNTIL when the last of them runs, READY (waits) since, machine
STATE, STARTED, UNTIL, READY, WHERE = range(5)
# rows of `stations`, shape (5, machines): DRAWN is whether the next operation's shutdown was drawn already
HOLDER, DOWN_UNTIL, DOWN_SINCE, DRAWN, DECLINED = range(5)
# planes of `operations`, shape (4, jobs, operations); BY_SWAP: the number of the swap that began it, 0 for none
START, END, RELEASE, BY_SWAP = range(4)
# entries of `clock`, shape (9,); LEFT: jobs not finished; LONGEST: jobs in the longest swap
TIME, ASKED, LEFT, SWAPS, DEADLOCKED, DOWNS, LONGEST, CAN_WAIT, CANDIDATES = range(9)
WAIT = -1  # a choice: the machine takes nobody until the next event


def advance(
    choice: int,
    kind: int,
    mode: int,
    may_wait: bool,
    durations: Any,
    machines: Any,
    table: Any,
    jobs: Any,
    stations: Any,
    operations: Any,
    clock: Any,
    downs: Any,
    candidates: Any,
) -> None:
    """Carry out `choice` for the asked machine, then go on to the next decision (clock[ASKED]) or the end (-1).

    table: int (machines, ticks); ON_TAKE: ticks that a shutdown drawn at that tick lasts, 0 for none; ANY_TIME: for
    how many ticks more a machine is down at that tick, 0 where it is up. The last six arrays are changed in place.
    One function, since numba compiles it as it stands.
    """
    n, m = durations.shape
    ticks = table.shape[1]
    movers = np.zeros(n, dtype=np.int64)  # jobs that move now; a whole cycle at once
    moving = 0
    now = clock[TIME]
    if clock[ASKED] >= 0:
        if choice == WAIT:
            stations[DECLINED, clock[ASKED]] = now
        else:
            movers[0] = choice
            moving = 1
        clock[ASKED] = -1
    seen = np.zeros(n, dtype=np.int64)
    stay = True  # at this instant, for what else may happen in it
    changed = now  # when an operation last began or ended
    while True:
        if moving == 0 and not stay:
            # the next event
            after = -1
            running = False
            for j in range(n):
                if jobs[STATE, j] == PROCESSING:
                    running = True
                    if after < 0 or jobs[UNTIL, j] < after:
                        after = jobs[UNTIL, j]
                elif jobs[STATE, j] == OUTSIDE or jobs[STATE, j] == HOLDING:
                    b = machines[j, jobs[STARTED, j]]
                    up = stations[DOWN_UNTIL, b]
                    if up > now and (after < 0 or up < after):
                        after = up
            # the table of shutdowns begins again at its end: what a whole round of it did not free is never free
            if after < 0 or (mode == ANY_TIME and not running and after - changed > ticks):
                if clock[LEFT] > 0:
                    clock[DEADLOCKED] = 1
                return
            now = after
            clock[TIME] = now
        stay = False
        if moving > 0:
            changed = now
        # moves that were decided
        for i in range(moving):
            j = movers[i]
            k = jobs[STARTED, j]
            b = machines[j, k]
            a = jobs[WHERE, j]
            if a >= 0:
                if stations[HOLDER, a] == j:
                    stations[HOLDER, a] = -1
                operations[RELEASE, j, k - 1] = now
            if moving > 1:
                operations[BY_SWAP, j, k] = clock[SWAPS]
            stations[HOLDER, b] = j
            stations[DRAWN, b] = 0
            jobs[WHERE, j] = b
            jobs[STATE, j] = PROCESSING
            jobs[STARTED, j] = k + 1
            end = now
            left = durations[j, k]
            if mode == ANY_TIME:
                while left > 0:
                    up = table[b, end % ticks]
                    if up > 0:
                        end += up
                    else:
                        left -= 1
                        end += 1
            else:
                end += left
            jobs[UNTIL, j] = end
            operations[START, j, k] = now
            operations[END, j, k] = end
        moving = 0
        # operations that end
        for j in range(n):
            if jobs[STATE, j] == PROCESSING and jobs[UNTIL, j] <= now:
                changed = now
                k = jobs[STARTED, j] - 1
                if k == m - 1 or kind == ORDINARY:
                    stations[HOLDER, jobs[WHERE, j]] = -1
                    jobs[WHERE, j] = -1
                    operations[RELEASE, j, k] = now
                    jobs[STATE, j] = OUTSIDE
                    if k == m - 1:
                        jobs[STATE, j] = FINISHED
                        clock[LEFT] -= 1
                else:
                    jobs[STATE, j] = HOLDING
                jobs[READY, j] = now
        if clock[LEFT] == 0:
            return
        if mode == ANY_TIME:
            for b in range(m):
                up = table[b, now % ticks]
                if up > 0 and stations[DOWN_UNTIL, b] <= now:
                    stations[DOWN_SINCE, b] = now
                    stations[DOWN_UNTIL, b] = now + up
        # a cycle of jobs that hold the machines they wait for
        if kind == SWAP:
            for j in range(n):
                seen[j] = 0
            for first_job in range(n):
                j = first_job
                while j >= 0 and jobs[STATE, j] == HOLDING and seen[j] == 0:
                    seen[j] = first_job + 1
                    j = stations[HOLDER, machines[j, jobs[STARTED, j]]]
                if moving > 0 or j < 0 or jobs[STATE, j] != HOLDING or seen[j] != first_job + 1:
                    continue
                size = 0
                up_now = True
                begin = j
                while size == 0 or j != begin:
                    b = machines[j, jobs[STARTED, j]]
                    if mode == ON_TAKE and stations[DRAWN, b] == 0 and stations[DOWN_UNTIL, b] <= now:
                        stations[DRAWN, b] = 1
                        lasts = table[b, now % ticks]
                        if lasts > 0:
                            stations[DOWN_SINCE, b] = now
                            stations[DOWN_UNTIL, b] = now + lasts
                            downs[clock[DOWNS], 0] = b
                            downs[clock[DOWNS], 1] = now
                            downs[clock[DOWNS], 2] = now + lasts
                            clock[DOWNS] += 1
                    if stations[DOWN_UNTIL, b] > now:
                        up_now = False
                    movers[size] = j
                    size += 1
                    j = stations[HOLDER, b]
                if up_now:
                    moving = size
                    clock[SWAPS] += 1
                    clock[LONGEST] = max(clock[LONGEST], size)
            if moving > 0:
                continue
        # idle machines
        open_machines = 0
        asked = -1
        alone = -1
        for b in range(m):
            if stations[HOLDER, b] >= 0 or stations[DOWN_UNTIL, b] > now or stations[DECLINED, b] == now:
                continue
            count = 0
            one = -1
            for j in range(n):
                waits = jobs[STATE, j] == OUTSIDE or jobs[STATE, j] == HOLDING
                if waits and machines[j, jobs[STARTED, j]] == b:
                    count += 1
                    one = j
            if count == 0:
                continue
            if mode == ON_TAKE and stations[DRAWN, b] == 0:
                stations[DRAWN, b] = 1
                lasts = table[b, now % ticks]
                if lasts > 0:
                    stations[DOWN_SINCE, b] = now
                    stations[DOWN_UNTIL, b] = now + lasts
                    downs[clock[DOWNS], 0] = b
                    downs[clock[DOWNS], 1] = now
                    downs[clock[DOWNS], 2] = now + lasts
                    clock[DOWNS] += 1
                    continue
            open_machines += 1
            if asked < 0:
                asked = b
                alone = one if count == 1 else -1
        if asked < 0:
            continue
        clock[CAN_WAIT] = 0
        if may_wait:
            # waiting is a choice where an event lies ahead or another machine may still take a job at this instant
            if open_machines > 1:
                clock[CAN_WAIT] = 1
            for j in range(n):
                waits = jobs[STATE, j] == OUTSIDE or jobs[STATE, j] == HOLDING
                repaired = waits and stations[DOWN_UNTIL, machines[j, jobs[STARTED, j]]] > now
                if jobs[STATE, j] == PROCESSING or repaired:
                    clock[CAN_WAIT] = 1
        if alone >= 0 and clock[CAN_WAIT] == 0:
            movers[0] = alone
            moving = 1
            continue
        clock[ASKED] = asked
        clock[CANDIDATES] = 0
        for j in range(n):
            waits = jobs[STATE, j] == OUTSIDE or jobs[STATE, j] == HOLDING
            if waits and machines[j, jobs[STARTED, j]] == asked:
                candidates[clock[CANDIDATES]] = j
                clock[CANDIDATES] += 1
        return


@cache
def compiled() -> Callable[..., None]:
    """`advance`, compiled where numba is installed (the extra `kernels`), else as it stands: the same schedules."""
    try:
        import numba
    except ImportError:
        return advance
    return numba.njit(cache=True)(advance)
