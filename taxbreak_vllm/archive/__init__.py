"""What a fleet has recorded, in an object store or a shared folder."""
