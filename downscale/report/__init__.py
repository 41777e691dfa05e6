"""How a study is told: sections, figures, the page."""
