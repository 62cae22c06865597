"""From columns to a breakdown: the equations of the taxes, and what is summed over steps."""
