"""What stands here for a machine: roots of containers, virtual machines and who gives them out."""
