"""What if: a recording as a dependency graph, replayed under another host, launch path or kernels (methodology 9).

Where to find what, in the order in which a question goes through the room:

| module | holds |
| --- | --- |
| asked | the words of a change, as `--host python=2`, and the front door: `asked(…).of(recording)` |
| predict | the answer: gates, then predicted steps with interval and bounds, or a refusal |
| basis | what all changes to one recording share: graph, gates, variants, bounds, plain step |
| build, on_host | a recording into its graph: with a launch path, and of the CPU backend |
| points, streams | instants of the host, order of the device |
| blocking, polls, awaited_events | calls and loops in which the host waits for the device, and what for |
| told, waits | waits as the recording tells them, and of streams as inferred |
| handoffs, wakes | threads that wait for one another |
| constants | latencies and gaps, fitted to the recording |
| edges, graph | one function for each kind of edge; nodes and edges in columns, calibration |
| replay | one pass over a graph: when everything happens |
| gates | what a recording must pass before anything is predicted from it |
| changes, launches, compiled, like | the changes: factors, waits, floors; graphs, fusion; compiled; replayed times |
| apply | a whole change to a graph |
| spans | from which node to which the steps go, how long they take and vary |
| interval | between what they lie, whichever variant of the graph is right |
| plain | the step without the profiler's cost |
| strips | recorded and predicted, drawn on one axis |
| foresee | what the changes that advice asks for would win |
"""
