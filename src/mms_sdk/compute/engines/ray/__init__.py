"""Jobs on a Ray cluster: the engine, what it starts there, and how it speaks to it.

`engine.py` takes from the queue and reconciles. For each attempt it starts one actor of `actors.py`, which stays when
whoever started it goes; that one has an actor on each node, which starts a process of `part.py`, and this the workers.
`cluster.py` is all that the engine asks of Ray, by a process that is connected to it; `door.py` keeps such a process
for those that are not. `private.py` starts a cluster on this machine.
"""
