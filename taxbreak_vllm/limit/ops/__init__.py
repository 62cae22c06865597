"""Work per op: rules from a recorded call to FLOPs and bytes, one file a family of ops."""
