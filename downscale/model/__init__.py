"""The model family as pure functions: `init(key, ...) -> nested dict`, `apply(params, ...)`."""
