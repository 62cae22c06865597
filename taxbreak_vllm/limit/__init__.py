"""What hardware allows: work by op, ceilings of devices, and the share of device time above them."""
