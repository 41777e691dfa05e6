"""What this process does with its machine and its peers: files, memory, progress, exits."""
