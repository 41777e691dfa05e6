"""Jobs: what they are, the program that one runs, what is known of them and what happens next."""
