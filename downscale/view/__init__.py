"""The items of runs, looked at one by one and side by side."""
