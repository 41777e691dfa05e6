"""One decoder made smaller after training: fewer layers, narrower ones, or fewer bits a weight."""
