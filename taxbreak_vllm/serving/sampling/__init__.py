"""Which steps to record: of each kind one in so many, within a share of the time, and those somebody asks for."""
