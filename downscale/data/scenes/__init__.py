"""Records of the made-up world: scenes, facts, questions and conversations about them."""
