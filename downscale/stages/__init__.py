"""One stage of one cell: what it starts from, what it trains on, what it leaves."""
