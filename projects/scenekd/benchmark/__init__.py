"""Speed, memory and accuracy against a peer, each as a ratio measured in one run; see ``tools/benchmark.py``.

A suite is a function ``suite(options) -> Iterator[Row]``, registered under the kind ``benchmark``. Suites of
a system live in its package (``kd_mtl/benchmark_*.py``), peers that need a framework in
``scenekd/engines/benchmark_peers.py``.
"""
