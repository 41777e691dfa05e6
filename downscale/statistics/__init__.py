"""Is this number right? Intervals, resamples and shares: arrays in, intervals out, no study."""
