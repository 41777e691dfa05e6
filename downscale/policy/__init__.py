"""A stage that learns from what it writes itself: rollouts, rewards, slopes."""
