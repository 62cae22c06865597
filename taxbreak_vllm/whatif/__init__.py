"""What if: a recording as a dependency graph, replayed under another host, launch path or kernels (methodology 9)."""
